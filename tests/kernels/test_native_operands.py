"""Native kernels read operands that do not lie as their code has them: bits as of plain copies."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library, same_bits
from kernels.operand_cases import (
    EPS,
    HEADS,
    ROWS,
    WIDTH,
    Layout,
    chosen,
    columns_of,
    combined,
    context_written,
    convolved,
    draw,
    grouped_weight,
    indices,
    plain_weight,
    sampled,
    sorted_rows,
    written,
)
from pilotfish.kernels.elementwise import silu, softmax
from pilotfish.kernels.grouped_linear import grouped_linear
from pilotfish.kernels.layer_norm import add_layer_norm, layer_norm
from pilotfish.kernels.linear import linear, lookup_rows
from pilotfish.kernels.rms_norm import add_rms_norm, add_scaled, norm_heads, rms_norm
from pilotfish.kernels.rope import apply_rope, rope_angles
from pilotfish.kernels.sampling import native as sampling
from pilotfish.kernels.swiglu import swiglu
from pilotfish.kernels.take_rows import take_rows

pytestmark = needs_library


def apart(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second one in memory; between them is what must not be read."""
    between = torch.full_like(x, torch.nan if x.is_floating_point() else 1 << 30)
    return torch.stack((x, between), -1)[..., 0]


def turned(x: torch.Tensor) -> torch.Tensor:
    """The same numbers, axes the other way round in memory."""
    return x.permute(*reversed(range(x.ndim))).contiguous().permute(*reversed(range(x.ndim)))


CALLS: dict[str, Callable[[Layout], torch.Tensor]] = {
    "take_rows": lambda lay: take_rows(
        lay(draw(ROWS, WIDTH)), lay(indices(ROWS, 31)), backend=NATIVE
    ),
    "combine_rows": combined,
    "rms_norm": lambda lay: rms_norm(
        lay(draw(ROWS, WIDTH)), lay(draw(WIDTH)), EPS, cast="after_weight", backend=NATIVE
    ),
    "rms_norm of heads": lambda lay: rms_norm(
        lay(draw(ROWS, HEADS, WIDTH)), lay(draw(WIDTH)), EPS, cast="before_weight", backend=NATIVE
    ),
    "add_rms_norm": lambda lay: torch.stack(
        add_rms_norm(
            lay(draw(ROWS, WIDTH)),
            columns_of(draw(ROWS, WIDTH)),
            lay(draw(WIDTH)),
            EPS,
            cast="after_weight",
            backend=NATIVE,
        )
    ),
    "norm_heads": lambda lay: norm_heads(
        columns_of(draw(ROWS, HEADS, WIDTH)), lay(draw(HEADS, WIDTH)), EPS, backend=NATIVE
    ),
    "add_scaled": lambda lay: add_scaled(
        lay(draw(ROWS, WIDTH)), lay(draw(ROWS, WIDTH) + 1), 0.5, backend=NATIVE
    ),
    "layer_norm": lambda lay: layer_norm(
        lay(draw(ROWS, WIDTH)), lay(draw(WIDTH)), lay(draw(WIDTH)), EPS, backend=NATIVE
    ),
    "add_layer_norm": lambda lay: torch.stack(
        add_layer_norm(
            lay(draw(ROWS, WIDTH)),
            columns_of(draw(ROWS, WIDTH)),
            lay(draw(WIDTH)),
            lay(draw(WIDTH)),
            EPS,
            backend=NATIVE,
        )
    ),
    "swiglu": lambda lay: swiglu(lay(draw(ROWS, 2 * WIDTH)), backend=NATIVE),
    "choose_experts": chosen,
    "apply_rope": lambda lay: apply_rope(
        columns_of(draw(ROWS, HEADS, WIDTH)), lay(draw(ROWS, 8)), lay(draw(ROWS, 8)), backend=NATIVE
    ),
    "rope_angles": lambda lay: torch.stack(
        rope_angles(lay(torch.arange(ROWS)), lay(draw(ROWS, 8)), backend=NATIVE)
    ),
    "write_kv": written,
    "write_context_kv": context_written,
    "silu": lambda lay: silu(lay(draw(ROWS, WIDTH)), backend=NATIVE),
    "softmax": lambda lay: softmax(lay(draw(ROWS, WIDTH)), backend=NATIVE),
    "linear": lambda lay: linear(lay(draw(ROWS, WIDTH)), plain_weight(), backend=NATIVE),
    "lookup_rows": lambda lay: lookup_rows(plain_weight(), lay(indices(7, 31)), torch.float32),
    "grouped_linear": lambda lay: grouped_linear(
        lay(draw(ROWS, WIDTH)), grouped_weight(), sorted_rows(), gather=True, backend=NATIVE
    ),
    "short_conv": convolved,
    "sample_rows": sampled,
    "apply_bitmask": lambda lay: sampling.apply_bitmask(
        lay(draw(ROWS, 90)), lay(indices(1 << 31, ROWS, 3).to(torch.int32))
    ),
    "gumbel": lambda lay: sampling.gumbel(lay(torch.arange(9)), lay(torch.arange(9) * 7), 50),
}


@pytest.mark.parametrize("lay", [apart, turned, columns_of])
@pytest.mark.parametrize("name", CALLS)
def test_operands_may_lie_apart(name: str, lay: Layout) -> None:
    wanted = CALLS[name](torch.Tensor.contiguous)
    found = CALLS[name](lay)
    kind = found.dtype if not found.is_floating_point() else None
    assert torch.equal(found, wanted) if kind else same_bits(found, wanted)
