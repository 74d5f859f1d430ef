"""BenchRow and BenchReport: figures of one run, the machine, and how they are shown.

Knows: names, units, ratios. Does not know: how a figure was measured.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, Literal

import attrs

if TYPE_CHECKING:
    from pilotfish.engine import LLM

Verdict = Literal["better", "worse", "level", "other tokens"]


@attrs.frozen(kw_only=True)
class BenchRow:
    """One comparison.

    ratio: how many times better ours is: above 1 we win, whatever the unit.
    tokens_equal: True, False, a sentence about a near-tie, or None where no text is made.
    ours_spread, theirs_spread: see `Median`; None for what was measured once, or is a bound.
    """

    name: str
    ours: float
    theirs: float
    peer: str
    ratio: float
    unit: str
    tokens_equal: bool | str | None
    higher_is_better: bool = True
    ours_spread: float | None = None
    theirs_spread: float | None = None

    @property
    def noise(self) -> float | None:
        """Share by which the ratio may be off; None where that is not known."""
        known = [one for one in (self.ours_spread, self.theirs_spread) if one is not None]
        return sum(known) if known else None

    @property
    def verdict(self) -> Verdict:
        """Which side is better; "level" where it is less than the spreads of both."""
        if self.tokens_equal is False:
            return "other tokens"
        if abs(self.ratio - 1) <= (self.noise or 0.0):
            return "level"
        return "better" if self.ratio > 1 else "worse"

    @classmethod
    def rate(
        cls,
        name: str,
        ours: float,
        theirs: float,
        *,
        peer: str,
        equal: bool | str | None = None,
        unit: str = "tokens/s",
    ) -> BenchRow:
        """A figure where more is better."""
        return cls(
            name=name,
            ours=ours,
            theirs=theirs,
            peer=peer,
            ratio=ours / theirs,
            unit=unit,
            tokens_equal=equal,
            ours_spread=getattr(ours, "spread", None),
            theirs_spread=getattr(theirs, "spread", None),
        )

    @classmethod
    def cost(
        cls,
        name: str,
        ours: float,
        theirs: float,
        *,
        peer: str,
        equal: bool | str | None = None,
        unit: str = "s",
    ) -> BenchRow:
        """A figure where less is better."""
        row = cls.rate(name, ours, theirs, peer=peer, equal=equal, unit=unit)
        return attrs.evolve(row, ratio=theirs / ours, higher_is_better=False)


@attrs.frozen(kw_only=True)
class BenchReport:
    """All rows of one run.

    sample: text that our side produced, so that a loop would show. backend: of our kernels.
    peers: name -> what a peer says of itself. experts: how evenly rows went to them; "" where there
    are none.
    """

    model: str
    dtype: str
    threads: int
    rows: tuple[BenchRow, ...]
    sample: str
    backend: str
    peers: Mapping[str, str] = attrs.field(factory=dict)
    experts: str = ""

    @classmethod
    def of(cls, llm: LLM, **shown: Any) -> BenchReport:
        """Of a run on this machine. llm: our side. shown: the fields that it does not tell."""
        import torch

        return cls(
            dtype=llm.dtype,
            threads=torch.get_num_threads(),
            backend=llm.pipeline_config.runtime.backend,
            **shown,
        )

    def to_json(self) -> list[dict[str, Any]]:
        """The rows, then one object that describes the machine."""
        rows = [attrs.asdict(row) for row in self.rows]
        return [*rows, {"machine": self.machine(), "model": self.model, "sample": self.sample}]

    def machine(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "threads": self.threads,
            "dtype": self.dtype,
            "backend": self.backend,
            "instructions": _instructions(),
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "transformers", "pilotfish")},
            **self.peers,
            **({"experts: busiest / mean": self.experts} if self.experts else {}),
        }

    def to_markdown(self) -> str:
        """The table of docs/benchmarks."""
        return "\n".join([MARKDOWN_HEAD, *map(markdown_row, self.rows), self.markdown_end()])

    def markdown_end(self) -> str:
        """What stands below its rows."""
        machine = ", ".join(f"{key} {value}" for key, value in self.machine().items())
        return f"\nMachine: {machine}\n\nSample: {self.sample!r}"


MARKDOWN_HEAD = (
    "| what | ours | theirs | peer | ratio | unit | tokens equal |\n"
    "|---|---:|---:|---|---:|---|---|"
)


def markdown_row(row: BenchRow) -> str:
    """One row of the table of docs/benchmarks."""
    equal = {True: "yes", False: "NO", None: "-"}
    shown = row.tokens_equal if isinstance(row.tokens_equal, str) else equal[row.tokens_equal]
    return (
        f"| {row.name} | {row.ours:.4g} | {row.theirs:.4g} | {row.peer} | "
        f"{row.ratio:.2f} | {row.unit} | {shown} |"
    )


def _instructions() -> str:
    """The instruction set of our native kernels, or why there are none."""
    from pilotfish.kernels.native import library, why_not

    native = library()
    return f"none: {why_not()}" if native is None else native.instruction_set


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
