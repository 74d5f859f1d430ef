"""Inputs and outputs of a whole speculative step: a target and its draft as one model.

Axis letters: B requests, T packed tokens, G drafted tokens.
"""

from __future__ import annotations

import attrs
import torch

from pilotfish.protocols import ModelInputs


@attrs.frozen(kw_only=True)
class UnifiedInputs(ModelInputs):
    """One step of B requests.

    tokens, input_row_offsets: rows that count for certain: a chunk of the prompt, or the newest
        token. kv_cache_inputs: of the target's paged cache, for these rows and the drafted ones;
        its page tables must reach over the draft's scratch rows too.
    draft_tokens: [B, G] int64, to be verified; None when nothing was drafted.
    draft_probs: [B, G, V] float32, the laws that they were drawn from, for residual acceptance;
        None: they were certain.
    draft_kv_blocks: the draft's paged cache, per layer; page ids are the target's.
    return_n_logits: [1] or [B] int64; 0 for a request whose chunk is not its prompt's last.
    following_tokens: [B] int64, the prompt's token after such a chunk, which the draft's last row
        reads; -1 for the other requests.
    seed: [B] int64. temperature, top_p: [B] float32. top_k: [B] int64, -1 for all tokens.
        None: greedy, nothing cut off.
    max_k, min_top_p: [] of the whole batch, for samplers that size their work by it; not needed.
    in_thinking_phase: [B] bool, where relaxed acceptance may relax; None: nowhere.
    token_bitmasks: [R, ceil(V / 32)] int32, tokens that may come (sampling/bitmask.py), a row for
        each row of logits: 1 + G of each request that wants any. None: all tokens may.
    """

    draft_tokens: torch.Tensor | None = None
    draft_probs: torch.Tensor | None = None
    draft_kv_blocks: tuple[torch.Tensor, ...] | None = None
    seed: torch.Tensor | None = None
    temperature: torch.Tensor | None = None
    top_k: torch.Tensor | None = None
    max_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_top_p: torch.Tensor | None = None
    in_thinking_phase: torch.Tensor | None = None
    token_bitmasks: torch.Tensor | None = None
    following_tokens: torch.Tensor | None = None

    @property
    def num_drafted(self) -> int:
        """G."""
        return 0 if self.draft_tokens is None else self.draft_tokens.shape[1]

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        num_requests = self.num_requests
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
class UnifiedOutputs:
    """What a step gave B requests, on the host.

    num_accepted: of the drafted tokens. tokens: the accepted ones and the one after them; empty
    where no logits were asked for. num_committed: rows to commit, in both paged caches.
    next_draft_tokens: proposed to follow; empty: nothing was drafted. next_draft_probs: [G, V]
        float32 each, what they were drawn from; None where that is not kept.
    """

    num_accepted: tuple[int, ...]
    tokens: tuple[tuple[int, ...], ...]
    num_committed: tuple[int, ...]
    next_draft_tokens: tuple[tuple[int, ...], ...]
    next_draft_probs: tuple[torch.Tensor | None, ...]


NOTHING = UnifiedOutputs(
    num_accepted=(), tokens=(), num_committed=(), next_draft_tokens=(), next_draft_probs=()
)
"""Of a step without requests."""
