"""Failure: which rank ended a model's ranks, and why.

Knows: what ranks say last, how processes end. Does not know: what they were doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import RankError
from pilotfish.ranks.channel import Channel, HungUp
from pilotfish.ranks.messages import decode

if TYPE_CHECKING:
    from pilotfish.ranks.launch import Worker

_WORD_S = 2.0
"""How long is waited for a word of the rank that is to blame."""
_END_S = 0.2
"""How long a process that closed its channel may take to end."""
_TO_ANSWER = (
    "wanted every rank to answer until the model is closed: no request can go on, so close this "
    "model and make another one"
)
_TO_LOAD = (
    "wanted every rank to load within that: give a larger rank_timeout where it only takes longer"
)
_LOADING = ("starting", "loading")
"""What is being done before there is a model."""


def wanted_in(name: str) -> str:
    """Of a rank that did not answer in time. name: what was being done."""
    return _TO_LOAD if name in _LOADING else _TO_ANSWER


@attrs.frozen
class Failure:
    """what: which rank, and what became of it. traceback: of another process's exception. wanted:
    what was, and what to do.
    """

    what: str
    traceback: str = ""
    wanted: str = _TO_ANSWER

    def error(self) -> RankError:
        """A new one each time: an exception is raised once."""
        error = RankError(f"{self.what}; {self.wanted}")
        if self.traceback:
            error.add_note(self.traceback)
        return error


def cause_of(
    error: BaseException, name: str, workers: Sequence[Worker], parallel: ParallelConfig
) -> Failure:
    """What is to blame for an exception of this rank.

    error: its own, or ConnectionError or TimeoutError for one that another rank caused: then it
    is waited a little for a word of that rank. name: what was being done.
    """
    if not isinstance(error, ConnectionError | TimeoutError | HungUp):
        return Failure(f"rank 0 raised {type(error).__name__} in {name}: {error}")
    of_size = f"of {parallel.num_ranks}"
    found = _hear(workers, of_size, name)
    if found is not None:
        return found
    timeout_s = parallel.rank_timeout
    silent = [worker.rank for worker in workers if worker.last_words is None]
    if silent:
        ranks = " and ".join(map(str, silent))
        which = f"rank {ranks}" if len(silent) == 1 else f"ranks {ranks}"
        return Failure(
            f"{which} {of_size} did not answer for {timeout_s:g} s (rank_timeout) in {name}",
            wanted=wanted_in(name),
        )
    return Failure(f"the ranks lost one another in {name}: {error}")


def _hear(workers: Sequence[Worker], of_size: str, name: str) -> Failure | None:
    """The first worker that says what it raised, or ended without a word; None in time."""
    deadline = monotonic() + _WORD_S
    open_ones = {worker.channel: worker for worker in workers if worker.channel is not None}
    while True:
        for worker in workers:
            failure = _said(worker, of_size, name)
            if failure is not None:
                return failure
        if monotonic() > deadline:
            return None
        for channel in Channel.ready(open_ones, min(0.1, max(0.0, deadline - monotonic()))):
            worker = open_ones[channel]
            try:
                [(_, arguments)] = decode(channel.recv())
                worker.last_words = arguments() or worker.last_words
            except (HungUp, OSError):
                worker.has_hung_up = True
                del open_ones[channel]


def _said(worker: Worker, of_size: str, name: str) -> Failure | None:
    """What one worker is to blame for, as far as is known."""
    words = worker.last_words
    if words is not None:
        kind, text, traceback, is_of_others = words
        if is_of_others:
            return None
        return Failure(f"rank {worker.rank} {of_size} raised {kind} in {name}: {text}", traceback)
    if worker.has_hung_up or worker.channel is None:
        how = worker.how_it_ended(_END_S if worker.has_hung_up else 0.0)
        if how is not None:
            return Failure(f"rank {worker.rank} {of_size} {how} in {name}")
    return None
