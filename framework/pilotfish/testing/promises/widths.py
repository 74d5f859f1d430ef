"""The promise of rows' bits once more, at widths where libraries take the kernels that users get.

Knows: wide checkpoints. Does not know: what is computed in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pilotfish.invariance.row_tries import same_bits
from pilotfish.invariance.whole_pass import probe_passes, text_logits
from pilotfish.models.claims import Claims
from pilotfish.protocols import PipelineModel
from pilotfish.testing.outcome import Broken, NotKnown
from pilotfish.testing.subject import Subject

THREADS = (3, 1, 2)
"""Of torch and of native kernels: an operation that one thread computes alone may round otherwise
where several share it."""


def rows_are_their_own_at_real_widths(subject: Subject) -> None:
    """A row's bits are its own at widths of 1024 and 1000, or the checkpoint's, call by call.

    Tried with three threads; of native kernels one and two give the same bits.
    """
    for wide in subject.wide():
        with wide:
            for dtype in subject.dtypes:
                with _threads(THREADS[0]):
                    _want_own_rows(wide, dtype)
                _want_same_with_any_threads(wide, dtype)


def _want_own_rows(subject: Subject, dtype: str) -> None:
    prepared, model = subject.prepared(dtype), subject.load(dtype)
    silent: tuple[str, ...] = ()
    if not getattr(model, "keeps_bits", False):
        silent = (type(model).__qualname__,)
    if isinstance(model, Claims):
        silent = model.silent_parts
    found = probe_passes(model, prepared.vocab_size, believed=not silent, silent=silent)
    differs = found.differs
    if not found.why_not_invariant and isinstance(model, Claims):
        differs = model.why_not_invariant
    if differs:
        raise Broken(
            f"{subject.name}, {dtype}: {differs}",
            "the same bits in every row: compute it with `pilotfish.kernels`",
        )
    if found.untried:
        raise NotKnown(f"{subject.name}, {dtype}: {found.untried}")


def _want_same_with_any_threads(subject: Subject, dtype: str) -> None:
    model, vocab_size = subject.load(dtype), subject.prepared(dtype).vocab_size
    if _backend(model) != "native":
        return  # torch's products may depend on their number, and only one number is promised
    wanted, *others = [_logits(model, vocab_size, count) for count in THREADS]
    for count, got in zip(THREADS[1:], others, strict=True):
        if not same_bits(got, wanted):
            raise Broken(
                f"{subject.name}, {dtype}: logits differ with {count} threads and {THREADS[0]}",
                "the same bits with any number: what a native kernel computes may not depend on "
                "`team->index` or `team->count`, and writes nothing beyond its own part",
            )


def _backend(model: PipelineModel) -> str:
    return str(getattr(getattr(model, "backend", None), "name", ""))


def _logits(model: PipelineModel, vocab_size: int, num_threads: int) -> torch.Tensor:
    with _threads(num_threads):
        return text_logits(model, vocab_size)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
