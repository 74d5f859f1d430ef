"""The promise about plans: what native calls were laid down for is what the layers compute.

Knows: passes of a loaded model, planned and not. Does not know: kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.outcome import NotApplicable
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

PASSES: Sequence[Mapping[str, int]] = (
    {"a": LONG - 8, "b": 1},
    {"a": 1, "b": 1},
    {"b": PAGE_SIZE, "a": 3},
    {"a": 1},
    {"c": 2 * PAGE_SIZE, "a": 1, "b": 2},
)
"""A prefill beside a short one, decode, what verifies drafts, one row, and a mixture."""


def planned_passes_equal_called_layers(subject: Subject) -> None:
    """A pass laid down as native calls has the bits of the same layers called one by one."""
    if subject.prepared(subject.dtype).backend.name != "native":
        raise NotApplicable("passes are planned for native kernels only")
    for dtype in subject.dtypes:
        _want_like_called(subject, dtype, ReturnHiddenStates.NONE, ())
        model = subject.prepared(dtype).model
        last = getattr(model.config, "num_hidden_layers", 0)
        _want_like_called(subject, dtype, ReturnHiddenStates.SELECTED, range(last + 1))


def _want_like_called(
    subject: Subject, dtype: str, hidden: ReturnHiddenStates, boundaries: Sequence[int]
) -> None:
    planned = subject.load(dtype, hidden=hidden, boundaries=boundaries)
    called = subject.load(dtype, hidden=hidden, boundaries=boundaries)
    if not (isinstance(planned, DecoderModel) and isinstance(called, DecoderModel)):
        raise NotApplicable(f"{type(planned).__name__} is no DecoderModel, so nothing is planned")
    called.plans_passes = False
    sessions = [subject.session(dtype, model=model) for model in (planned, called)]
    for session in sessions:
        session.add_all({name: subject.tokens(LONG, seed) for seed, name in enumerate("abc")})
    for rows in PASSES:
        got, wanted = (session.execute(session.inputs(rows)) for session in sessions)
        for session in sessions:
            session.commit(rows)
        where = f"{dtype}, a pass of {dict(rows)} rows"
        for place, boundary in enumerate(boundaries):
            assert got.hidden_states is not None
            assert wanted.hidden_states is not None
            width = got.hidden_states.shape[1] // len(boundaries)
            columns = slice(place * width, (place + 1) * width)
            want_same_bits(
                got.hidden_states[:, columns],
                wanted.hidden_states[:, columns],
                f"{where}, planned, the stream after {boundary} blocks",
            )
        want_same_bits(got.logits, wanted.logits, f"{where}, planned, logits")
    if not planned.has_planned:
        raise NotApplicable(f"its layers are called one by one: {planned.why_called}")
