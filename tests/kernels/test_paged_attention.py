"""paged_attention against float64: drawn passes, caches where every unread slot is NaN."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_passes import (
    TORCH,
    TRITON,
    Heads,
    Request,
    Rows,
    attend,
    exact,
    heads,
    make_pass,
    windows,
)
from kernels.places import placed
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import Mode, paged_attention, reference
from pilotfish.kernels.paged_attention.mask_spec import MaskSpec

paged_attention = placed(paged_attention)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MODES = st.sampled_from(("causal", "block"))
PAGE_SIZES = st.sampled_from((1, 2, 3, 16, 64, 128))


def check(out: torch.Tensor, rows: Rows, window: int | None, mode: str) -> None:
    """Within twice the error of eager torch in the same dtype, and the roundings none can avoid.

    Few rows may be lucky in eager torch, so there is room for one rounding of the result, and one
    of a float32 score at the size of its terms: a score that is off by d moves a result by d * |v|.
    """
    wanted, dtype = exact(rows, window, mode), out.dtype
    eager_error = (exact(rows, window, mode, dtype).double() - wanted).abs().max()
    k, v = rows.request.kv[: rows.end].double().abs().unbind(1)
    q = rows.request.q[rows.start : rows.end].double().abs()
    terms = torch.einsum("ikgh,jkh->ijkg", torch.unflatten(q, 1, (k.shape[1], -1)), k).max()
    rounding = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * terms * q.shape[2] ** -0.5
    assert (out.double() - wanted).abs().max() <= 2 * eager_error + rounding * v.max()


@st.composite
def mixtures(draw: st.DrawFn, starts: tuple[int, ...], counts: tuple[int, ...]) -> list[Rows]:
    """One to four requests of one kind of heads: prefill, chunk, verify and decode rows."""
    kind, dtype = draw(heads()), draw(st.sampled_from(DTYPES[:2]))
    rows = []
    for seed in range(draw(st.integers(1, 4))):
        start, count = draw(st.sampled_from(starts)), draw(st.sampled_from(counts))
        rows.append(Rows(Request.draw(start + count, kind, dtype, seed), start, count))
    return rows


@settings(max_examples=30)
@given(
    rows=mixtures((0, 1, 60, 111, 127, 128, 300, 511, 600, 1100), (1, 1, 2, 5, 17, 70, 128, 129)),
    window=windows(),
    mode=MODES,
    page_size=PAGE_SIZES,
    padding=st.integers(0, 3),
)
def test_eager_is_right(
    rows: list[Rows], window: int | None, mode: Mode, page_size: int, padding: int
) -> None:
    results = attend(rows, window=window, mode=mode, page_size=page_size, padding=padding)
    for result, its_rows in zip(results, rows, strict=True):
        check(result, its_rows, window, mode)


@settings(max_examples=12)
@given(
    rows=mixtures((0, 1, 63, 130), (1, 1, 2, 5, 23)),
    window=st.sampled_from((None, None, 1, 5, 64, 100)),
    mode=MODES,
    page_size=PAGE_SIZES,
    padding=st.integers(0, 3),
)
def test_triton_is_right(
    rows: list[Rows], window: int | None, mode: Mode, page_size: int, padding: int
) -> None:
    results = attend(
        rows, backend=TRITON, window=window, mode=mode, page_size=page_size, padding=padding
    )
    for result, its_rows in zip(results, rows, strict=True):
        check(result, its_rows, window, mode)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("start", "count"), [(0, 127), (0, 128), (0, 129), (60, 68), (106, 22), (0, 256), (200, 56)]
)
def test_rows_that_end_with_a_partition(
    start: int, count: int, dtype: torch.dtype, window: int | None
) -> None:
    """The last row sees all of the partition and needs no mask, the rows before it do."""
    prompt = Rows(Request.draw(start + count, Heads(6, 2, 16), dtype, 0), start, count)
    decode = Rows(Request.draw(128, Heads(6, 2, 16), dtype, 1), 127, 1)
    for rows in ([prompt], [decode, prompt]):
        for out, one in zip(attend(rows, window=window), rows, strict=True):
            check(out, one, window, "causal")


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("longest", [120, 140])
def test_more_requests_than_one_call_takes(longest: int, dtype: torch.dtype) -> None:
    """Forty short contexts are two calls of one partition; with one longer request, of two."""
    lengths = [*range(1, 40), longest]
    rows = [Rows(Request.draw(n + 1, Heads(6, 2, 16), dtype, n), n, 1) for n in lengths]
    for out, one in zip(attend(rows), rows, strict=True):
        check(out, one, None, "causal")
        assert torch.equal(out, attend([one])[0])


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(
    backend: KernelBackend, dtype: torch.dtype
) -> None:
    error, eager_error = torch.zeros(()).double(), torch.zeros(()).double()
    for start, count in ((0, 40), (100, 21), (530, 21)):
        rows = Rows(Request.draw(start + count, Heads(4, 2, 64), dtype, start), start, count)
        wanted = exact(rows, None, "causal")
        error += (attend([rows], backend=backend)[0].double() - wanted).square().sum()
        eager = exact(rows, None, "causal", dtype).double()
        eager_error += (eager - wanted).square().sum()
    assert error.sqrt() <= 2 * eager_error.sqrt()


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
@pytest.mark.parametrize("mode", ["causal", "block"])
@pytest.mark.parametrize("window", [9, 10, 11])
def test_window_sees_itself_and_those_before(
    backend: KernelBackend, mode: Mode, window: int
) -> None:
    # Ten keys: the last row of a window of nine misses one, of ten none.
    rows = Rows(Request.draw(10, Heads(2, 1, 16), torch.float32, 0), 7, 3)
    out = attend([rows], backend=backend, window=window, mode=mode)[0]
    check(out, rows, window, mode)
    changed = Rows(Request(rows.request.q, rows.request.kv.clone()), 7, 3)
    changed.request.kv[0] += 1
    again = attend([changed], backend=backend, window=window, mode=mode)[0]
    sees_first_key = [bool((out[i] != again[i]).any()) for i in range(3)]
    assert sees_first_key == [window > 7, window > 8, window > 9]


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
def test_block_rows_see_later_rows_and_causal_rows_do_not(backend: KernelBackend) -> None:
    rows = Rows(Request.draw(30, Heads(3, 3, 16), torch.float32, 0), 22, 8)
    changed = Rows(Request(rows.request.q, rows.request.kv.clone()), 22, 8)
    changed.request.kv[25:] += 1
    for mode, same in (("causal", [True] * 3 + [False] * 5), ("block", [False] * 8)):
        out, again = (attend([r], backend=backend, mode=mode)[0] for r in (rows, changed))
        assert [torch.equal(a, b) for a, b in zip(out, again, strict=True)] == same


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
def test_requests_without_rows_and_empty_passes(backend: KernelBackend) -> None:
    request = Request.draw(9, Heads(2, 2, 16), torch.float32, 0)
    rows = [Rows(request, 4, 0), Rows(request, 8, 1), Rows(request, 2, 0), Rows(request, 0, 0)]
    results = attend(rows, backend=backend)
    check(results[1], rows[1], None, "causal")
    assert [len(r) for r in results] == [0, 1, 0, 0]
    assert len(attend([Rows(request, 4, 0)], backend=backend, padding=4)[0]) == 0


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
def test_reads_queries_that_lie_apart(backend: KernelBackend) -> None:
    rows = Rows(Request.draw(40, Heads(4, 2, 16), torch.float32, 0), 0, 40)
    made = make_pass([rows], page_size=16)
    fused = torch.full((40, 9, 16), torch.nan)
    fused[:, :4] = made.q
    for q in (fused[:, :4], made.q.transpose(1, 2).contiguous().transpose(1, 2)):
        out = paged_attention(q, made.cache, made.plan, scale=0.25, backend=backend)
        check(out, rows, None, "causal")


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
def test_addresses_past_two_billion_elements(backend: KernelBackend) -> None:
    rows = Rows(Request.draw(140, Heads(1, 1, 128), torch.bfloat16, 0), 137, 3)
    made = make_pass([rows], page_size=128)
    # Only the pages that are touched take memory.
    far = (1 << 31) // made.cache[0].numel()
    cache = torch.empty(far + 5, *made.cache.shape[1:], dtype=torch.bfloat16)
    cache[far:] = made.cache
    made.plan.lookup_table.add_(far)
    out = paged_attention(made.q, cache, made.plan, scale=128**-0.5, backend=backend)
    check(out, rows, None, "causal")


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
def test_scores_may_be_far_below_zero(backend: KernelBackend) -> None:
    """Weights are relative to the highest score: exp(-1600) itself is 0."""
    request = Request.draw(5, Heads(2, 1, 16), torch.float32, 0)
    request.q[:], request.kv[:, 0] = -20, 20
    rows = Rows(request, 4, 1)
    check(attend([rows], backend=backend)[0], rows, None, "causal")


@pytest.mark.parametrize("num_heads", [1, 20, 24])
def test_heads_wider_than_a_tile_of_a_group(num_heads: int) -> None:
    """Heads of 272 numbers: a triton tile has room for 10 or 12 of those that share keys."""
    rows = Rows(Request.draw(23, Heads(num_heads, 1, 272), torch.float32, 0), 18, 5)
    check(attend([rows], backend=TRITON, page_size=4)[0], rows, None, "causal")


@pytest.mark.parametrize("num_heads", [1, 20, 24])
def test_shared_rows_are_keys_and_values(num_heads: int) -> None:
    request = Request.draw(23, Heads(num_heads, 1, 272), torch.float32, 0)
    request.kv[:, 1] = request.kv[:, 0]
    rows = Rows(request, 18, 5)
    made = make_pass([rows], page_size=4)
    cache = made.cache[:, :, 0, 0].contiguous()
    out = paged_attention(made.q, cache, made.plan, scale=272**-0.5, backend=TORCH)
    check(out, rows, None, "causal")
    with pytest.raises(ValueError, match="shared rows on torch and native alone"):
        paged_attention(made.q, cache, made.plan, scale=1.0, backend=TRITON)


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_columns_of_values_are_the_wholes(
    backend: KernelBackend, dtype: torch.dtype
) -> None:
    """Requests that go alone and together, one part and several; widths padded and not."""
    for width, wanted in ((32, 24), (10, 7), (16, 16)):
        heads = Heads(4, 2, width)
        rows = [
            Rows(Request.draw(start + count, heads, dtype, start), start, count)
            for start, count in ((0, 40), (300, 1), (130, 3), (2, 1))
        ]
        made = make_pass(rows, page_size=16, padding=3)
        options: dict[str, Any] = {"scale": 0.25, "backend": backend}
        whole = paged_attention(made.q, made.cache, made.plan, **options)
        found = paged_attention(made.q, made.cache, made.plan, value_width=wanted, **options)
        assert found.is_contiguous()
        assert torch.equal(found, whole[..., :wanted])


def test_reference_is_right() -> None:
    for mode, window in (("causal", None), ("causal", 3), ("block", None), ("block", 3)):
        rows = [Rows(Request.draw(n + 5, Heads(4, 2, 10), torch.float32, n), n, 5) for n in (0, 6)]
        made = make_pass(rows, page_size=4, padding=2)
        mask_spec = MaskSpec(window, mode)
        out = reference.paged_attention(made.q, made.cache, made.plan, 10**-0.5, mask_spec)
        for i, r in enumerate(rows):
            check(out[5 * i : 5 * i + 5], r, window, mode)
        assert not out[10:].any()


def test_layers_of_different_shape_share_a_plan() -> None:
    wide, narrow = Heads(8, 2, 32), Heads(2, 2, 16)
    a = [Rows(Request.draw(n + 3, wide, torch.float32, n), n, 3) for n in (200, 0)]
    b = [Rows(Request.draw(n + 3, narrow, torch.bfloat16, n), n, 3) for n in (200, 0)]
    made, other = make_pass(a, page_size=8), make_pass(b, page_size=8)
    for rows, its in ((a, made), (b, other), (a, made)):
        for window in (None, 50):
            scale = its.q.shape[2] ** -0.5
            out = paged_attention(
                its.q, its.cache, made.plan, scale=scale, window=window, backend=TORCH
            )
            check(out[:3], rows[0], window, "causal")
            check(out[3:], rows[1], window, "causal")


def test_refuses_what_does_not_fit() -> None:
    rows = Rows(Request.draw(4, Heads(4, 2, 16), torch.float32, 0), 0, 4)
    made = make_pass([rows], page_size=2)
    q, cache, plan = made.q, made.cache, made.plan
    for bad_q, bad_cache, match in (
        (q[:3], cache, "T' >= 4"),
        (q[..., :8], cache, "head width"),
        (q[:, :3], cache, "multiple of its heads"),
        (q.half(), cache, "one dtype"),
        (q, cache.transpose(0, 1).contiguous().transpose(0, 1), "contiguous"),
    ):
        with pytest.raises(ValueError, match=match):
            paged_attention(bad_q, bad_cache, plan, scale=1.0, backend=TORCH)
    with pytest.raises(ValueError, match="window of at least 1"):
        paged_attention(q, cache, plan, scale=1.0, window=0, backend=TORCH)
    for value_width in (0, 17):
        with pytest.raises(ValueError, match=f"value_width is {value_width}; wanted 1 to 16"):
            paged_attention(q, cache, plan, scale=1.0, value_width=value_width, backend=TORCH)
    with pytest.raises(ValueError, match="'causal' or 'block'"):
        paged_attention(q, cache, plan, scale=1.0, mode="full", backend=TORCH)  # type: ignore[arg-type]
