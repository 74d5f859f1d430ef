"""A row that is not finite reaches none that comes before it or stands beside it, on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.native_cases import NATIVE, TORCH, needs_library
from kernels.paged_passes import Heads, Request, Rows, attend, make_pass
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.elementwise import gelu, silu, softmax
from pilotfish.kernels.grouped_linear import GroupedWeightBuilder, group_rows, grouped_linear
from pilotfish.kernels.layer_norm import layer_norm
from pilotfish.kernels.linear import linear, prepare_linear
from pilotfish.kernels.paged_attention import paged_attention
from pilotfish.kernels.rms_norm import rms_norm
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.router import choose_experts
from pilotfish.kernels.swiglu import swiglu

ODD = (float("nan"), float("inf"), -float("inf"))
BACKENDS = [
    pytest.param(TORCH, id="torch"),
    pytest.param(NATIVE, id="native", marks=needs_library),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize(
    ("start", "count", "window", "dtype"),
    [
        (7, 5, None, torch.float32),  # a verify pass
        (0, 40, None, torch.float32),  # a prefill
        (130, 40, 9, torch.float32),
        (120, 20, None, torch.bfloat16),  # over the first partition's end
    ],
)
def test_attention_before_a_key_that_is_not_finite(
    *,
    backend: KernelBackend,
    value: float,
    which: int,
    start: int,
    count: int,
    window: int | None,
    dtype: torch.dtype,
) -> None:
    heads = Heads(4, 2, 16)
    request = Request.draw(start + count, heads, dtype, 1)
    mate = Request.draw(12, heads, dtype, 2)
    batch = [Rows(mate, 6, 6), Rows(request, start, count)]
    wanted_mate, wanted = attend(batch, backend=backend, window=window)
    place = count - 2
    request.kv[start + place, which, 1, 3] = value
    got_mate, got = attend(batch, backend=backend, window=window)
    assert torch.equal(got_mate, wanted_mate)
    assert torch.equal(got[:place], wanted[:place])
    if which == 1:  # who sees it has it, in its own column
        assert not got[place:, 2:, 3].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", [0, 1], ids=["key", "value"])
@pytest.mark.parametrize(
    ("start", "count", "window", "place"),
    [(6, 20, 4, 4), (6, 4, 4, 4), (6, 20, 4, 1), (130, 40, 9, 127), (40, 1, 9, 20), (6, 1, 4, 1)],
)
def test_attention_behind_a_cached_key_that_is_not_finite(
    *, backend: KernelBackend, which: int, start: int, count: int, window: int, place: int
) -> None:
    """The first rows may see it, the others of the pass may not."""
    request = Request.draw(start + count, Heads(4, 2, 16), torch.float32, 1)
    (wanted,) = attend([Rows(request, start, count)], backend=backend, window=window)
    request.kv[place, which, 1, 3] = torch.nan
    (got,) = attend([Rows(request, start, count)], backend=backend, window=window)
    seeing = max(0, place + window - start)
    assert torch.equal(got[seeing:], wanted[seeing:])
    assert not got[:seeing, 2:, 3].isfinite().any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pages_hold_what_was_written_after_attention_looked_away(backend: KernelBackend) -> None:
    request = Request.draw(9, Heads(2, 1, 16), torch.float32, 1)
    request.kv[7, 1, 0, 2] = torch.inf
    made = make_pass([Rows(request, 3, 6)], page_size=4, backend=backend)
    before = made.cache.clone()
    paged_attention(made.q, made.cache, made.plan, scale=0.25, backend=backend)
    assert torch.equal(made.cache.view(torch.int32), before.view(torch.int32))


RowWise = Callable[[torch.Tensor, KernelBackend], torch.Tensor]


def _weight(rows: int, columns: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def _linear(x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    return linear(x, prepare_linear(_weight(24, x.shape[1]), backend=backend), backend=backend)


def _rope(x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    heads = x.clone().view(x.shape[0], 2, -1)
    angles = torch.ones(x.shape[0], heads.shape[2])
    apply_rope(heads, angles.cos(), angles.sin(), interleaved=False, backend=backend)
    return heads.flatten(1)


def _experts(x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    """Rows of two experts each; row 5 shares its experts with all others."""
    builder = GroupedWeightBuilder(3, 8, x.shape[1], dtype=x.dtype, backend=backend)
    for expert in range(3):
        builder.add(expert, _weight(8, x.shape[1]) + expert, None)
    row_multiple = 8 if backend.name == "torch" else 1
    choice = torch.tensor([[i % 2, 2] for i in range(x.shape[0])])
    groups = group_rows(choice, 3, backend=backend, row_multiple=row_multiple)
    rows = x.index_select(0, groups.rows)
    made = grouped_linear(rows, builder.finish(), groups, backend=backend)
    weights = torch.full(choice.shape, 0.5)
    return combine_rows(made, groups.places, weights, None, num_rows=x.shape[0], backend=backend)


def _router(x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    choice, weights = choose_experts(x, None, scoring="softmax", num_chosen=2, backend=backend)
    return torch.cat((choice.float(), weights), dim=1)


ROWWISE: dict[str, RowWise] = {
    "linear": _linear,
    "rms_norm": lambda x, backend: rms_norm(
        x, torch.ones(x.shape[1]), 1e-6, cast="before_weight", backend=backend
    ),
    "layer_norm": lambda x, backend: layer_norm(
        x, torch.ones(x.shape[1]), None, 1e-6, backend=backend
    ),
    "rope": _rope,
    "swiglu": lambda x, backend: swiglu(x, backend=backend),
    "silu": lambda x, backend: silu(x, backend=backend),
    "gelu": lambda x, backend: gelu(x, backend=backend),
    "softmax": lambda x, backend: softmax(x, backend=backend),
    "experts": _experts,
    "router": _router,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", ODD)
@pytest.mark.parametrize("name", ROWWISE)
def test_rows_beside_a_row_that_is_not_finite(
    backend: KernelBackend, value: float, name: str
) -> None:
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(2))
    others = [row for row in range(9) if row != 5]
    wanted = ROWWISE[name](x.clone(), backend)
    x[5, 3] = value
    got = ROWWISE[name](x, backend)
    assert torch.equal(got[others], wanted[others])
