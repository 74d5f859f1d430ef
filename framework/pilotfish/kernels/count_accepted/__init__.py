"""How many drafted tokens count: the run of drafts that equal the target's own tokens.

Knows: token ids of verify rows. Does not know: how they were sampled, or by whom drafted.
Letters: B requests, R verify rows of all requests.
"""

from __future__ import annotations

import torch

from pilotfish.kernels.backend import KernelBackend
from pilotfish.kernels.count_accepted import eager

__all__ = ["count_accepted"]


def count_accepted(
    tokens: torch.Tensor,
    drafts: torch.Tensor,
    offsets: torch.Tensor,
    *,
    backend: KernelBackend,
) -> torch.Tensor:
    """Return how many drafts of each request are accepted, up to the first that is not.

    tokens: [R] int64, the target's own token after each verify row. drafts: [R] int64, the draft
    that each row judges; the value in a request's last row, which judges none, is not read.
    offsets: [B+1] int32, request b owns rows offsets[b] to offsets[b+1], one at least.
    Returns [B] int64 on their device, without a host round trip: tokens[offsets[b] + count] is the
    token that follows the accepted drafts.
    A request's count depends on its own rows only.
    Source: Daliri et al. 2024, "Coupling without Communication and Drafter-Invariant Speculative
    Decoding".
    """
    if tokens.shape != drafts.shape or tokens.ndim != 1:
        raise ValueError(
            f"tokens are {list(tokens.shape)} and drafts {list(drafts.shape)}; wanted one [R] each"
        )
    if backend.name == "triton":
        from pilotfish.kernels.count_accepted import triton

        return triton.count_accepted(tokens, drafts, offsets)
    return eager.count_accepted(tokens, drafts, offsets)
