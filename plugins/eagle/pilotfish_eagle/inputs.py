"""Inputs and outputs of a whole speculative step: target and EAGLE draft as one model.

Axis letters: B requests, T packed tokens, G drafted tokens.
"""

from __future__ import annotations

from typing import Self

import attrs
import torch

from pilotfish.protocols import ModelInputs, TensorRecord


@attrs.frozen(kw_only=True)
class PersistentInputBuffers(TensorRecord):
    """Memory that outlives a step, for graph capture: a step's inputs are copied to its start.

    tokens: [rows of the largest batch] int64. input_row_offsets: [requests of it + 1] int32.
    """

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor

    @classmethod
    def alloc(
        cls, max_batch_size: int, max_batch_input_tokens: int, device: torch.device | str
    ) -> Self:
        """Zeros for the largest batch. Raises ValueError when one of the sizes is below 1."""
        for name, size in (
            ("max_batch_size", max_batch_size),
            ("max_batch_input_tokens", max_batch_input_tokens),
        ):
            if size < 1:
                raise ValueError(f"{name} is {size}; wanted a whole number >= 1")
        return cls(
            tokens=torch.zeros(max_batch_input_tokens, dtype=torch.int64, device=device),
            input_row_offsets=torch.zeros(max_batch_size + 1, dtype=torch.int32, device=device),
        )


@attrs.frozen(kw_only=True)
class UnifiedEagleLlama3Inputs(ModelInputs):
    """One step of B requests.

    tokens, input_row_offsets: rows that count for certain: a chunk of the prompt, or the newest
        token. kv_cache_inputs: of the target's leaf, for these rows and the drafted ones; its page
        tables must reach over the draft's scratch rows too.
    draft_tokens: [B, G] int64, to be verified; None when nothing was drafted.
    draft_kv_blocks: the draft's leaf, per layer; page ids are the target's.
    return_n_logits: [1] or [B] int64; 0 for a request whose chunk is not its prompt's last.
    following_tokens: [B] int64, the prompt's token after such a chunk, which the draft's last row
        reads; -1 for the other requests.
    seed: [B] int64. temperature, top_p: [B] float32. top_k: [B] int64, -1 for all tokens.
        None: greedy, nothing cut off.
    max_k, min_top_p: [] of the whole batch, for samplers that size their work by it; not needed.
    in_thinking_phase: [B] bool, for relaxed acceptance; not read.
    """

    draft_tokens: torch.Tensor | None = None
    draft_kv_blocks: tuple[torch.Tensor, ...] | None = None
    seed: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    top_k: torch.Tensor | None = None
    max_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_top_p: torch.Tensor | None = None
    in_thinking_phase: torch.Tensor | None = None
    following_tokens: torch.Tensor | None = None

    @property
    def num_drafted(self) -> int:
        """G."""
        return 0 if self.draft_tokens is None else self.draft_tokens.shape[1]

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        num_requests = self.input_row_offsets.shape[0] - 1
        drafts, kv = self.draft_tokens, self.kv_cache_inputs
        if drafts is not None and (drafts.ndim != 2 or drafts.shape[0] != num_requests):
            raise ValueError(
                f"draft_tokens is {list(drafts.shape)}; wanted [{num_requests}, G], a row a request"
            )
        num_rows = self.tokens.shape[0] + num_requests * self.num_drafted
        if kv is not None and sum(kv.row_counts) != num_rows:
            raise ValueError(
                f"kv_cache_inputs is for {list(kv.row_counts)} rows; wanted {num_rows}: the "
                "tokens' and the drafted ones'"
            )


@attrs.frozen(kw_only=True)
class UnifiedEagleOutputs:
    """What a step gave B requests, on the host.

    num_accepted: of the drafted tokens. tokens: the accepted ones and the one after them; empty
    where no logits were asked for. num_committed: rows to commit, in both leaves.
    next_draft_tokens: proposed to follow; empty: nothing was drafted.
    """

    num_accepted: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    num_committed: tuple[int, ...]
    next_draft_tokens: tuple[tuple[int, ...], ...]
