"""Attention over latent rows: both forms against float64, on both backends; one small kernel."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_k25.latent_passes import (
    MANY,
    ODD,
    SMALL,
    TORCH,
    TRITON,
    LatentPass,
    Rows,
    Widths,
    absorbed,
    attend_absorbed,
    exact,
    expanded,
    head_linear,
    make_pass,
    weights,
)
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish_kimi_k25.kernels.head_linear import head_row_multiple, reference
from pilotfish_kimi_k25.kernels.mla_attention import HeadWeights, is_expanded_cheaper

Form = Callable[[LatentPass, HeadWeights, float, KernelBackend], torch.Tensor]

FORMS = {"absorbed": absorbed, "expanded": expanded}
DTYPES = (torch.float32, torch.bfloat16)
BACKENDS = (TORCH, TRITON)
SCALE = 0.2


def eager(made: LatentPass, heads: HeadWeights) -> torch.Tensor:
    """The reference in the pass's own dtype: what ordinary torch makes of it."""
    return exact(made, heads, SCALE, made.q.dtype)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_is_at_most_twice_that_of_eager_torch(
    form: str, dtype: torch.dtype, backend: KernelBackend
) -> None:
    error, eager_error = 0.0, 0.0
    for number, (start, count) in enumerate(((0, 20), (100, 9), (520, 2))):
        made = make_pass([Rows.draw(start, count, SMALL, dtype, number)], backend=backend)
        heads = weights(SMALL, dtype)
        wanted = exact(made, heads, SCALE)
        found = FORMS[form](made, heads, SCALE, backend)
        assert found.dtype == dtype
        error += float((found.double() - wanted).square().sum())
        eager_error += float((eager(made, heads).double() - wanted).square().sum())
    assert 0 < error <= 4 * eager_error


@st.composite
def mixtures(draw: st.DrawFn, starts: tuple[int, ...], counts: tuple[int, ...]) -> list[Rows]:
    """One to four requests of one kind: prefill, chunk, verify and decode rows."""
    widths = draw(st.sampled_from((SMALL, ODD, MANY)))
    found = []
    for seed in range(draw(st.integers(1, 4))):
        start, count = draw(st.sampled_from(starts)), draw(st.sampled_from(counts))
        found.append(Rows.draw(start, count, widths, torch.float32, seed))
    return found


def check_forms(requests: list[Rows], page_size: int, padding: int, backend: KernelBackend) -> None:
    made = make_pass(requests, page_size=page_size, padding=padding, backend=backend)
    widths = next(w for w in (SMALL, ODD, MANY) if w.heads == made.q.shape[1])
    heads = weights(widths, torch.float32)
    wanted, num_rows = exact(made, heads, SCALE), made.plan.num_rows
    # Norms of rows: which of two orders of summing has the larger single error is chance.
    norms = torch.linalg.vector_norm
    eager_errors = norms((eager(made, heads).double() - wanted)[:num_rows], dim=(1, 2))
    bounds = 2 * eager_errors.max() + 1e-6 * norms(wanted[:num_rows], dim=(1, 2))
    for form in FORMS.values():
        found = form(made, heads, SCALE, backend)
        assert found.shape == wanted.shape
        assert not found[num_rows:].isnan().any()
        errors = norms((found.double() - wanted)[:num_rows], dim=(1, 2))
        assert (errors <= bounds).all()


PAGE_SIZES = st.sampled_from((1, 3, 16, 64))


@settings(max_examples=25)
@given(
    requests=mixtures((0, 1, 63, 130, 511), (1, 1, 2, 5, 17, 33)),
    page_size=PAGE_SIZES,
    padding=st.integers(0, 3),
)
def test_eager_is_right(requests: list[Rows], page_size: int, padding: int) -> None:
    check_forms(requests, page_size, padding, TORCH)


@settings(max_examples=5)
@given(requests=mixtures((0, 1, 40), (1, 1, 2, 9)), page_size=PAGE_SIZES, padding=st.integers(0, 3))
def test_triton_is_right(requests: list[Rows], page_size: int, padding: int) -> None:
    check_forms(requests, page_size, padding, TRITON)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_rows_bits_are_its_own(dtype: torch.dtype, backend: KernelBackend) -> None:
    """The absorbed attention, alone and beside others, in one pass and row by row."""
    counts = (150, 37) if backend is TORCH else (40, 19)
    whole = [Rows.draw(0, count, ODD, dtype, count) for count in counts]
    width = {"latent_width": ODD.latent, "scale": SCALE}

    def run(parts: list[Rows], page_size: int) -> list[torch.Tensor]:
        made = make_pass(parts, page_size=page_size, backend=backend)
        # Any q of the cache's width will do.
        q = torch.cat((made.q, made.q.flip(0).flip(2)), 2)[..., : ODD.row].contiguous()
        if len(parts) > 1 or parts[0].start:
            q = torch.cat([queries[id(r.rows)][r.start :] for r in parts])
        found = attend_absorbed(q, made.cache, made.plan, backend=backend, **width)
        return list(found.split([r.count for r in parts]))

    queries = {id(r.rows): torch.randn(len(r.q), ODD.heads, ODD.row).to(dtype) for r in whole}
    together = run(whole, 16)
    for r, wanted in zip(whole, together, strict=True):
        cuts = [0, 1, 9, 18, len(r.q)]
        for start, end in itertools.pairwise(cuts):
            part = Rows(r.q[:end], r.rows[:end], start)
            queries[id(part.rows)] = queries[id(r.rows)][:end]
            beside = Rows.draw(3, 2, ODD, dtype, 5)
            queries[id(beside.rows)] = torch.randn(5, ODD.heads, ODD.row).to(dtype)
            (_, found) = run([beside, part], 3)
            assert torch.equal(found, wanted[start:end]), (start, end)


