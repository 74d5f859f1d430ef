"""TransformerConfig: the sizes that the configs of transformers have in common; imports no torch.

Knows: fields, and the pages that follow from them. Does not know: any option of any architecture.
"""

from __future__ import annotations

from typing import ClassVar

import attrs

from pilotfish.config.checks import int_at_least, one_of
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.decoder_config import DecoderConfig
from pilotfish.state import KVCacheParams

SIZES = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
    "vocab_size",
)
"""Fields of every transformer, by the names that Hugging Face's options have."""
DTYPES = ("float32", "bfloat16", "float16")

_count = int_at_least(1)


@attrs.frozen(kw_only=True)
class TransformerConfig(DecoderConfig):
    """Base of such an `ArchConfig`.

    rope: rotary positions. dtype: of rows. cache_dtype: of keys and values in pages; None: as
    dtype.
    """

    hidden_size: int = attrs.field(validator=_count)
    num_attention_heads: int = attrs.field(validator=_count)
    num_hidden_layers: int = attrs.field(validator=_count)
    intermediate_size: int = attrs.field(validator=_count)
    vocab_size: int = attrs.field(validator=_count)
    rope: RopeParameters
    dtype: str = attrs.field(validator=one_of(DTYPES))
    cache_dtype: str | None = None


@attrs.frozen(kw_only=True)
class GroupedQueryConfig(TransformerConfig):
    """The same with grouped-query attention in every layer.

    whose: the model in messages, with a space behind it; "" for the one that is asked for.
    """

    whose: ClassVar[str] = ""

    num_key_value_heads: int = attrs.field(validator=_count)
    head_dim: int = attrs.field(validator=int_at_least(2))

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"{self.whose}num_attention_heads is {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads}; wanted a multiple"
            )

    @property
    def attention_sizes(self) -> tuple[int, int, int, int]:
        """Width of rows, query heads, kv heads and their width: what `Attention` is made with."""
        return self.hidden_size, self.num_attention_heads, self.num_key_value_heads, self.head_dim

    @property
    def kv_params(self) -> KVCacheParams:
        """The geometry of the paged cache."""
        return KVCacheParams(
            num_layers=self.num_hidden_layers,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            dtype=self.cache_dtype or self.dtype,
        )
