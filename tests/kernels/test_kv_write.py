"""write_kv: the named slots get their rows, every other slot keeps its bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.kv_write import reference, write_kv

write_kv = placed(write_kv)

BACKENDS = (KernelBackend("torch"), KernelBackend("triton"))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROW_SHAPES = ((2, 3, 10), (2, 1, 64), (2, 8, 128), (576,), (1,))


def bits(x: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor: NaN equals NaN, and -0 is not 0."""
    return x.contiguous().view(torch.uint8)


@given(st.data())
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_writes_the_named_slots_and_no_other(backend: KernelBackend, data: st.DataObject) -> None:
    row_shape = data.draw(st.sampled_from(ROW_SHAPES))
    dtype = data.draw(st.sampled_from(DTYPES))
    page_size, num_pages = data.draw(st.sampled_from((1, 2, 3, 16))), data.draw(st.integers(1, 4))
    slots = list(range(page_size * num_pages))
    chosen = data.draw(st.lists(st.sampled_from(slots), unique=True, max_size=9))
    padding = data.draw(st.integers(0, 4))
    write_slots = torch.tensor(chosen, dtype=torch.int64)
    kv = torch.randn(len(chosen) + padding, *row_shape).to(dtype)
    kv[len(chosen) :] = torch.nan
    cache = torch.full((num_pages, page_size, *row_shape), torch.nan, dtype=dtype)
    wanted = cache.clone()
    reference.write_kv(kv, wanted, write_slots)
    write_kv(kv, cache, write_slots, backend=backend)
    assert torch.equal(bits(cache), bits(wanted))
    assert int(cache.isnan().sum()) == (len(slots) - len(chosen)) * math.prod(row_shape)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_reads_rows_that_lie_apart(backend: KernelBackend) -> None:
    fused = torch.randn(5, 4 + 2, 3, 8)
    cache = torch.zeros(2, 4, 2, 3, 8)
    slots = torch.tensor([7, 0, 3, 4, 1])
    write_kv(fused[:, 4:], cache, slots, backend=backend)
    assert torch.equal(cache.flatten(0, 1)[slots], fused[:, 4:])
    turned = torch.randn(5, 2, 8, 3).transpose(2, 3)
    write_kv(turned, cache, slots, backend=backend)
    assert torch.equal(cache.flatten(0, 1)[slots], turned)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
def test_addresses_past_two_billion_elements(backend: KernelBackend) -> None:
    width = 1 << 18
    num_pages = (1 << 31) // width + 2
    # Only the pages that are touched take memory.
    cache = torch.empty(num_pages, 1, width, dtype=torch.uint8)
    rows = torch.arange(2, dtype=torch.uint8)[:, None].expand(2, width) + 7
    write_kv(rows, cache, torch.tensor([num_pages - 1, 1]), backend=backend)
    assert (cache[num_pages - 1] == 7).all()
    assert (cache[1] == 8).all()


def test_refuses_what_does_not_fit() -> None:
    backend = BACKENDS[0]
    cache, slots = torch.zeros(2, 4, 2, 3, 8), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="row shapes and dtypes"):
        write_kv(torch.zeros(2, 2, 3, 9), cache, slots, backend=backend)
    with pytest.raises(ValueError, match="row shapes and dtypes"):
        write_kv(torch.zeros(2, 2, 3, 8).half(), cache, slots, backend=backend)
    with pytest.raises(ValueError, match="one slot for each row"):
        write_kv(torch.zeros(1, 2, 3, 8), cache, slots, backend=backend)
    with pytest.raises(ValueError, match="one slot for each row"):
        write_kv(torch.zeros(2, 2, 3, 8), cache, slots.int(), backend=backend)
    with pytest.raises(ValueError, match="contiguous"):
        write_kv(torch.zeros(2, 2, 3, 8), cache.transpose(0, 1), slots, backend=backend)
