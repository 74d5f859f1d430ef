"""Native kernels refuse operands that they could not read: ValueErrors say what, got and wanted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library, same_bits
from kernels.operand_cases import (
    EPS,
    EXPERTS,
    ROWS,
    WIDTH,
    chosen,
    combined,
    context_written,
    convolved,
    draw,
    grouped_weight,
    plain_weight,
    sorted_rows,
    written,
)
from pilotfish.kernels.grouped_linear import group_rows, grouped_linear
from pilotfish.kernels.layer_norm import add_layer_norm, layer_norm
from pilotfish.kernels.linear import linear, lookup_rows
from pilotfish.kernels.rms_norm import add_rms_norm, add_scaled, norm_heads, rms_norm
from pilotfish.kernels.rope import apply_rope, rope_angles
from pilotfish.kernels.router import choose_experts
from pilotfish.kernels.sampling import native as sampling
from pilotfish.kernels.swiglu import swiglu
from pilotfish.kernels.take_rows import take_rows

pytestmark = needs_library

ones = torch.ones
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "take_rows: a place below": (
        lambda: take_rows(ones(ROWS, 4), torch.tensor([3, -1]), backend=NATIVE),
        r"index goes from -1 to 3; wanted 0 to 19",
    ),
    "take_rows: a place above": (
        lambda: take_rows(ones(ROWS, 4), torch.arange(1, 21), backend=NATIVE),
        r"index goes from 1 to 20; wanted 0 to 19",
    ),
    "take_rows: one of many": (
        lambda: take_rows(ones(ROWS, 4), torch.arange(-1, 19).repeat(9), backend=NATIVE),
        r"index goes from -1 to 18; wanted 0 to 19",
    ),
    "take_rows: of no rows": (
        lambda: take_rows(ones(0, 4), torch.tensor([0]), backend=NATIVE),
        r"index goes from 0 to 0; wanted 0 to -1",
    ),
    "take_rows: int32": (
        lambda: take_rows(ones(ROWS, 4), torch.tensor([1], dtype=torch.int32), backend=NATIVE),
        r"index is \[1\] torch.int32 .* wanted torch.int64",
    ),
    "take_rows: no CPU": (
        lambda: take_rows(ones(ROWS, 4, device="meta"), torch.tensor([1]), backend=NATIVE),
        r"x is \[20, 4\] torch.float32 on meta",
    ),
    "combine_rows: a place": (
        lambda: combined(torch.Tensor.contiguous, places=torch.full((9, 2), ROWS)),
        r"places goes from 20 to 20; wanted 0 to 19",
    ),
    "combine_rows: float64 weights": (
        lambda: combined(torch.Tensor.contiguous, weights=draw(9, 2).double()),
        r"weights is \[9, 2\] torch.float64 .* wanted torch.float32",
    ),
    "combine_rows: few weights": (
        lambda: combined(torch.Tensor.contiguous, weights=draw(9, 1)),
        r"weights is \[9, 1\] .* wanted torch.float32, contiguous, \[9, 2\]",
    ),
    "combine_rows: a short last": (
        lambda: combined(torch.Tensor.contiguous, last=draw(1, WIDTH)),
        r"last is \[1, 24\] .* wanted torch.float32, .* \[13, 24\] or more rows",
    ),
    "combine_rows: last of another dtype": (
        lambda: combined(torch.Tensor.contiguous, last=draw(13, WIDTH).bfloat16()),
        r"last is \[13, 24\] torch.bfloat16",
    ),
    "combine_rows: fewer rows than places": (
        lambda: combined(torch.Tensor.contiguous, num_rows=8),
        r"num_rows is 8; wanted 9 or more",
    ),
    "rms_norm: a short weight": (
        lambda: rms_norm(draw(3, 8), ones(4), EPS, cast="after_weight", backend=NATIVE),
        r"weight is \[4\] .* \[8\]$",
    ),
    "rms_norm: a long weight": (
        lambda: rms_norm(draw(3, 8), ones(9), EPS, cast="after_weight", backend=NATIVE),
        r"weight is \[9\] .* \[8\]$",
    ),
    "rms_norm: four axes": (
        lambda: rms_norm(draw(3, 2, 2, 8), None, EPS, cast="after_weight", backend=NATIVE),
        r"x is \[3, 2, 2, 8\]; wanted \[T, D\] or \[T, N, D\]",
    ),
    "rms_norm: float64": (
        lambda: rms_norm(draw(3, 8).double(), None, EPS, cast="after_weight", backend=NATIVE),
        r"given torch.float64; wanted one of torch.float32, torch.bfloat16, torch.float16",
    ),
    "add_rms_norm: a short residual": (
        lambda: add_rms_norm(
            draw(3, 8), draw(2, 8), None, EPS, cast="after_weight", backend=NATIVE
        ),
        r"residual is \[2, 8\] .* \[3, 8\]$",
    ),
    "add_rms_norm: a turned residual": (
        lambda: add_rms_norm(
            draw(3, 8), draw(8, 3).T, None, EPS, cast="after_weight", backend=NATIVE
        ),
        r"residual is \[3, 8\] .* strides \[1, 3\]; wanted .* contiguous in its last axis",
    ),
    "add_rms_norm: a residual of another dtype": (
        lambda: add_rms_norm(
            draw(3, 8), draw(3, 8).half(), None, EPS, cast="after_weight", backend=NATIVE
        ),
        r"residual is \[3, 8\] torch.float16 .* wanted torch.float32",
    ),
    "norm_heads: few weights": (
        lambda: norm_heads(draw(3, 4, 8), ones(2, 8), EPS, backend=NATIVE),
        r"weight is \[2, 8\] .* \[4, 8\]$",
    ),
    "norm_heads: turned": (
        lambda: norm_heads(draw(8, 4, 3).permute(2, 1, 0), ones(4, 8), EPS, backend=NATIVE),
        r"x is \[3, 4, 8\] .* contiguous in its last axis",
    ),
    "add_scaled: another width": (
        lambda: add_scaled(draw(3, 8), draw(3, 9), 1.0, backend=NATIVE),
        r"residual is \[3, 8\] .* \[3, 9\]$",
    ),
    "add_scaled: a turned out": (
        lambda: add_scaled(draw(3, 8), draw(3, 8), 1.0, out=draw(8, 3).T, backend=NATIVE),
        r"out is \[3, 8\] .* contiguous in its last axis",
    ),
    "layer_norm: bfloat16 weights": (
        lambda: layer_norm(draw(3, 8), ones(8).bfloat16(), None, EPS, backend=NATIVE),
        r"weight is \[8\] torch.bfloat16 .* wanted torch.float32",
    ),
    "layer_norm: a short bias": (
        lambda: layer_norm(draw(3, 8), None, ones(7), EPS, backend=NATIVE),
        r"bias is \[7\] .* \[8\]$",
    ),
    "add_layer_norm: a short residual": (
        lambda: add_layer_norm(draw(3, 8), draw(2, 8), None, None, EPS, backend=NATIVE),
        r"residual is \[2, 8\] .* \[3, 8\]$",
    ),
    "swiglu: an odd width": (
        lambda: swiglu(draw(3, 9), backend=NATIVE),
        r"gate_up is \[3, 9\] .* \[3, 8\]",
    ),
    "choose_experts: float64 bias": (
        lambda: choose_experts(
            draw(3, 8), ones(8).double(), scoring="sigmoid", num_chosen=2, backend=NATIVE
        ),
        r"bias is \[8\] torch.float64 .* wanted torch.float32",
    ),
    "choose_experts: a short bias": (
        lambda: choose_experts(draw(3, 8), ones(7), scoring="given", num_chosen=2, backend=NATIVE),
        r"bias is \[7\] .* \[8\]$",
    ),
    "choose_experts: bfloat16 logits": (
        lambda: choose_experts(
            draw(3, 8).bfloat16(), None, scoring="given", num_chosen=2, backend=NATIVE
        ),
        r"logits is \[3, 8\] torch.bfloat16",
    ),
    "apply_rope: wider than a head": (
        lambda: apply_rope(draw(3, 2, 8), draw(3, 10), draw(3, 10), backend=NATIVE),
        r"cos is \[3, 10\]; wanted \[T, R\], R even and at most 8",
    ),
    "apply_rope: few angles": (
        lambda: apply_rope(draw(3, 2, 8), draw(2, 8), draw(2, 8), backend=NATIVE),
        r"cos is \[2, 8\] .* \[3, 8\] or more rows",
    ),
    "apply_rope: turned": (
        lambda: apply_rope(draw(8, 2, 3).permute(2, 1, 0), draw(3, 8), draw(3, 8), backend=NATIVE),
        r"x is \[3, 2, 8\] .* contiguous in its last axis",
    ),
    "rope_angles: int32 positions": (
        lambda: rope_angles(torch.arange(3).int(), draw(4), backend=NATIVE),
        r"positions is \[3\] torch.int32",
    ),
    "rope_angles: float64 frequencies": (
        lambda: rope_angles(torch.arange(3), draw(4).double(), backend=NATIVE),
        r"frequencies is \[4\] torch.float64",
    ),
    "rope_angles: few frequencies": (
        lambda: rope_angles(torch.arange(3), draw(2, 4), backend=NATIVE),
        r"frequencies is \[2, 4\] .* \[3, 4\]$",
    ),
    "write_kv: a slot": (
        lambda: written(torch.Tensor.contiguous, torch.arange(7, 27)),
        r"write_slots goes from 7 to 26; wanted 0 to 25",
    ),
    "write_context_kv: a slot": (
        lambda: context_written(torch.Tensor.contiguous, torch.arange(-1, 19)),
        r"write_slots goes from -1 to 18; wanted 0 to 25",
    ),
    "write_context_kv: few angles": (
        lambda: context_written(torch.Tensor.contiguous, angles=ROWS - 1),
        r"sin is \[19, 8\] .* \[20, 8\]",
    ),
    "linear: another width": (
        lambda: linear(draw(3, WIDTH - 1), plain_weight(), backend=NATIVE),
        r"x is \[3, 23\] .* \[3, 24\]",
    ),
    "lookup_rows: int32": (
        lambda: lookup_rows(plain_weight(), torch.arange(3).int(), torch.float32),
        r"tokens is \[3\] torch.int32",
    ),
    "grouped_linear: few rows": (
        lambda: grouped_linear(
            draw(ROWS - 1, WIDTH), grouped_weight(), sorted_rows(), gather=True, backend=NATIVE
        ),
        r"x is \[19, 24\] .* \[20, 24\] or more rows",
    ),
    "grouped_linear: another width": (
        lambda: grouped_linear(
            draw(ROWS, 23), grouped_weight(), sorted_rows(), gather=True, backend=NATIVE
        ),
        r"x is \[20, 23\] .* \[20, 24\]",
    ),
    "grouped_linear: a group that is not there": (
        lambda: grouped_linear(
            draw(2, WIDTH),
            grouped_weight(),
            group_rows(torch.tensor([[0], [EXPERTS]]), EXPERTS + 1, backend=NATIVE),
            backend=NATIVE,
        ),
        r"rows go to groups 0 to 8; wanted 0 to 7",
    ),
    "short_conv: a layer": (
        lambda: convolved(torch.Tensor.contiguous, layer=1),
        r"layer is 1; wanted 0 to 0",
    ),
    "short_conv: memory of another dtype": (
        lambda: convolved(torch.Tensor.contiguous, dtype=torch.bfloat16),
        r"memory is \[22, 24\] torch.bfloat16",
    ),
    "sample_rows: few records": (
        lambda: sampling.sample_rows(draw(3, 8), sampling.new_rows(2)),
        r"logits is \[3, 8\] .* \[2, 8\]$",
    ),
    "sample_rows: a token": (
        lambda: sampling.sample_rows(
            draw(1, 8), sampling.new_rows(1), tokens=torch.tensor([8]), draws=False
        ),
        r"tokens goes from 8 to 8; wanted 0 to 7",
    ),
    "apply_bitmask: few words": (
        lambda: sampling.apply_bitmask(draw(3, 33), torch.zeros(3, 1, dtype=torch.int32)),
        r"masks is \[3, 1\] .* \[3, 2\]",
    ),
    "gumbel: few positions": (
        lambda: sampling.gumbel(torch.arange(3), torch.arange(2), 8),
        r"positions is \[2\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said):
        call()


@pytest.mark.parametrize(
    ("num_chosen", "groups", "kept"),
    [(9, 1, 1), (5, 4, 2), (-1, 1, 1), (2, 8, 2), (2, 3, 1), (2, 4, 5), (2, 4, 0), (2, 0, 0)],
)
def test_experts_and_groups_that_do_not_fit_are_refused(
    num_chosen: int, groups: int, kept: int
) -> None:
    options = {"num_chosen": num_chosen, "num_groups": groups, "num_kept_groups": kept}
    said = f"{num_chosen} of 8 experts are chosen from {kept} of {groups} groups; wanted equal"
    with pytest.raises(ValueError, match=said):
        chosen(torch.Tensor.contiguous, **options)


def test_groups_of_one_expert_that_are_all_kept_are_none() -> None:
    assert torch.equal(
        chosen(torch.Tensor.contiguous, num_groups=8, num_kept_groups=8),
        chosen(torch.Tensor.contiguous),
    )


def test_no_rows_and_no_terms() -> None:
    empty = torch.empty(0, dtype=torch.int64)
    assert take_rows(ones(0, 4), empty, backend=NATIVE).shape == (0, 4)
    sums = combined(torch.Tensor.contiguous, places=empty.view(0, 2), weights=draw(0, 2))
    assert torch.equal(sums, draw(13, WIDTH))


def test_cut_rows_may_take_the_logits_place_and_drawn_ones_may_not() -> None:
    logits, records = draw(3, 40), sampling.new_rows(3)
    for record in records:
        record.temperature, record.top_k = 0.7, 5
    wanted, tokens = torch.empty(3, 40), torch.zeros(3, dtype=torch.int64)
    assert sampling.sample_rows(logits, records, processed=wanted)
    with pytest.raises(ValueError, match="processed is logits; wanted memory of its own"):
        sampling.sample_rows(logits, records, processed=logits, tokens=tokens, draws=True)
    assert sampling.sample_rows(logits, records, processed=logits)
    assert same_bits(logits, wanted)
