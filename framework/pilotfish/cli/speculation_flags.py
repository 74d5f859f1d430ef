"""Flags of speculation, and how they become a SpeculativeConfig.

Knows: flag names and their help. Does not know: methods, which the installed plugins name.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from pilotfish.cli.parser import add_flag, flag_of, given
from pilotfish.errors import ConfigError

if TYPE_CHECKING:
    from pilotfish.config import SpeculativeConfig

ACCEPTANCES = ("coupled", "residual", "relaxed", "synthetic")


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that decides what drafts, how much, and what of it counts."""
    add = partial(add_flag, parser.add_argument_group("speculation"))
    add(
        "--speculative",
        "what drafts: ngram, or another of `pilotfish plugins` (default: nothing)",
        known=_methods,
        metavar="METHOD",
    )
    add("--draft", "checkpoint of the drafter (default: none; ngram reads none)", metavar="MODEL")
    add(
        "--width",
        "drafted tokens a step: a number, or adaptive (default: adaptive)",
        known=("adaptive",),
        metavar="N",
    )
    add(
        "--acceptance",
        f"which drafts count: {', '.join(ACCEPTANCES)} (default: coupled)",
        known=ACCEPTANCES,
        metavar="RULE",
    )
    add(
        "--synthetic-rate",
        "share that 'synthetic' accepts (default: 0.8)",
        type=float,
        metavar="SHARE",
    )
    add(
        "--thinking-tokens",
        "start and end of thinking, for 'relaxed' (default: the checkpoint's)",
        metavar="ID,ID",
    )


def _methods() -> Sequence[str]:
    """Of the installed plugins."""
    from pilotfish.plugins import load_registry

    return load_registry().methods


def speculative_config(args: argparse.Namespace) -> SpeculativeConfig | None:
    """The flags of speculation. Raises ConfigError naming a bad one, or one without a method."""
    from pilotfish.config import SpeculativeConfig

    names = ("width", "acceptance", "synthetic_rate", "thinking_tokens")
    values = given({name: getattr(args, name) for name in names})
    for name, read in (("width", _width), ("thinking_tokens", _pair)):
        if name in values:
            values[name] = read(values[name])
    for name, rule in (("synthetic_rate", "synthetic"), ("thinking_tokens", "relaxed")):
        if name in values and values.get("acceptance") != rule:
            flag = flag_of(name)
            raise ConfigError(f"{flag} is read by --acceptance {rule} only; wanted that too")
    if args.speculative is not None:
        return SpeculativeConfig(method=args.speculative, **values)
    if values:
        flag = flag_of(next(iter(values)))
        raise ConfigError(f"{flag} was given without a method; wanted --speculative METHOD too")
    return None


def _width(text: str) -> int | str:
    from pilotfish.config.speculative import MOST

    if text == "adaptive":
        return text
    try:
        width = int(text)
    except ValueError:
        width = 0
    if not 1 <= width <= MOST:
        in_python = "; batch sizes are Python only: SpeculativeConfig(width={1: 6})"
        hint = in_python if ":" in text else ""
        raise ConfigError(
            f"--width is {text!r}; wanted adaptive, or 1 to {MOST} drafted tokens a step{hint}"
        )
    return width


def _pair(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--thinking-tokens is {text!r}; wanted two token ids with a comma: START,END"
        ) from None