def test_the_latents_other_part_is_no_value() -> None:
    """Another turned part changes the weights of the sum, not what is summed."""
    r = Rows.draw(0, 1, SMALL, torch.float32)
    made, heads = make_pass([r]), weights(SMALL, torch.float32)
    other = Rows(r.q, torch.cat((r.rows[:, :24], r.rows[:, 24:] + 5), 1), 0)
    for form in FORMS.values():
        # One key: its weight is 1 whatever its score.
        first = form(made, heads, SCALE, TORCH)
        assert torch.equal(first, form(make_pass([other]), heads, SCALE, TORCH))


def test_the_form_with_less_work_is_told() -> None:
    """The published widths: long prompts expand, single rows and short tails do not."""
    kimi = Widths(64, 512, 64, 128, 128)
    heads = HeadWeights(
        up_key=torch.empty(kimi.heads, kimi.key, kimi.latent, device="meta"),
        up_value=torch.empty(kimi.heads, kimi.value, kimi.latent, device="meta"),
    )
    small = Widths(1, 1, 1, 1, 1)

    def is_cheaper(*requests: tuple[int, int]) -> bool:
        rows = [Rows.draw(start, count, small, torch.float32) for start, count in requests]
        return is_expanded_cheaper(make_pass(rows).plan, heads, kimi.row)

    assert is_cheaper((0, 300))
    assert is_cheaper((0, 1500), (700, 1))
    assert not is_cheaper((300, 1))
    assert not is_cheaper((1000, 8), (1000, 1))
    assert is_cheaper((400, 400))


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda b: b.name)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (40, 2, 70, 33), (0, 2, 4, 4)])
def test_head_linear(
    shape: tuple[int, int, int, int], dtype: torch.dtype, backend: KernelBackend
) -> None:
    num_rows, num_heads, width_o, width_k = shape
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(num_rows, num_heads + 1, width_k + 2, generator=noise).to(dtype)[:, 1:, 2:]
    weight = torch.randn(num_heads, width_k, width_o, generator=noise).to(dtype).transpose(1, 2)
    found = head_linear(x, weight, backend=backend)
    wanted = torch.einsum("tnk,nok->tno", x.double(), weight.double())
    assert found.shape == wanted.shape
    # A float32 sum, rounded once, or truncated: the interpreter does that in bfloat16.
    size = torch.einsum("tnk,nok->tno", x.double().abs(), weight.double().abs())
    sums = width_k * torch.finfo(torch.float32).eps * size
    assert ((found.double() - wanted).abs() <= sums + torch.finfo(dtype).eps * wanted.abs()).all()
    assert torch.allclose(reference.head_linear(x, weight).double(), wanted, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_probed_multiple_holds(dtype: torch.dtype) -> None:
    for num_heads, width_o, width_k in ((4, 24, 12), (3, 9, 20), (8, 128, 64)):
        known = ProbeCache()
        shape = (num_heads, width_o, width_k)
        multiple = head_row_multiple(shape, dtype, backend=TORCH, known=known)
        assert list(known.found.values()) == [multiple]
        assert multiple is not None
        x = torch.randn(96, num_heads, width_k).to(dtype)
        weight = torch.randn(shape).to(dtype)
        wanted = head_linear(x, weight, backend=TORCH)
        for count in (*range(1, 20), 33, 95):
            found = head_linear(x[:count], weight, backend=TORCH)
            assert torch.equal(found, wanted[:count]), count


@pytest.mark.parametrize(
    ("x", "weight"),
    [((4, 2, 3), (2, 5, 4)), ((4, 2, 3), (3, 5, 3)), ((4, 6), (2, 5, 3))],
)
def test_head_linear_refuses_what_does_not_fit(x: tuple[int, ...], weight: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="wanted"):
        head_linear(torch.zeros(x), torch.zeros(weight), backend=TORCH)


def test_rows_of_keys_and_values_are_refused() -> None:
    made = make_pass([Rows.draw(0, 2, SMALL, torch.float32)])
    q = torch.zeros(2, 4, 32)
    cache = torch.zeros(4, 16, 2, 1, 32)
    with pytest.raises(ValueError, match="wanted"):
        attend_absorbed(q, cache, made.plan, latent_width=24, scale=1.0, backend=TORCH)
    with pytest.raises(ValueError, match="at most R"):
        attend_absorbed(q, made.cache, made.plan, latent_width=33, scale=1.0, backend=TORCH)
