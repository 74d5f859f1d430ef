"""Examples: what a plugin tells the conformance kit about an architecture.

Knows: the fields. Does not know: how checkpoints are made; imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from pilotfish.testing.oracle import Oracle

SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 80,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
)
"""Sizes of a tiny model, under what an example's own options say."""

EVEN: Mapping[str, Any] = MappingProxyType({**SMALL, "max_position_embeddings": 512})
"""The same with room for long texts."""

ODD: Mapping[str, Any] = MappingProxyType({**EVEN, "hidden_size": 72, "intermediate_size": 100})
"""The same with widths that are no multiples of what a processor computes at once, nor squares:
what the conformance kit tries, or `EVEN` where a plugin refuses those."""

WIDE: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "width 1024": {"hidden_size": 1024, "intermediate_size": 2816},
        "width 1000": {"hidden_size": 1000, "intermediate_size": 1001},
    }
)
"""Sizes of a wide model, over what an example's own options say; 1001 is no multiple of anything
that a processor computes at once."""


@attrs.frozen(kw_only=True)
class Examples:
    """Tiny models of one architecture. A spec names a function that returns them, by reference.

    configs: name -> Hugging Face options, laid over `ODD` (a "text_config" among them too). What
        they do not say is made small where transformers writes them: windows shorter than the kit's
        texts, a layer of each kind, rope scaled beyond an original length that texts go past.
    save: writes a random checkpoint of such options to a folder, for an architecture whose files
        transformers cannot write; None lets transformers do it.
    wide: name -> options that make an example wide, laid over its own: see `WIDE`.
    oracle: makes the oracle of a checkpoint's folder; None takes transformers.
    """

    configs: Mapping[str, Mapping[str, Any]] = attrs.field(factory=lambda: {"plain": {}})
    wide: Mapping[str, Mapping[str, Any]] = WIDE
    save: Callable[[Mapping[str, Any], Path], None] | None = None
    oracle: Callable[[Path], Oracle] | None = None
