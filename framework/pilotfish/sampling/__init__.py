"""Sampling: processed logits, per-request noise, log probabilities.

Import-light: names are resolved on first use, since they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names

if TYPE_CHECKING:
    from pilotfish.sampling.logprobs import TokenLogprobs, prompt_logprobs, token_logprobs
    from pilotfish.sampling.noise import gumbel, gumbel_at
    from pilotfish.sampling.penalties import TokenHistory
    from pilotfish.sampling.row import SamplingRow
    from pilotfish.sampling.sampler import SampledRows, Sampler
    from pilotfish.sampling.truncation import Truncation, truncate_

_HOMES = {
    "gumbel": "noise",
    "gumbel_at": "noise",
    "prompt_logprobs": "logprobs",
    "SampledRows": "sampler",
    "Sampler": "sampler",
    "SamplingRow": "row",
    "TokenHistory": "penalties",
    "token_logprobs": "logprobs",
    "TokenLogprobs": "logprobs",
    "truncate_": "truncation",
    "Truncation": "truncation",
}

__all__ = [
    "gumbel",
    "gumbel_at",
    "prompt_logprobs",
    "SampledRows",
    "Sampler",
    "SamplingRow",
    "TokenHistory",
    "token_logprobs",
    "TokenLogprobs",
    "truncate_",
    "Truncation",
]

__getattr__ = lazy_names(__name__, _HOMES)
