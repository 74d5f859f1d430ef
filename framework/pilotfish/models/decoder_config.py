"""DecoderConfig: what the configs of decoder-only models have in common; imports no torch.

Knows: caches of pages, rotary positions. Does not know: any option of any architecture.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from pilotfish.config.rope import RopeParameters
    from pilotfish.state import CacheParams, StateSpec


class DecoderConfig:
    """Base of an `ArchConfig`: getters over fields that a subclass has.

    A subclass is a frozen attrs class with the field `max_seq_len`, with `kv_params`, as a field or
    a property, and with `rope` where it has rotary positions; it writes `initialize`.
    """

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def max_seq_len(self) -> int:
            """The longest context in tokens."""

        @property
        def rope(self) -> RopeParameters | None:
            """Rotary positions; None without."""

        @property
        def kv_params(self) -> CacheParams:
            """The geometry of the paged cache."""

    else:
        rope = None

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """As it is: a subclass reads what only the tensors' names and shapes can tell."""
        del huggingface_config, state_dict
        return self

    def get_kv_params(self) -> CacheParams:
        """The geometry of the paged cache."""
        return self.kv_params

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """One paged cache; a subclass with other state lists that too."""
        return (self.kv_params.spec,)

    def get_max_seq_len(self) -> int:
        """The longest context in tokens."""
        return self.max_seq_len

    def prefix_salt(self, num_prompt_tokens: int) -> bytes:
        """Prompts may share cached pages only if their salts are equal (config/rope.py)."""
        return b"" if self.rope is None else self.rope.prefix_salt(num_prompt_tokens)

    @property
    def rope_theta(self) -> float | None:
        """Base of the rotary wavelengths."""
        return None if self.rope is None else self.rope.theta

    @property
    def rope_scaling_params(self) -> RopeParameters | None:
        """The rotary parameters where they scale anything."""
        return None if self.rope is None or self.rope.rope_type == "default" else self.rope
