"""The conformance kit: whether a plugin, anybody's, keeps the promises of Pilotfish.

Import-light: names are resolved on first use, since they need torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.lazy import lazy_names

if TYPE_CHECKING:
    from pilotfish.testing.checkpoints import save_tiny, save_with_transformers
    from pilotfish.testing.draft_oracle import DraftOracle, DraftTarget
    from pilotfish.testing.examples import SMALL, Examples
    from pilotfish.testing.naive import NaiveAnswer, naive_answer, naive_token
    from pilotfish.testing.oracle import Oracle
    from pilotfish.testing.outcome import Broken, NotApplicable, NotKnown, want
    from pilotfish.testing.promise import Promise
    from pilotfish.testing.session import Session
    from pilotfish.testing.subject import Subject
    from pilotfish.testing.suite import (
        PROMISES,
        Result,
        check,
        promise_named,
        promises_for,
        promises_named,
        run,
        tiny_subjects,
    )
    from pilotfish.testing.transformers_oracle import TransformersOracle

_HOMES = {
    "Broken": "outcome",
    "DraftOracle": "draft_oracle",
    "DraftTarget": "draft_oracle",
    "Examples": "examples",
    "NaiveAnswer": "naive",
    "NotApplicable": "outcome",
    "NotKnown": "outcome",
    "Oracle": "oracle",
    "PROMISES": "suite",
    "Promise": "promise",
    "Result": "suite",
    "SMALL": "examples",
    "Session": "session",
    "Subject": "subject",
    "TransformersOracle": "transformers_oracle",
    "check": "suite",
    "naive_answer": "naive",
    "naive_token": "naive",
    "promise_named": "suite",
    "promises_for": "suite",
    "promises_named": "suite",
    "run": "suite",
    "save_tiny": "checkpoints",
    "save_with_transformers": "checkpoints",
    "tiny_subjects": "suite",
    "want": "outcome",
}

__all__ = [
    "Broken",
    "DraftOracle",
    "DraftTarget",
    "Examples",
    "NaiveAnswer",
    "NotApplicable",
    "NotKnown",
    "Oracle",
    "PROMISES",
    "Promise",
    "Result",
    "SMALL",
    "Session",
    "Subject",
    "TransformersOracle",
    "check",
    "naive_answer",
    "naive_token",
    "promise_named",
    "promises_for",
    "promises_named",
    "run",
    "save_tiny",
    "save_with_transformers",
    "tiny_subjects",
    "want",
]

__getattr__ = lazy_names(__name__, _HOMES)
