"""Ranks that these tests start themselves are forked: imports are most of what a start costs.

Those of programs that they run, and of other rooms, are started as users start them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.forked import ranks_are_forked


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with ranks_are_forked():
        yield
