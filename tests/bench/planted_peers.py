"""Sides that stand for peers, for a process that imports this file and with it nothing slow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pilotfish.bench.workloads import TokenIds


class Liar:
    """A side that answers something else."""

    name = "liar"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        return [[0] * num_tokens for _ in prompts]


def exits(directory: str, *, dtype: str, num_threads: int) -> Liar:
    os._exit(3)


class Breaks(Liar):
    """A side that fails at work."""

    name = "breaks"

    def __init__(self, directory: str, *, dtype: str, num_threads: int) -> None:
        if dtype != "float32":
            raise TypeError(f"no {dtype}")

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        raise RuntimeError(f"{num_tokens} are too many")


class Ends(Breaks):
    """A side whose process ends at work."""

    name = "ends"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        os._exit(4)


class TellsSpinCount(Breaks):
    """A side whose token is how long its OpenMP threads spin; 0: as torch has it."""

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        return [[int(os.environ.get("GOMP_SPINCOUNT", "0"))]]
