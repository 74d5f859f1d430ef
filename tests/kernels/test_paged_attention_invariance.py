"""A row's bits: the same alone, in any chunk, beside any batch mates, on any pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.paged_passes import TRITON, Heads, Request, Rows, attend, heads, windows
from pilotfish.kernels.paged_attention import Mode
from pilotfish.kernels.split_kv import triton as split_kv

DTYPES = st.sampled_from((torch.float32, torch.bfloat16))
PAGE_SIZES = st.sampled_from((1, 3, 16, 128))


def chunks(draw: st.DrawFn, request: Request, start: int) -> list[Rows]:
    """Cuts the rows from `start` on into passes of random lengths, single rows among them."""
    end, rows = len(request.q), []
    while start < end:
        count = draw(st.sampled_from((1, 1, 2, 3, 4, 7, 16, 17, 40, 63, 128, 600)))
        rows.append(Rows(request, start, min(count, end - start)))
        start = rows[-1].end
    return rows


@settings(max_examples=40)
@given(st.data())
def test_eager_rows_do_not_depend_on_the_pass(data: st.DataObject) -> None:
    draw = data.draw
    kind, dtype, window = draw(heads()), draw(DTYPES), draw(windows())
    first = Request.draw(draw(st.sampled_from((5, 131, 300, 560, 1100, 1600))), kind, dtype, 1)
    length = len(first.q)
    start = max(0, length - draw(st.sampled_from((1, 5, 33, 150, 600))))
    whole = attend([Rows(first, start, length - start)], window=window, page_size=16)[0]
    for rows in chunks(draw, first, start)[:6]:
        mates = [
            Rows(Request.draw(n, kind, dtype, 2 + i), n - c, c)
            for i, (n, c) in enumerate(
                draw(
                    st.lists(
                        st.sampled_from(((1, 1), (90, 1), (140, 5), (700, 1), (50, 50))), max_size=3
                    )
                )
            )
        ]
        place = draw(st.integers(0, len(mates)))
        batch = [*mates[:place], rows, *mates[place:]]
        out = attend(
            batch,
            window=window,
            page_size=draw(PAGE_SIZES),
            seed=draw(st.integers(0, 5)),
            padding=draw(st.integers(0, 3)),
        )[place]
        assert torch.equal(out, whole[rows.start - start : rows.end - start])


@settings(max_examples=25)
@given(st.data())
def test_eager_blocks_do_not_depend_on_their_mates(data: st.DataObject) -> None:
    draw = data.draw
    kind, dtype, window = draw(heads()), draw(DTYPES), draw(windows())
    start, count = (
        draw(st.sampled_from((0, 100, 125, 500, 900))),
        draw(st.sampled_from((4, 16, 40))),
    )
    block = Rows(Request.draw(start + count, kind, dtype, 1), start, count)
    prefill = attend([block], mode="block", window=window)[0]
    mates = [Rows(Request.draw(n + 9, kind, dtype, n), n, 9) for n in (0, 260, 600)]
    place = draw(st.integers(0, 3))
    batch = [*mates[:place], block, *mates[place:]]
    page_size = draw(PAGE_SIZES)
    out = attend(batch, mode="block", window=window, page_size=page_size, padding=3)[place]
    assert torch.equal(out, prefill)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [Heads(9, 3, 64), Heads(1, 1, 16)], ids=["wide", "narrow"])
def test_eager_decode_of_a_long_text_is_its_prefill(dtype: torch.dtype, kind: Heads) -> None:
    request = Request.draw(1700, kind, dtype, 0)
    prefill = attend([Rows(request, 0, 1700)])[0]
    for position in (0, 1, 127, 128, 255, 256, 511, 512, 1023, 1024, 1535, 1536, 1699):
        decoded = attend([Rows(request, position, 1)], page_size=64)[0]
        assert torch.equal(decoded[0], prefill[position]), position
    chunked = torch.cat([attend([Rows(request, s, 340)])[0] for s in range(0, 1700, 340)])
    assert torch.equal(chunked, prefill)


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("start", [125, 126, 127, 128, 254, 255, 256, 510, 511])
def test_eager_rows_around_the_ends_of_partitions(start: int, window: int | None) -> None:
    """Alone, so that masks are left out where they can be; before the window, all is NaN."""
    request = Request.draw(560, Heads(6, 2, 16), torch.float32, 0)
    whole = attend([Rows(request, 0, 560)], window=window)[0]
    poisoned = Request(request.q, request.kv.clone())
    if window is not None:
        poisoned.kv[: start - window + 1] = torch.nan
    for count in (1, 2, 3, 17, 40):
        out = attend([Rows(poisoned, start, count)], window=window)[0]
        assert torch.equal(out, whole[start : start + count]), count


@settings(max_examples=8)
@given(st.data())
def test_triton_rows_do_not_depend_on_the_pass(data: st.DataObject) -> None:
    draw = data.draw
    kind, dtype = draw(st.sampled_from((Heads(3, 1, 10), Heads(4, 2, 16)))), draw(DTYPES)
    mode: Mode = draw(st.sampled_from(("causal", "block")))
    window = draw(st.sampled_from((None, None, 3, 64, 70)))
    length = draw(st.sampled_from((30, 64, 65, 150)))
    request = Request.draw(length, kind, dtype, 1)
    start = max(0, length - draw(st.sampled_from((4, 30))))
    rows = Rows(request, start, length - start)
    whole = attend([rows], backend=TRITON, mode=mode, window=window)[0]
    parts = chunks(draw, request, start)[-2:] if mode == "causal" else [rows]
    for part in parts:
        mate = Rows(Request.draw(80, kind, dtype, 2), 77, 3)
        out = attend(
            [mate, part],
            backend=TRITON,
            mode=mode,
            window=window,
            page_size=draw(PAGE_SIZES),
            seed=draw(st.integers(0, 5)),
            padding=1,
        )[1]
        assert torch.equal(out, whole[part.start - start : part.end - start])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("window", [None, 100])
def test_triton_splits_side_by_side_are_splits_in_a_row(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int | None
) -> None:
    monkeypatch.setattr(split_kv, "SPLIT_KEYS", 64)
    request = Request.draw(300, Heads(4, 2, 16), dtype, 0)
    rows = [Rows(request, 290, 10), Rows(request, 60, 7)]
    side_by_side = attend(rows, backend=TRITON, window=window)
    monkeypatch.setattr(split_kv, "PARTIAL_BYTES", 0)
    in_a_row = attend(rows, backend=TRITON, window=window)
    for a, b in zip(side_by_side, in_a_row, strict=True):
        assert torch.equal(a, b)
    monkeypatch.setattr(split_kv, "PARTIAL_BYTES", 1 << 30)
    for position in (290, 299):
        prefill = attend([Rows(request, position, 1)], backend=TRITON, window=window)[0]
        assert torch.equal(prefill[0], in_a_row[0][position - 290])


@pytest.mark.parametrize(("seed", "start", "count"), [(10, 492, 17), (10, 504, 80), (19, 504, 20)])
def test_float16_rows_where_the_flash_kernel_fails(seed: int, start: int, count: int) -> None:
    # Found by search: the kernel's own float16 gives these rows other bits than the whole text.
    request = Request.draw(600, Heads(1, 1, 16), torch.float16, seed)
    whole = attend([Rows(request, 0, 600)])[0]
    part = attend([Rows(request, start, count)])[0]
    assert torch.equal(part, whole[start : start + count])
