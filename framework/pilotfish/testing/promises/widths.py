"""The promise of rows' bits once more, at widths where libraries take the kernels that users get.

Knows: wide checkpoints. Does not know: what is computed in them.
"""

from __future__ import annotations

from pilotfish.layers.claims import Claims
from pilotfish.layers.whole_pass import probe_passes
from pilotfish.testing.promise import Broken
from pilotfish.testing.subject import Subject


def rows_are_their_own_at_real_widths(subject: Subject) -> None:
    """A row's bits are its own at widths of 1024 and 1000, or the checkpoint's, call by call."""
    for wide in subject.wide():
        with wide:
            for dtype in subject.dtypes:
                _want_own_rows(wide, dtype)


def _want_own_rows(subject: Subject, dtype: str) -> None:
    prepared, model = subject.prepared(dtype), subject.load(dtype)
    found = probe_passes(model, prepared.vocab_size)
    why_not = found.why_not_invariant
    if not why_not and isinstance(model, Claims):
        why_not = model.why_not_invariant
    if why_not:
        raise Broken(
            f"{subject.name}, {dtype}: {why_not}",
            "the same bits in every row: compute it with `pilotfish.kernels`, or in calls of one "
            "fixed number of rows",
        )
