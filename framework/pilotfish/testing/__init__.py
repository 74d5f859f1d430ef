"""The conformance kit: whether a plugin, anybody's, keeps the promises of Pilotfish.

Import-light: names are resolved on first use, since they need torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.testing.checkpoints import save_tiny, save_with_transformers
    from pilotfish.testing.draft_oracle import DraftOracle, DraftTarget
    from pilotfish.testing.examples import SMALL, Examples
    from pilotfish.testing.naive import NaiveAnswer, naive_answer, naive_token
    from pilotfish.testing.oracle import Oracle, TransformersOracle
    from pilotfish.testing.promise import Broken, NotApplicable, NotKnown, Promise, want
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

_HOMES = {
    "Broken": "promise",
    "DraftOracle": "draft_oracle",
    "DraftTarget": "draft_oracle",
    "Examples": "examples",
    "NaiveAnswer": "naive",
    "NotApplicable": "promise",
    "NotKnown": "promise",
    "Oracle": "oracle",
    "PROMISES": "suite",
    "Promise": "promise",
    "Result": "suite",
    "SMALL": "examples",
    "Session": "session",
    "Subject": "subject",
    "TransformersOracle": "oracle",
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
    "want": "promise",
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


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
