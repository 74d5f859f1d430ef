"""The pytest plugin: every promise as a test of its own, in three lines.

    @pytest.mark.pilotfish("StableLmForCausalLM")
    def test_conformance(promise):
        promise.keep()

Knows: markers and parameters. Does not know: promises. Import-light: pytest loads it always.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import attrs
import pytest

if TYPE_CHECKING:
    from pilotfish.registry import Registry
    from pilotfish.testing.subject import Subject

MARKER = "pilotfish(architecture, *, promises=None, registry=None, dtypes=None, draft=None, \
speculative=None): the tests of the conformance kit for an architecture, or for a drafter on it; \
use it with the fixture `promise`"


@attrs.frozen(kw_only=True)
class BoundPromise:
    """A promise and the subjects it is checked on: an architecture's tiny checkpoints."""

    name: str
    subjects: list[Subject]

    def keep(self) -> None:
        """Fails the test when the promise is broken, or the kit cannot know whether it is.

        Skips it where it applies to no subject.
        """
        __tracebackhide__ = True
        from pilotfish.testing.outcome import NotApplicable, NotKnown
        from pilotfish.testing.suite import promise_named

        reasons = []
        for subject in self.subjects:
            try:
                promise_named(self.name).keep(subject)
            except NotApplicable as reason:
                reasons.append(f"{subject.name}: {reason}")
            except NotKnown as lacking:
                pytest.fail(
                    f"{self.name} is not known to be kept: {subject.name}: {lacking}", pytrace=False
                )
        if len(reasons) == len(self.subjects):
            pytest.skip("; ".join(reasons))


def pytest_configure(config: pytest.Config) -> None:
    """Declares the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a promise, for a function that is marked and asks for `promise`."""
    marker = metafunc.definition.get_closest_marker("pilotfish")
    if marker is None or "promise" not in metafunc.fixturenames:
        return
    from pilotfish.testing.suite import promises_for, promises_named

    asked = [
        found for name in marker.kwargs.get("promises") or () for found in promises_named(name)
    ]
    promises = asked or promises_for(with_drafter="speculative" in marker.kwargs)
    metafunc.parametrize("promise", [promise.name for promise in promises], indirect=True)


@pytest.fixture(scope="session")
def _pilotfish_subjects() -> Iterator[Callable[..., list[Subject]]]:
    """The tiny checkpoints of the architectures asked for, made once and kept for the run."""
    from pilotfish.plugins import load_registry
    from pilotfish.testing.suite import tiny_subjects

    made: dict[Any, list[Subject]] = {}
    with ExitStack() as exits:

        def subjects_of(
            architecture: str, registry: Registry | None, options: dict[str, Any]
        ) -> list[Subject]:
            key = (architecture, id(registry), repr(options))
            if key not in made:
                found = registry if registry is not None else load_registry()
                opened = tiny_subjects(architecture, found, **options)
                made[key] = exits.enter_context(opened)
            return made[key]

        yield subjects_of


@pytest.fixture
def promise(request: pytest.FixtureRequest, _pilotfish_subjects: Any) -> BoundPromise:
    """One promise of the architecture that the marker names; `promise.keep()` checks it."""
    marker = request.node.get_closest_marker("pilotfish")
    if marker is None or not hasattr(request, "param"):
        raise pytest.UsageError('the fixture `promise` wants @pytest.mark.pilotfish("Name")')
    given = marker.kwargs
    options = {key: given[key] for key in ("dtypes", "draft", "speculative") if given.get(key)}
    if isinstance(options.get("speculative"), str):
        from pilotfish.config import SpeculativeConfig

        options["speculative"] = SpeculativeConfig(method=options["speculative"])
    subjects = _pilotfish_subjects(marker.args[0], given.get("registry"), options)
    return BoundPromise(name=request.param, subjects=subjects)
