"""Latent attention on native kernels, the plugin's own among them: errors, bits, memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library, same_bits
from kimi_k25.latent_passes import (
    MANY,
    ODD,
    SMALL,
    Rows,
    Widths,
    absorbed,
    attend_absorbed,
    exact,
    head_linear,
    make_pass,
    weights,
)
from kimi_k25.test_kimi_k25_attention import PAGE_SIZES, SCALE, check_forms, eager, mixtures
from pilotfish.errors import ConfigError
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels.native import plugin_library
from pilotfish_kimi_k25.kernels.head_linear import head_row_multiple
from pilotfish_kimi_k25.kernels.native import LIBRARY
from pilotfish_kimi_k25.mla import UpProjection

pytestmark = [
    needs_library,
    pytest.mark.skipif(bool(LIBRARY.why_not()), reason=f"no library: {LIBRARY.why_not()}"),
]


@settings(max_examples=25)
@given(
    requests=mixtures((0, 1, 63, 130, 511), (1, 1, 2, 5, 17, 33)),
    page_size=PAGE_SIZES,
    padding=st.integers(0, 3),
)
def test_is_right(requests: list[Rows], page_size: int, padding: int) -> None:
    check_forms(requests, page_size, padding, NATIVE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(dtype: torch.dtype) -> None:
    error, eager_error = 0.0, 0.0
    for number, (start, count) in enumerate(((0, 20), (100, 9), (520, 2))):
        made = make_pass([Rows.draw(start, count, SMALL, dtype, number)], backend=NATIVE)
        heads = weights(SMALL, dtype)
        wanted = exact(made, heads, SCALE)
        found = absorbed(made, heads, SCALE, NATIVE)
        assert found.dtype == dtype
        error += float((found.double() - wanted).square().sum())
        eager_error += float((eager(made, heads).double() - wanted).square().sum())
    assert 0 < error <= 4 * eager_error


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("widths", [ODD, MANY, Widths(8, 512, 64, 128, 128)], ids=str)
def test_a_rows_bits_are_its_own(widths: Widths, dtype: torch.dtype) -> None:
    """Alone and beside others, in one pass and row by row, with any threads and instructions."""
    heads = weights(widths, dtype)
    whole = Rows.draw(0, 150, widths, dtype, 1)

    def together() -> torch.Tensor:
        mate = Rows.draw(30, 37, widths, dtype, 2)
        return absorbed(make_pass([whole, mate]), heads, SCALE, NATIVE)[:150]

    wanted = in_every_way(together)
    for start, end in ((0, 1), (1, 9), (9, 150), (149, 150)):
        part = Rows(whole.q[:end], whole.rows[:end], start)
        found = absorbed(make_pass([part], page_size=3, padding=1), heads, SCALE, NATIVE)
        assert same_bits(found[: end - start], wanted[start:end])


@settings(max_examples=60)
@given(
    num_rows=st.sampled_from((0, 1, 2, 3, 4, 5, 9, 33)),
    num_heads=st.integers(1, 4),
    width_o=st.sampled_from((1, 7, 15, 16, 17, 40, 128)),
    width_k=st.sampled_from((1, 5, 16, 33, 512, 513, 1100)),
    dtype=st.sampled_from(DTYPES),
    weight_dtype=st.sampled_from(DTYPES),
)
def test_head_linear(
    *,
    num_rows: int,
    num_heads: int,
    width_o: int,
    width_k: int,
    dtype: torch.dtype,
    weight_dtype: torch.dtype,
) -> None:
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, num_heads + 1, width_k + 2, generator=noise).to(dtype)[:, 1:, 2:]
    weight = torch.randn(num_heads, width_o, width_k, generator=noise).to(weight_dtype)
    found = in_every_way(lambda: head_linear(x, weight, backend=NATIVE))
    wanted = torch.einsum("tnk,nok->tno", x.double(), weight.double())
    assert found.shape == wanted.shape
    assert found.dtype == dtype
    size = torch.einsum("tnk,nok->tno", x.double().abs(), weight.double().abs())
    steps = min(width_k, 512) / 16 + 6 + width_k / 512
    sums = steps * torch.finfo(torch.float32).eps * size
    kind = torch.finfo(dtype)
    rounding = kind.eps * (wanted.abs() + kind.tiny)
    assert ((found.double() - wanted).abs() <= sums + rounding).all()
    for i in range(0, num_rows, 2):
        assert same_bits(head_linear(x[i : i + 1], weight, backend=NATIVE), found[i : i + 1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_head_linear_in_strange_memory(dtype: torch.dtype) -> None:
    """It ends where memory ends; it is turned; a row that is no number stays one row."""
    x, weight = guarded(torch.randn(5, 3, 37).to(dtype)), guarded(torch.randn(3, 9, 37).to(dtype))
    wanted = head_linear(x.clone(), weight.clone(), backend=NATIVE)
    assert same_bits(head_linear(x, weight, backend=NATIVE), wanted)
    transposed = weight.transpose(1, 2).contiguous().transpose(1, 2)
    apart = torch.randn(5, 3, 74).to(dtype)[..., ::2].copy_(x)
    assert same_bits(head_linear(apart, transposed, backend=NATIVE), wanted)
    x[2, 1, 36] = torch.nan
    found = head_linear(x, weight, backend=NATIVE)
    assert found[2, 1].isnan().all()
    found[2, 1] = wanted[2, 1]
    assert same_bits(found, wanted)


def test_nothing_is_probed_or_padded() -> None:
    known = ProbeCache()
    assert head_row_multiple((4, 24, 12), torch.float32, backend=NATIVE, known=known) == 1
    assert not known.found


def test_the_products_weights_lie_row_by_row() -> None:
    """And no more of them than with other kernels."""
    layer = UpProjection(3, 4, 5, 16)
    layer.complete({"weight": torch.arange(27 * 16.0).view(27, 16)}, NATIVE)
    assert layer.absorb.is_contiguous()
    assert layer.heads.up_value.is_contiguous()
    assert layer.absorb.data_ptr() == layer.heads.up_key.data_ptr()
    assert torch.equal(layer.absorb[1], torch.arange(27 * 16.0).view(3, 9, 16)[1, :4].T)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_later_row_that_is_no_number_stays_out_of_earlier_ones(value: float) -> None:
    rows = Rows.draw(120, 20, SMALL, torch.float32)
    heads = weights(SMALL, torch.float32)
    wanted = absorbed(make_pass([rows]), heads, SCALE, NATIVE)
    rows.rows[131, 3] = value
    found = absorbed(make_pass([rows]), heads, SCALE, NATIVE)
    assert same_bits(found[:11], wanted[:11])
    assert found[11:].isnan().any(-1).all()


def test_float32_rows_over_narrower_pages() -> None:
    made = make_pass([Rows.draw(200, 3, SMALL, torch.bfloat16)])
    q = torch.randn(3, 4, 32)
    options: dict[str, Any] = {"latent_width": 24, "scale": SCALE, "backend": NATIVE}
    found = attend_absorbed(q, made.cache, made.plan, **options)
    assert same_bits(found, attend_absorbed(q, made.cache.float(), made.plan, **options))


def test_a_library_that_is_not_there_says_so(tmp_path: Path) -> None:
    missing = plugin_library(tmp_path)
    assert "was not compiled" in missing.why_not()
    assert not LIBRARY.why_not()
    with pytest.raises(ConfigError, match="no function 'nothing'"):
        LIBRARY.address("nothing")
