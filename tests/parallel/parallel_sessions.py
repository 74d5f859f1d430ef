"""One text on several ranks: each a thread with its own shard, state and session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pilotfish.config import CacheConfig, ParallelConfig
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import run_ranks, thread_groups
from pilotfish.plugins import load_registry
from pilotfish.testing.session import Session

Made = TypeVar("Made")
CACHE = CacheConfig(page_size_tokens=4, num_pages=64)
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}


def prepare_rank(
    model: str | Path, parallel: ParallelConfig, groups: Groups, **options: Any
) -> Prepared:
    return prepare_from_options(
        str(model),
        parallel=parallel,
        groups=groups,
        **{"device": "cpu", "cache": CACHE, "dtype": "float32", **options},
    )


def on_ranks(
    model: str | Path,
    parallel: ParallelConfig,
    work: Callable[[Session], Made],
    **options: Any,
) -> list[Made]:
    """What `work` gives on every rank; options: of `prepare_from_options`."""
    registry = options.pop("registry", None) or load_registry()

    def run(groups: Groups) -> Made:
        prepared = prepare_rank(model, parallel, groups, registry=registry, **options)
        return work(Session(prepared.model, prepared.load()))

    return run_ranks(thread_groups(parallel), run)
