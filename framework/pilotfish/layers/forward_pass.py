"""ForwardPass: what every layer of one pass shares; made once a pass, thrown away after it.

Knows: positions, angles, the attention plan, where rows go in the caches. Does not know: weights.
Axis letters: B requests, T packed tokens, T' rows with padding, R rotated width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import attrs
import torch

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.paged_attention import AttentionPlan, plan_attention
from pilotfish.layers.rope import Rotary

if TYPE_CHECKING:
    from pilotfish.state import KVCacheInputs, SlotInputs


@attrs.frozen(kw_only=True, slots=False)
class ForwardPass:
    """One pass over a padded ragged batch; made by `start`.

    num_rows: T; the rows of the pass that are no padding are the first ones.
    plan: which keys each row may see. caches: per layer, the pages keys and values lie in.
    write_slots: [T] int64, where the keys and values of the real rows go.
    slots: this pass's views of the caches without pages.
    positions: [T'] int64, each row's place among its request's tokens; 0 for padding.
    lengths: [T'] int64, s(p) of config/rope.py where angles depend on it; else None.
    rotary: what makes angles of the two; None where no layer turns its rows.
    row_multiple: T' is a multiple of it, and so must be any part of the rows that a layer
        multiplies by itself (see `invariance.linear_probe`).
    """

    backend: KernelBackend
    num_rows: int
    plan: AttentionPlan
    caches: tuple[torch.Tensor, ...]
    write_slots: torch.Tensor
    slots: tuple[SlotInputs, ...] = ()
    positions: torch.Tensor
    lengths: torch.Tensor | None = None
    rotary: Rotary | None = None
    row_multiple: int = 1

    @classmethod
    def start(
        cls,
        kv: KVCacheInputs,
        input_row_offsets: torch.Tensor,
        *,
        backend: KernelBackend,
        rotary: Rotary | None,
        row_multiple: int = 1,
        attention_multiple: int | None = None,
        prompt_lengths: torch.Tensor | None = None,
        lay_outs: Sequence[Callable[[ForwardPass], None]] = (),
    ) -> ForwardPass:
        """A pass over the rows of a ragged batch: the one place where positions are made.

        kv: where each request's rows lie; row i of request b stands at lengths[b] + i.
        input_row_offsets: [B+1] int32, request b owns rows offsets[b] to offsets[b+1].
        row_multiple: rows are padded to it. attention_multiple: see `plan_attention`.
        prompt_lengths: [B] int64, m of config/rope.py; read where angles depend on it.
        lay_outs: what the layers with attention do before the first one runs, on torch.
        Raises ValueError when lengths, rows and pages do not fit together.
        """
        plan = plan_attention(
            kv, input_row_offsets, backend=backend, row_multiple=attention_multiple
        )
        num_rows = plan.num_rows
        positions, lengths = positions_of(kv, input_row_offsets), None
        if rotary is not None and rotary.by_length:
            lengths = positions + 1
            if prompt_lengths is not None:
                of_rows = prompt_lengths.repeat_interleave(
                    input_row_offsets.diff(), output_size=num_rows
                )
                lengths = torch.maximum(of_rows, lengths)
        short = -num_rows % row_multiple if num_rows else row_multiple
        if short:
            positions = torch.nn.functional.pad(positions, (0, short))
            lengths = None if lengths is None else torch.nn.functional.pad(lengths, (0, short))
        run = cls(
            backend=backend,
            num_rows=num_rows,
            plan=plan,
            caches=kv.blocks,
            write_slots=kv.write_slots.contiguous(),
            slots=kv.slots,
            positions=positions.contiguous(),
            lengths=lengths,
            rotary=rotary,
            row_multiple=row_multiple,
        )
        if backend.name == "torch":
            for lay_out in lay_outs:
                lay_out(run)
        return run

    @cached_property
    def angles(self) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of every row, [T', R] float32 each; made when a layer first asks."""
        if self.rotary is None:
            none = torch.empty((len(self.positions), 0), device=self.positions.device)
            return none, none
        cos, sin = self.rotary(self.positions, self.lengths, self.backend)
        return cos.contiguous(), sin.contiguous()

    @property
    def cos(self) -> torch.Tensor:
        """[T', R] float32, of `angles`."""
        return self.angles[0]

    @property
    def sin(self) -> torch.Tensor:
        """[T', R] float32, of `angles`."""
        return self.angles[1]


def positions_of(kv: KVCacheInputs, input_row_offsets: torch.Tensor) -> torch.Tensor:
    """Each row's place among its request's tokens: [T] int64. No host round trip."""
    committed = kv.cache_lengths.long()
    if kv.row_counts.count(1) == len(kv.row_counts):
        return committed
    num_rows = sum(kv.row_counts)
    starts = committed - input_row_offsets[:-1]
    positions = torch.arange(num_rows, device=starts.device)
    positions += starts.repeat_interleave(input_row_offsets.diff(), output_size=num_rows)
    return positions


def pair_of(block: object, made: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What a block returned. Raises PluginError naming the block where it is no pair of tensors."""
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], torch.Tensor):
        return made
    got = [type(each).__name__ for each in made] if isinstance(made, tuple) else type(made).__name__
    raise PluginError(
        f"the block {type(block).__name__} returned {got}; wanted (x, residual): its last "
        "sublayer's output, and the residual stream without it, as the norm that reads their sum "
        "adds them"
    )
