"""The promise of rows' bits once more, at widths where libraries take the kernels that users get.

Knows: wide checkpoints. Does not know: what is computed in them.
"""

from __future__ import annotations

import torch

from pilotfish.invariance.row_tries import same_bits
from pilotfish.invariance.whole_pass import probe_passes, text_logits
from pilotfish.models.claims import Claims
from pilotfish.protocols.optional import of_model
from pilotfish.testing.outcome import NotKnown, want
from pilotfish.testing.subject import Subject, torch_threads

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
                with torch_threads(THREADS[0]):
                    _want_own_rows(wide, dtype)
                _want_same_with_any_threads(wide, dtype)


def _want_own_rows(subject: Subject, dtype: str) -> None:
    prepared, model = subject.prepared(dtype), subject.load(dtype)
    silent: tuple[str, ...] = ()
    if not of_model(model).keeps_bits:
        silent = (type(model).__qualname__,)
    if isinstance(model, Claims):
        silent = model.silent_parts
    found = probe_passes(model, prepared.vocab_size, believed=not silent, silent=silent)
    differs = found.differs
    if not found.why_not_invariant and isinstance(model, Claims):
        differs = model.why_not_invariant
    want(
        not differs,
        f"{subject.name}, {dtype}: {differs}",
        "the same bits in every row: compute it with `pilotfish.kernels`",
    )
    if found.untried:
        raise NotKnown(f"{subject.name}, {dtype}: {found.untried}")


def _want_same_with_any_threads(subject: Subject, dtype: str) -> None:
    model, vocab_size = subject.load(dtype), subject.prepared(dtype).vocab_size
    if getattr(getattr(model, "backend", None), "name", "") != "native":
        return  # torch's products may depend on their number, and only one number is promised
    found = list[torch.Tensor]()
    for count in THREADS:
        with torch_threads(count):
            found.append(text_logits(model, vocab_size))
        want(
            same_bits(found[-1], found[0]),
            f"{subject.name}, {dtype}: logits differ with {count} threads and {THREADS[0]}",
            "the same bits with any number: what a native kernel computes may not depend on "
            "`team->index` or `team->count`, and writes nothing beyond its own part",
        )
