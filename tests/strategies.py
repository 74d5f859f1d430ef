"""Hypothesis strategies for whole valid objects: page geometries, key sequences, lifecycles.

Sizes are drawn around multiples of the page, where off-by-one bugs live.
"""

from __future__ import annotations

import attrs
from hypothesis import strategies as st


@attrs.frozen(kw_only=True)
class PoolGeometry:
    """A tiny pool: so few pages that it runs out."""

    num_pages: int
    page_size_tokens: int
    lookahead: int
    prefix_caching: bool


def page_sizes() -> st.SearchStrategy[int]:
    """Small page sizes; 3 shows that nothing leans on powers of two."""
    return st.sampled_from((1, 2, 3, 4))


@st.composite
def pool_geometries(draw: st.DrawFn) -> PoolGeometry:
    """Two to twelve pages of one to four tokens, prefix caching mostly on."""
    return PoolGeometry(
        num_pages=draw(st.integers(2, 12)),
        page_size_tokens=draw(page_sizes()),
        lookahead=draw(st.sampled_from((0, 0, 1, 2))),
        prefix_caching=draw(st.sampled_from((True, True, True, False))),
    )


@attrs.frozen(kw_only=True)
class BranchingText:
    """An endless text: one trunk that all share, left at `branch_at` for one of a few branches.

    So few and such common beginnings that requests meet in the prefix cache all the time.
    """

    branch_at: int
    branch: int

    def keys(self, count: int) -> list[int]:
        """The first `count` tokens."""
        return [i % 3 if i < self.branch_at else 3 + self.branch for i in range(count)]


WRONG_KEY = 100
"""Keys from here on are in no text: drafted tokens that the target rejects."""


@attrs.frozen(kw_only=True)
class StepPlan:
    """One step: rows offered, how many of the last of them are wrong, and scratch rows."""

    num_rows: int
    num_rejected: int
    num_scratch: int


def branching_texts() -> st.SearchStrategy[BranchingText]:
    """Texts that part within the first few pages."""
    return st.builds(BranchingText, branch_at=st.integers(0, 12), branch=st.sampled_from((0, 0, 1)))


def step_plans() -> st.SearchStrategy[StepPlan]:
    """Rows of a chunk or of a verify; mostly nothing is rejected."""
    return st.builds(
        StepPlan,
        num_rows=st.sampled_from((0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 14)),
        num_rejected=st.sampled_from((0, 0, 0, 1, 2, 5)),
        num_scratch=st.sampled_from((0, 0, 1, 3)),
    )


def any_keys(max_size: int = 12) -> st.SearchStrategy[list[int]]:
    """Keys of any size and sign, as callers that hash images may pass."""
    return st.lists(st.integers(-(2**70), 2**70) | st.integers(-2, 20), max_size=max_size)


def salts() -> st.SearchStrategy[bytes]:
    """Mostly no salt."""
    return st.sampled_from((b"", b"", b"", b"other"))
