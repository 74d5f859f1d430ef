"""Norms, rope and swiglu as planned calls give the bits of single calls."""

from __future__ import annotations

import pytest
import torch

from kernels.native_cases import DTYPES, NATIVE, needs_library, same_bits
from kernels.test_rope import angles
from pilotfish.kernels.elementwise.native import plan_clip
from pilotfish.kernels.layer_norm import add_layer_norm
from pilotfish.kernels.layer_norm import native as layer_norm
from pilotfish.kernels.native.buffers import Buffer, Rows
from pilotfish.kernels.native.plan import Plan
from pilotfish.kernels.rms_norm import add_rms_norm, add_scaled, norm_heads
from pilotfish.kernels.rms_norm import native as rms_norm
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.rope import native as rope
from pilotfish.kernels.swiglu import native as swiglu_native
from pilotfish.kernels.swiglu import swiglu

pytestmark = needs_library

EPS = 1e-5


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [8.0, 0.3])
def test_clip_is_clamp(dtype: torch.dtype, limit: float) -> None:
    rows, plan = Rows("T"), Plan()
    x = Buffer(rows, 37, dtype)
    plan_clip(plan, x, limit)
    calls = plan.finish()
    values = (3 * torch.randn(5, 37)).to(dtype)
    values[1, 2:6] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    calls.begin({rows: 5})
    calls.tensor(x).copy_(values)
    calls.run({}, 2)
    assert same_bits(calls.tensor(x), values.clamp(-limit, limit))


def test_planned_calls_give_the_bits_of_single_ones() -> None:
    torch.manual_seed(0)
    dtype, width, heads, head = torch.bfloat16, 60, 3, 20
    weight, bias = torch.randn(width), torch.randn(width)
    gains = torch.randn(heads - 1, head)
    rows = Rows("T")
    x = Buffer(rows, width, dtype)
    residual = Buffer(rows, width, dtype)
    cos_rows, sin_rows = (Buffer(rows, 14, torch.float32) for _ in range(2))
    plan, given, seen = Plan(), [], []  # type: ignore[var-annotated]

    def fill(*buffers: torch.Tensor) -> None:
        for buffer, value in zip(buffers, given, strict=True):
            buffer.copy_(value)

    plan.torch(fill, x, residual, cos_rows, sin_rows)
    out = rms_norm.plan_rms_norm(
        plan, x, weight, EPS, "before_weight", residual=residual, multiplier=0.3
    )
    rms_norm.plan_norm_heads(plan, out, gains, EPS)
    rope.plan_apply_rope(
        plan, out, cos_rows, sin_rows, heads=heads - 1, head_width=head, first=head
    )
    rms_norm.plan_add_scaled(plan, residual, out, 0.7)
    out = layer_norm.plan_layer_norm(plan, out, weight, bias, EPS, residual=residual)
    last = swiglu_native.plan_swiglu(plan, out)
    plan.torch(lambda *found: seen.extend(one.clone() for one in found), last, residual)
    calls = plan.finish()
    for count in (1, 5, 2):
        seen.clear()
        given[:] = [
            torch.randn(count, width).to(dtype),
            torch.randn(count, width).to(dtype),
            *angles(count, 14, False),
        ]
        calls.begin({rows: count})
        calls.run({}, 2)
        added, residual, cos, sin = given[0], given[1].clone(), *given[2:]
        normed, _ = add_rms_norm(
            added,
            residual,
            weight,
            EPS,
            multiplier=0.3,
            cast="before_weight",
            backend=NATIVE,
        )
        parts = normed.view(count, heads, head)
        norm_heads(parts[:, :-1], gains, EPS, backend=NATIVE)
        apply_rope(parts[:, 1:], cos, sin, backend=NATIVE)
        add_scaled(residual, normed, 0.7, out=residual, backend=NATIVE)
        normed, _ = add_layer_norm(normed, residual, weight, bias, EPS, backend=NATIVE)
        assert same_bits(seen[0], swiglu(normed, backend=NATIVE))
        assert same_bits(seen[1], residual)


def test_some_columns_are_normed_into_others() -> None:
    rows, plan = Rows("T"), Plan()
    x, weight = Buffer(rows, 50, torch.bfloat16), torch.randn(20)
    out = Buffer(rows, 31, torch.bfloat16)
    some, into = x.columns(7, 20), out.columns(11)
    rms_norm.plan_rms_norm(plan, some, weight, EPS, "after_weight", into=into)
    rms_norm.plan_rms_norm(plan, some, weight, EPS, "before_weight", into=some)
    calls = plan.finish()
    given = torch.randn(5, 50).bfloat16()
    calls.begin({rows: 5})
    calls.tensor(x).copy_(given)
    calls.tensor(out).fill_(3.0)
    calls.run({}, 2)
    part = some.of(given)
    wanted = torch.cat((torch.full((5, 11), 3.0).bfloat16(), part), 1)
    into.of(wanted).copy_(rms_norm.rms_norm(part, weight, EPS, "after_weight"))
    assert same_bits(calls.tensor(out), wanted)
    part.copy_(rms_norm.rms_norm(part, weight, EPS, "before_weight"))
    assert same_bits(calls.tensor(x), given)
