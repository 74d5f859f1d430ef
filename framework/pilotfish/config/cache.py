"""CacheConfig: how much state there is, and how it is cut into pages."""

from __future__ import annotations

import attrs

from pilotfish.config.checks import boolean, int_at_least, one_of, optional_int_at_least
from pilotfish.config.peers import CACHE, answering_peers
from pilotfish.config.sampling import OF_SAMPLING
from pilotfish.errors import ConfigError

CACHE_DTYPES = (None, "float32", "bfloat16", "float16")
PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Page sizes in tokens: they divide the smallest key partition of the attention kernels."""


@answering_peers(CACHE, ConfigError, OF_SAMPLING)
@attrs.frozen(kw_only=True)
class CacheConfig:
    """Sizes of the paged state.

    dtype: of keys and values in pages; None takes the run's dtype, or float16 where a quantized
        file is run in float32 because nobody asked for a dtype.
    page_size_tokens: tokens in a page, a power of two up to 128.
    num_pages: pages in the pool; None lets the memory plan choose.
    memory_bytes: bytes that all state may take on a rank; None lets the memory plan choose.
    prefix_caching: whether full pages are shared between requests with equal beginnings.
    image_bytes: bytes of image embeddings that are kept for later passes and requests; 0 keeps
        none. Read by models that serve images only.
    """

    dtype: str | None = attrs.field(default=None, validator=one_of(CACHE_DTYPES))
    page_size_tokens: int = attrs.field(default=16, validator=one_of(PAGE_SIZES))
    num_pages: int | None = attrs.field(default=None, validator=optional_int_at_least(1))
    memory_bytes: int | None = attrs.field(default=None, validator=optional_int_at_least(1))
    prefix_caching: bool = attrs.field(default=True, validator=boolean())
    image_bytes: int = attrs.field(default=256 << 20, validator=int_at_least(0))
