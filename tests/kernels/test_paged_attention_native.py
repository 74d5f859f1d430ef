"""Native paged_attention: against float64, and a row's bits in every way of computing it."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library, same_bits
from kernels.paged_passes import Heads, Request, Rows, attend, exact, make_pass, windows
from kernels.test_paged_attention import check
from pilotfish.kernels.native import run
from pilotfish.kernels.paged_attention import Mode, paged_attention
from pilotfish.kernels.paged_attention.native import layer_arguments

pytestmark = needs_library

MODES = st.sampled_from(("causal", "block"))
PAGE_SIZES = st.sampled_from((1, 2, 3, 16, 64, 128))
STARTS = (0, 0, 1, 60, 111, 126, 127, 128, 129, 254, 255, 256, 257, 300, 600)
COUNTS = (1, 1, 1, 2, 3, 5, 17, 33, 70, 127, 128, 129, 256)
NARROW, WIDE = Heads(4, 2, 10), Heads(9, 3, 64)


@pytest.fixture(autouse=True)
def _poison() -> object:
    """Every torch.empty is filled with NaN."""
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def heads() -> st.SearchStrategy[Heads]:
    """Widths around whole lanes; groups of 1 to 8, and more."""
    widths = st.sampled_from((1, 2, 10, 15, 16, 17, 64, 72, 80, 128, 256))
    groups = st.sampled_from((1, 1, 2, 3, 4, 5, 7, 8, 13))
    return st.builds(
        lambda kv, group, width: Heads(kv * group, kv, width),
        st.integers(1, 3),
        groups,
        widths,
    )


@st.composite
def mixtures(draw: st.DrawFn) -> list[Rows]:
    """One to four requests of one kind of heads."""
    kind, dtype = draw(heads()), draw(st.sampled_from(DTYPES))
    rows = []
    for seed in range(draw(st.integers(1, 4))):
        start, count = draw(st.sampled_from(STARTS)), draw(st.sampled_from(COUNTS))
        rows.append(Rows(Request.draw(start + count, kind, dtype, seed), start, count))
    return rows


def one(rows: Rows, *, window: int | None = None, mode: Mode = "causal") -> torch.Tensor:
    """Rows that are a pass of their own."""
    return attend([rows], backend=NATIVE, window=window, mode=mode)[0]


@settings(max_examples=60)
@given(
    rows=mixtures(),
    window=windows(),
    mode=MODES,
    page_size=PAGE_SIZES,
    padding=st.integers(0, 3),
)
def test_is_right_and_the_same_beside_others(
    rows: list[Rows], window: int | None, mode: Mode, page_size: int, padding: int
) -> None:
    results = attend(
        rows, backend=NATIVE, window=window, mode=mode, page_size=page_size, padding=padding
    )
    for result, its_rows in zip(results, rows, strict=True):
        check(result, its_rows, window, mode)
        assert torch.equal(result, one(its_rows, window=window, mode=mode))


@settings(max_examples=60)
@given(
    kind=heads(),
    dtype=st.sampled_from(DTYPES),
    window=windows(),
    length=st.sampled_from((5, 127, 128, 129, 131, 256, 300, 560)),
    counts=st.lists(st.sampled_from(COUNTS), min_size=1, max_size=5),
    page_size=PAGE_SIZES,
)
def test_rows_do_not_depend_on_the_chunks_of_a_text(
    *,
    kind: Heads,
    dtype: torch.dtype,
    window: int | None,
    length: int,
    counts: list[int],
    page_size: int,
) -> None:
    request = Request.draw(length, kind, dtype, 1)
    whole = one(Rows(request, 0, length), window=window)
    end = length
    for count in counts:  # from the end, where contexts are long
        start = max(0, end - count)
        part = Rows(request, start, end - start)
        out = attend([part], backend=NATIVE, window=window, page_size=page_size, seed=count)[0]
        assert torch.equal(out, whole[start:end])
        end = start
        if not end:
            break


@settings(max_examples=20)
@given(rows=mixtures(), window=windows(), mode=MODES)
def test_bits_in_every_way_of_running(rows: list[Rows], window: int | None, mode: Mode) -> None:
    in_every_way(lambda: torch.cat(attend(rows, backend=NATIVE, window=window, mode=mode)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", [Heads(1, 1, 64), Heads(5, 1, 17), Heads(24, 1, 16)], ids=str)
@pytest.mark.parametrize("count", [1, 30])
def test_contexts_that_threads_share(dtype: torch.dtype, kind: Heads, count: int) -> None:
    """One unit of work or few: partitions go to several threads, which must not be seen."""
    rows = Rows(Request.draw(3000, kind, dtype, 0), 3000 - count, count)
    mate = Rows(Request.draw(700, kind, dtype, 1), 699, 1)
    out = in_every_way(lambda: torch.cat(attend([rows, mate], backend=NATIVE)))
    check(out[:count], rows, None, "causal")
    check(out[count:], mate, None, "causal")
    assert torch.equal(out[:count], one(rows))


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("start", "count"), [(0, 127), (0, 128), (0, 129), (60, 68), (106, 22), (0, 256), (255, 2)]
)
def test_rows_that_end_with_a_partition(
    start: int, count: int, dtype: torch.dtype, window: int | None
) -> None:
    prompt = Rows(Request.draw(start + count, Heads(6, 2, 16), dtype, 0), start, count)
    decode = Rows(Request.draw(128, Heads(6, 2, 16), dtype, 1), 127, 1)
    for rows in ([prompt], [decode, prompt]):
        results = attend(rows, backend=NATIVE, window=window)
        for out, its_rows in zip(results, rows, strict=True):
            check(out, its_rows, window, "causal")


def test_more_than_32_requests_and_some_without_rows() -> None:
    lengths = [*range(1, 40), 300]
    rows = [Rows(Request.draw(n + 1, WIDE, torch.bfloat16, n), n, n % 4 and 1) for n in lengths]
    results = attend(rows, backend=NATIVE)
    for out, its_rows in zip(results, rows, strict=True):
        if its_rows.count:
            check(out, its_rows, None, "causal")
        assert torch.equal(out, one(its_rows))
    assert len(attend([Rows(rows[0].request, 1, 0)], backend=NATIVE, padding=4)[0]) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(dtype: torch.dtype) -> None:
    error, eager_error = torch.zeros(()).double(), torch.zeros(()).double()
    for start, count in ((0, 40), (100, 21), (530, 21), (2000, 3)):
        rows = Rows(Request.draw(start + count, Heads(4, 2, 64), dtype, start), start, count)
        wanted = exact(rows, None, "causal")
        error += (one(rows).double() - wanted).square().sum()
        eager_error += (exact(rows, None, "causal", dtype).double() - wanted).square().sum()
    assert error.sqrt() <= 2 * eager_error.sqrt()


@pytest.mark.parametrize("mode", ["causal", "block"])
@pytest.mark.parametrize("window", [9, 10, 11])
def test_window_sees_itself_and_those_before(mode: Mode, window: int) -> None:
    rows = Rows(Request.draw(10, Heads(2, 1, 16), torch.float32, 0), 7, 3)
    changed = attrs.evolve(rows, request=Request(rows.request.q, rows.request.kv.clone()))
    changed.request.kv[0] += 1
    out, again = (one(r, window=window, mode=mode) for r in (rows, changed))
    check(out, rows, window, mode)
    sees_first_key = [bool((out[i] != again[i]).any()) for i in range(3)]
    assert sees_first_key == [window > 7, window > 8, window > 9]


@settings(max_examples=60)
@given(
    data=st.data(),
    kind=st.sampled_from((NARROW, WIDE, Heads(3, 3, 16), Heads(1, 1, 5))),
    dtype=st.sampled_from(DTYPES),
    window=windows(),
    mode=MODES,
    value=st.sampled_from((torch.nan, torch.inf, -torch.inf)),
)
def test_what_is_no_number_reaches_only_rows_that_see_it(
    *,
    data: st.DataObject,
    kind: Heads,
    dtype: torch.dtype,
    window: int | None,
    mode: Mode,
    value: float,
) -> None:
    start, count = data.draw(st.sampled_from(STARTS)), data.draw(st.sampled_from((2, 5, 40, 130)))
    rows = Rows(Request.draw(start + count, kind, dtype, 0), start, count)
    bad = data.draw(st.integers(0, rows.end - 1))
    poisoned = attrs.evolve(rows, request=Request(rows.request.q, rows.request.kv.clone()))
    poisoned.request.kv[bad, data.draw(st.integers(0, 1))] = value
    before, after = (one(r, window=window, mode=mode) for r in (rows, poisoned))
    positions = torch.arange(start, rows.end)
    sees = (positions >= bad) | (mode == "block")
    if window is not None:
        sees &= (positions - bad).abs() < window
    assert torch.equal(after[~sees], before[~sees])
    if value != value:  # noqa: PLR0124
        assert after[sees].isnan().all()
    assert before.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_query_that_is_no_number_stays_in_its_head(value: float) -> None:
    rows = Rows(Request.draw(200, WIDE, torch.float32, 0), 150, 50)
    made = make_pass([rows], page_size=16)
    whole = paged_attention(made.q, made.cache, made.plan, scale=0.125, backend=NATIVE)
    made.q[20, 4, 63] = value
    out = paged_attention(made.q, made.cache, made.plan, scale=0.125, backend=NATIVE)
    assert out[20, 4].isnan().all()
    out[20, 4] = whole[20, 4]
    assert torch.equal(out, whole)


@pytest.mark.parametrize("pages", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [WIDE, NARROW], ids=str)
def test_float32_rows_over_narrower_pages(pages: torch.dtype, kind: Heads) -> None:
    """A number of 16 bits is a float32: the bits are those over the same pages widened."""
    requests = [Rows(Request.draw(n + c, kind, pages, n), n, c) for n, c in ((200, 1), (3, 140))]
    made = make_pass(requests, page_size=16)
    q = torch.randn(made.q.shape, generator=torch.Generator().manual_seed(0))
    out = in_every_way(lambda: paged_attention(q, made.cache, made.plan, scale=0.2, backend=NATIVE))
    wide = made.cache.float()
    assert torch.equal(out, paged_attention(q, wide, made.plan, scale=0.2, backend=NATIVE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "wanted"), [(32, 24), (10, 7), (16, 16), (272, 256), (576, 512)])
def test_shared_rows_and_the_first_columns_of_values(
    dtype: torch.dtype, width: int, wanted: int
) -> None:
    rows = []
    for start, count in ((0, 20), (300, 1), (130, 3), (2, 1)):
        request = Request.draw(start + count, Heads(20, 1, width), dtype, start)
        request.kv[:, 1] = request.kv[:, 0]
        rows.append(Rows(request, start, count))
    made = make_pass(rows, page_size=16, padding=1)
    shared = made.cache[:, :, 0, 0].contiguous()
    whole = paged_attention(made.q, made.cache, made.plan, scale=0.1, backend=NATIVE)[:-1]

    def first_columns() -> torch.Tensor:
        return paged_attention(
            made.q, shared, made.plan, scale=0.1, value_width=wanted, backend=NATIVE
        )[:-1]

    found = in_every_way(first_columns)
    assert found.is_contiguous()
    assert torch.equal(found, whole[..., :wanted])
    out = attend(rows, backend=NATIVE)
    for result, its_rows in zip(out, rows, strict=True):
        check(result, its_rows, None, "causal")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_queries_that_lie_apart(dtype: torch.dtype) -> None:
    rows = Rows(Request.draw(40, Heads(4, 2, 16), dtype, 0), 0, 40)
    made = make_pass([rows], page_size=16)
    fused = torch.full((40, 9, 16), torch.nan, dtype=dtype)
    fused[:, :4] = made.q
    apart = torch.full((40, 4, 32), torch.nan, dtype=dtype)[..., ::2].copy_(made.q)
    for q in (fused[:, :4], made.q.transpose(1, 2).contiguous().transpose(1, 2), apart):
        out = paged_attention(q, made.cache, made.plan, scale=0.25, backend=NATIVE)
        check(out, rows, None, "causal")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 7, 16, 31, 72])
@pytest.mark.parametrize("window", [None, 20])
def test_memory_beyond_the_arrays_is_left_alone(
    dtype: torch.dtype, width: int, window: int | None
) -> None:
    """The last page is full, so that keys and values end where memory ends."""
    rows = [
        Rows(Request.draw(n, Heads(4, 2, width), dtype, n), n - c, c)
        for n, c in ((36, 1), (48, 30))
    ]
    made = make_pass(rows, page_size=4)
    used = made.plan.lookup_table.unique()
    last = int(made.plan.lookup_table[1, 48 // 4 - 1])
    cache = guarded(made.cache[: last + 1]) if last >= used.max() else None
    if cache is None:  # the text's last page becomes the last of all
        order = torch.arange(len(made.cache))
        order[[last, -1]] = order[[-1, last]]
        cache = guarded(made.cache[order])
        table = made.plan.lookup_table
        is_last, is_end = table == last, table == len(order) - 1
        table[is_last], table[is_end] = len(order) - 1, last
    out = guarded(torch.full(made.q.shape, torch.nan, dtype=dtype))
    for q in (made.q, guarded(made.q)):
        mask_spec = made.plan.mask_spec(window, "causal")
        record = layer_arguments(
            q, cache, made.plan, scale=0.3, mask_spec=mask_spec, value_width=width
        )
        record.q, record.cache, record.out = q.data_ptr(), cache.data_ptr(), out.data_ptr()
        run("paged_attention", record, 1)
        wanted = paged_attention(
            made.q, cache.clone(), made.plan, scale=0.3, window=window, backend=NATIVE
        )
        assert same_bits(out, wanted)
        assert out.isfinite().all()


def test_addresses_past_two_billion_elements() -> None:
    rows = Rows(Request.draw(140, Heads(1, 1, 128), torch.bfloat16, 0), 137, 3)
    made = make_pass([rows], page_size=128)
    far = (1 << 31) // made.cache[0].numel()
    torch.set_deterministic_debug_mode("default")  # only the pages that are touched take memory
    cache = torch.empty(far + 5, *made.cache.shape[1:], dtype=torch.bfloat16)
    cache[far:] = made.cache
    made.plan.lookup_table.add_(far)
    out = paged_attention(made.q, cache, made.plan, scale=128**-0.5, backend=NATIVE)
    check(out, rows, None, "causal")


def test_layers_of_different_shape_share_a_plan() -> None:
    wide, narrow = Heads(8, 2, 32), Heads(2, 2, 16)
    a = [Rows(Request.draw(n + 3, wide, torch.float32, n), n, 3) for n in (200, 0)]
    b = [Rows(Request.draw(n + 3, narrow, torch.bfloat16, n), n, 3) for n in (200, 0)]
    made, other = make_pass(a, page_size=8), make_pass(b, page_size=8)
    for rows, its in ((a, made), (b, other), (a, made)):
        for window in (None, 50):
            scale = its.q.shape[2] ** -0.5
            out = paged_attention(
                its.q, its.cache, made.plan, scale=scale, window=window, backend=NATIVE
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
        (q.double(), cache, "float64"),
        (q, cache.double(), "float64"),
        (q, cache.transpose(0, 1).contiguous().transpose(0, 1), "contiguous"),
    ):
        with pytest.raises(ValueError, match=match):
            paged_attention(bad_q, bad_cache, plan, scale=1.0, backend=NATIVE)
