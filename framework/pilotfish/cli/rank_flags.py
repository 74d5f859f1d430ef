"""Flags of several ranks.

Knows: flag names and their help. Does not know: how ranks are started.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from pilotfish.cli.parser import add_flag, given
from pilotfish.config.parallel import DISTRIBUTED, ParallelConfig

PARALLEL = (
    "tensor_parallel",
    "data_parallel",
    "expert_parallel",
    "reduction_slices",
    "rank_timeout",
    "distributed",
)


def add_parallel_flags(parser: argparse.ArgumentParser, *, variable: bool = True) -> None:
    """On how many ranks a model runs. variable: see `add_flag`."""
    add = partial(add_flag, parser.add_argument_group("several ranks"), variable=variable)
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--tensor-parallel", "processes that share every layer (default: 1)", **whole)
    add("--data-parallel", "replicas of the model, each of so many (default: 1)", **whole)
    add(
        "--expert-parallel",
        "ranks that share the experts, of one replica or more (default: all of one)",
        **whole,
    )
    add(
        "--reduction-slices",
        "same slices, same text on any ranks that divide them (default: --tensor-parallel)",
        **whole,
    )
    add(
        "--rank-timeout",
        "seconds until a rank that does not answer is given up (default: 60)",
        type=float,
        metavar="SECONDS",
    )
    add(
        "--distributed",
        f"what starts them: {', '.join(DISTRIBUTED)} (default: auto)",
        known=DISTRIBUTED,
        metavar="WHAT",
    )


def parallel_config(args: argparse.Namespace) -> ParallelConfig:
    """The flags of `add_parallel_flags`. Raises ConfigError naming a bad one."""
    return ParallelConfig(**given({name: getattr(args, name) for name in PARALLEL}))
