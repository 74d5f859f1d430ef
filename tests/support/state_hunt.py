"""How mutants of the state are hunted: fixed draws, and what counts as an alarm."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from pilotfish.errors import StateError

HUNT = settings(
    max_examples=3000,
    stateful_step_count=40,
    derandomize=True,
    database=None,
    deadline=None,
    phases=(Phase.generate,),
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
"""Fixed draws, no shrinking: a mutant has to fall to the same history on every run."""

ALARMS = (AssertionError, StateError)
"""A broken promise that the model saw, or the manager's own guard. A crash of the model is none."""
