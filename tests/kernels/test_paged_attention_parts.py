"""The parts of eager attention: partitions, masks, the merge, and the probe."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.paged_passes import TORCH, Heads, Request, Rows, exact, make_pass
from pilotfish.invariance import attention_probe as probe
from pilotfish.invariance.attention_probe import attention_row_multiple
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import (
    Mode,
    eager,
    layout,
    paged_attention,
    plan_attention,
)
from pilotfish.kernels.paged_attention.flash import (
    MASK_VALUE,
    TILE_ROWS,
    merge_weights,
    partition,
    partition_of,
    partitions_of,
)
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec
from pilotfish.state import KVCacheInputs


def test_partitions_tile_the_keys() -> None:
    ends = [partition(index) for index in range(8)]
    assert ends[:5] == [(0, 128), (128, 256), (256, 512), (512, 1024), (1024, 1536)]
    assert all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    for key in (0, 127, 128, 255, 256, 511, 512, 1023, 1024, 1535, 1536, 3000):
        start, end = partition(partition_of(key))
        assert start <= key < end
    assert list(partitions_of((127, 128))) == [0]
    assert list(partitions_of((127, 257))) == [0, 1, 2]


@given(
    st.sampled_from(("causal", "block")),
    st.sampled_from((None, 1, 3, 8, 40)),
    st.tuples(st.integers(0, 30), st.integers(1, 20)),
    st.tuples(st.integers(0, 45), st.integers(1, 16)),
)
def test_sight_says_what_the_definition_says(
    mode: Mode, window: int | None, row_run: tuple[int, int], key_run: tuple[int, int]
) -> None:
    (length, count), (first_key, num) = row_run, key_run
    mask_spec, num_keys = MaskSpec(window, mode), length + count
    keys = (first_key, first_key + num)

    def sees(p: int, j: int) -> bool:
        near = window is None or abs(p - j) < window
        return j < num_keys and near and (mode == "block" or j <= p)

    rows = range(length, length + count)
    seen = [j for j in range(num_keys) if any(sees(p, j) for p in rows)]
    assert mask_spec.visible_keys((length, length + count), num_keys) == (seen[0], seen[-1] + 1)
    some, full = mask_spec.rows_that_see(keys, num_keys)
    for p in rows:
        here = [sees(p, j) for j in range(*keys)]
        assert not any(here) or some[0] <= p < some[1]
        assert (full[0] <= p < full[1]) <= all(here)
        if first_key < num_keys:
            assert any(here) == (some[0] <= p < some[1])
        if keys[1] <= num_keys:
            assert all(here) == (full[0] <= p < full[1])
    p, j = np.arange(length, length + count)[:, None], np.arange(*keys)
    hidden = mask_spec.hidden(p, j, np.array(num_keys))
    for i, row in enumerate(rows):
        for k, key in enumerate(range(*keys)):
            if key < num_keys:
                assert bool(hidden[i, k]) == (not sees(row, key))


def test_an_unseen_partition_changes_no_bit() -> None:
    lse = torch.randn(3, 50)
    weights = merge_weights(lse.clone())
    assert torch.allclose(weights, lse.softmax(0), rtol=1e-6)
    unseen = torch.full((1, 50), MASK_VALUE)
    for padded in (torch.cat([lse, unseen]), torch.cat([lse, unseen + 6.2, unseen])):
        more_weights = merge_weights(padded)
        assert torch.equal(more_weights[:3], weights)
        assert not more_weights[3:].any()
    assert (merge_weights(torch.cat([lse[:1], unseen]))[0] == 1).all()
    assert (merge_weights(lse[:1].clone()) == 1).all()


@pytest.mark.parametrize("shape", [(3, 64), (2, 10), (1, 80)])
@pytest.mark.parametrize(
    ("breaks", "least"),
    [
        (lambda rows: False, 4),
        (lambda rows: rows % 8 != 0, 8),
        (lambda rows: rows % 32 in (4, 8, 20, 24), 16),
        (lambda rows: rows % 32 == 28, 8),
        (lambda rows: rows < 100, None),
    ],
)
def test_the_probe_finds_a_multiple_and_refuses_what_breaks(
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[int, int],
    breaks: Callable[[int], bool],
    least: int | None,
) -> None:
    """Planted: a kernel that rounds otherwise where a call has such numbers of rows."""
    real = probe.flash

    def flash(q: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        out, lse = real(q, *rest)
        return (out.nextafter(out.new_tensor(9.0)), lse) if breaks(q.shape[2]) else (out, lse)

    monkeypatch.setattr(probe, "flash", flash)
    found = attention_row_multiple(*shape)
    if least is None:
        assert found is None
    else:
        assert found in probe.CANDIDATES
        assert found >= least  # more where this machine's own kernel needs it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_where_bits_matter_16_bits_are_computed_in_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """The flash kernel chooses its 16-bit products by the number of rows, requests and threads."""
    seen: set[torch.dtype] = set()
    real = eager.flash

    def flash(q: torch.Tensor, *rest: Any) -> Any:
        seen.add(q.dtype)
        return real(q, *rest)

    monkeypatch.setattr(eager, "flash", flash)
    requests = [Request.draw(count, Heads(4, 1, 256), dtype, count) for count in (9, 90)]
    made = make_pass([Rows(r, 0, len(r.q)) for r in requests], page_size=16)
    for backend in (TORCH, KernelBackend("torch", invariant=False)):
        seen.clear()
        paged_attention(made.q, made.cache, made.plan, scale=0.25, backend=backend)
        made.plan.memo.clear()
        wide = backend.invariant or dtype != torch.bfloat16
        assert seen == {torch.float32 if wide else dtype}


@pytest.mark.parametrize("row_multiple", [4, 8, 32])
def test_any_row_multiple_is_right(row_multiple: int) -> None:
    heads = Heads(6, 2, 16)
    rows = [
        Rows(Request.draw(n + c, heads, torch.float32, n), n, c)
        for n, c in ((200, 1), (0, 131), (3, 30))
    ]
    made = make_pass(rows, page_size=16, row_multiple=row_multiple)
    out = paged_attention(made.q, made.cache, made.plan, scale=0.25, backend=TORCH)
    for result, r in zip(out.split([r.count for r in rows]), rows, strict=True):
        assert (result.double() - exact(r, None, "causal")).abs().max() < 3e-6


@pytest.mark.parametrize("row_multiple", [4, 8, 32])
def test_calls_have_a_multiple_of_rows_that_the_probe_tried(
    monkeypatch: pytest.MonkeyPatch, row_multiple: int
) -> None:
    counts: set[int] = set()
    real = eager.flash

    def flash(q: torch.Tensor, *rest: Any) -> Any:
        counts.add(q.shape[2])
        return real(q, *rest)

    monkeypatch.setattr(eager, "flash", flash)
    for heads in (Heads(6, 2, 16), Heads(40, 1, 16)):
        rows = [
            Rows(Request.draw(n + c, heads, torch.float32, n), n, c)
            for n, c in ((200, 1), (0, 131), (3, 30), (5, 16))
        ]
        made = make_pass(rows, page_size=16, row_multiple=row_multiple)
        paged_attention(made.q, made.cache, made.plan, scale=0.25, backend=TORCH)
    assert {count % row_multiple for count in counts} == {0}
    assert max(counts) <= TILE_ROWS


def test_calls_of_one_plan_may_have_other_padding() -> None:
    """What the first one laid out is not what the next one gets."""
    request = Request.draw(140, Heads(6, 2, 16), torch.float32, 0)
    for counts in ((1, 3), (1, 60)):
        made = make_pass([Rows(request, 50, n) for n in counts], page_size=16)
        for padding in (0, 3, 1, 0):
            q = torch.cat((made.q, torch.full((padding, *made.q.shape[1:]), torch.nan)))
            out = paged_attention(q, made.cache, made.plan, scale=0.25, backend=TORCH)
            assert out.shape == q.shape
            for result, n in zip(out[: sum(counts)].split(list(counts)), counts, strict=True):
                wanted = exact(Rows(request, 50, n), None, "causal")
                assert (result.double() - wanted).abs().max() < 3e-6


def test_few_rows_together_are_few_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request.draw(700, Heads(9, 3, 64), torch.bfloat16, 0)
    rows = [Rows(request, 680, 16), Rows(request, 120, 9), Rows(request, 300, 12)]
    together = make_pass(rows, page_size=16)
    out = paged_attention(together.q, together.cache, together.plan, scale=0.125, backend=TORCH)
    monkeypatch.setattr(layout, "FEW_ROWS", 0)
    monkeypatch.setattr(layout, "FEW_PACKED_ROWS", 0)
    alone = make_pass(rows, page_size=16)
    again = paged_attention(alone.q, alone.cache, alone.plan, scale=0.125, backend=TORCH)
    assert torch.equal(out, again)


def test_plans_refuse_what_does_not_fit() -> None:
    def inputs(lengths: tuple[int, ...], counts: tuple[int, ...]) -> KVCacheInputs:
        return KVCacheInputs(
            blocks=(),
            lookup_table=torch.zeros(2, 3, dtype=torch.int32),
            cache_lengths=torch.tensor(lengths, dtype=torch.int32),
            write_slots=torch.zeros(sum(counts), dtype=torch.int64),
            page_size_tokens=4,
            lengths=lengths,
            row_counts=counts,
        )

    offsets = torch.tensor([0, 1, 2], dtype=torch.int32)
    assert plan_attention(inputs((11, 0), (1, 1)), offsets, backend=TORCH).num_rows == 2
    with pytest.raises(ValueError, match="a page for every key"):
        plan_attention(inputs((12, 0), (1, 1)), offsets, backend=TORCH)
    with pytest.raises(ValueError, match="one of each per request"):
        plan_attention(inputs((3,), (1,)), offsets, backend=TORCH)
