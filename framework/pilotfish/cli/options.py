"""Flags of a model and of how it runs, and how they become arguments of `LLM`.

Knows: flag names and their help. Does not know: what a verb does with them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from pilotfish.cli.parser import add_flag, given
from pilotfish.cli.rank_flags import PARALLEL, add_parallel_flags
from pilotfish.cli.speculation_flags import add_speculation_flags, speculative_config
from pilotfish.errors import ConfigError

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
BACKENDS = ("auto", "native", "torch", "triton")


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", help="directory, .gguf file, hub id, or 'demo'")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that decides how a model runs."""
    add_speculation_flags(parser)
    add = partial(add_flag, parser.add_argument_group("how the model runs"), variable=True)
    add("--dtype", f"one of {', '.join(DTYPES)} (default: auto)", known=DTYPES, default="auto")
    add_place_flags(add)
    add(
        "--arithmetic",
        "invariant: bits of a row are its own; portable: on any processor too; fastest: neither "
        "(default: invariant)",
        known=("invariant", "portable", "fastest"),
        default="invariant",
    )
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    add_parallel_flags(parser)
    memory = parser.add_argument_group("memory")
    add = partial(add_flag, memory, variable=True)
    add("--max-length", "tokens of a context (default: the model's own, or what fits)", **whole)
    add("--max-batch-size", "requests run at once (default: 16, or what fits)", **whole)
    add("--max-batch-tokens", "rows of one pass (default: 512)", **whole)
    add("--num-pages", "pages in the cache (default: what fits; docs/tuning.md)", **whole)
    add("--page-size", "tokens in a page (default: 16)", **whole)
    add(
        "--cache-dtype",
        "of keys and values in pages (default: that of the model)",
        known=DTYPES[1:],
    )
    add_flag(memory, "--no-prefix-caching", "compute every prompt anew", action="store_true")


def add_place_flags(add: Callable[..., None]) -> None:
    """Where it runs, and on which kernels. add: `add_flag` of a group."""
    add(
        "--device",
        f"one of {', '.join(DEVICES)} (default: auto)",
        known=DEVICES[:-1],
        default="auto",
    )
    add(
        "--backend",
        f"kernels: one of {', '.join(BACKENDS)} (default: auto)",
        known=BACKENDS,
        default="auto",
    )


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as keyword arguments of `LLM`. Raises ConfigError naming a bad one."""
    from pilotfish.config import CacheConfig
    from pilotfish.config.cache import PAGE_SIZES

    if args.page_size not in (None, *PAGE_SIZES):
        raise ConfigError(
            f"--page-size is {args.page_size}; wanted one of {', '.join(map(str, PAGE_SIZES))}"
        )
    cache = {"dtype": args.cache_dtype, "page_size_tokens": args.page_size}
    cache |= {"num_pages": args.num_pages, "prefix_caching": not args.no_prefix_caching}
    names = ("dtype", "device", "backend", "arithmetic", "max_length", "max_batch_size")
    return {
        "draft": args.draft,
        "speculative": speculative_config(args),
        "cache": CacheConfig(**given(cache)),
        **given({name: getattr(args, name) for name in (*names, "max_batch_tokens")}),
        **given({name: getattr(args, name) for name in PARALLEL}),
    }
