"""Promise: one property that every architecture keeps, by name, with a check that can fail.

Knows: how one is checked. Does not know: any one promise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import attrs

from pilotfish.testing.outcome import Broken

if TYPE_CHECKING:
    from pilotfish.testing.subject import Subject


@attrs.frozen(kw_only=True)
class Promise:
    """A promise and its check.

    name: as reports and tests show it. check: raises Broken, NotApplicable with the reason, or
        NotKnown with what was lacking.
    needs_drafter: whether it is about a drafter, and so is checked only where one is given.
    """

    name: str
    check: Callable[[Subject], None]
    needs_drafter: bool = False

    @property
    def says(self) -> str:
        """The promise in a sentence: the first line of the check's docstring."""
        return (self.check.__doc__ or "").strip().partition("\n")[0]

    def keep(self, subject: Subject) -> None:
        """Checks one subject. Raises Broken with the promise's name, NotApplicable or NotKnown.

        Every promise is broken of an example that does not load.
        """
        if subject.cannot_load:
            raise Broken(subject.cannot_load, "an example that loads", self.name)
        try:
            with subject.threads():
                self.check(subject)
        except Broken as broken:
            raise Broken(broken.got, broken.wanted, self.name) from broken.__cause__
