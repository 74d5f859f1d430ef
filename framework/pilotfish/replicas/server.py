"""Server: the process that leads a replica: an engine, and whoever sends it requests.

Knows: messages in their order, and passes between them. Does not know: other replicas, or texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import attrs

from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.loaded import Loaded, load_here
from pilotfish.loading.arithmetic import warn_of
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.parallel.lockstep import serve_idle
from pilotfish.plugins import load_registry
from pilotfish.protocols.optional import of_model
from pilotfish.ranks.channel import Channel
from pilotfish.ranks.launch import launcher_of
from pilotfish.ranks.messages import Call, decode, encode
from pilotfish.ranks.sharded_model import ShardedModel
from pilotfish.ranks.start_up import meet_replicas
from pilotfish.ranks.worker import CLOSE, READY
from pilotfish.replicas.tasks import CLOSED, NEWS, RELEASE_FAILED, ServedRequest, Task
from pilotfish.warn import PilotfishWarning

if TYPE_CHECKING:
    from pilotfish.parallel.group import Groups
    from pilotfish.ranks.start_up import StartUp

SERVE = f"{__name__}:Server"
"""Of StartUp."""


class Server:
    """One replica. Its methods are the calls that it is told to make; see `run`."""

    def __init__(self, start: StartUp, groups: Groups) -> None:
        self._start, self._groups = start, groups
        self._requests: dict[str, ServedRequest] = {}
        self._joins = self._left_at = 0
        self._is_open = True

    def run(self, channel: Channel) -> None:
        """Loads, says that it is ready, and serves until it is told to close.

        Raises HungUp where nobody is there to be served, and what a pass raises: no request can go
        on then, and the process ends.
        """
        with catch_warnings(record=True) as warned:
            simplefilter("always")
            loaded, self._lengths = _load(self._start, self._groups, channel)
        self._engine, self._host = loaded.engine, channel.host
        texts = [str(one.message) for one in warned if one.category is PilotfishWarning]
        try:
            channel.send(encode([(READY, (texts,))]))
            while self._hear(channel):
                channel.send(encode(self._step()))
        finally:
            if loaded.at_end is not None:
                loaded.at_end()
        channel.send(encode([(CLOSED, ())]))

    # What it is told

    def submit(self, task: Task) -> None:
        """Puts a request in the queue."""
        request = task.request(self._lengths)
        self._requests[request.request_id] = request
        self._engine.add(request)

    def meet(self, host: str, port: int, joins: int) -> None:
        """Meets the replicas that it shares experts with."""
        model: Any = self._engine.runner.model
        meeting, parallel = (host, port), self._start.parallel
        here = partial(meet_replicas, self._groups, meeting, parallel, self._host)
        if isinstance(model, ShardedModel):
            model.ranks.call("meet", meeting, here)
        else:
            here()
        self._joins = self._left_at = joins

    def join(self, joins: int) -> None:
        """One of the replicas that it shares experts with has another request: it takes part."""
        self._joins = joins

    def abort(self, request_ids: Sequence[str]) -> None:
        """Lets requests go; those that have ended are none of its."""
        found = (self._requests.pop(one, None) for one in request_ids)
        self._engine.abort([one for one in found if one is not None])

    def forget_cached_prefixes(self) -> None:
        """Empties the prefix cache."""
        self._engine.forget_cached_prefixes()

    # Parts

    def _hear(self, channel: Channel) -> bool:
        """Does what it was told, and waits until it has work. Whether it goes on.

        Meanwhile it takes part in the passes of replicas that it shares experts with; when it was
        told to close, too, until all have left.
        """
        idle_round = of_model(self._engine.runner.model).idle_round
        while True:
            if self._wants_pass or self._joins != self._left_at:
                if serve_idle(idle_round, partial(self._look, channel)):
                    return True
                self._left_at = self._joins
            elif self._is_open:
                self._take(channel)  # nobody has work
            else:
                return False

    @property
    def _wants_pass(self) -> bool:
        return self._is_open and self._engine.has_work

    def _look(self, channel: Channel) -> tuple[bool, int]:
        """As `lockstep.Look`."""
        while self._is_open and Channel.ready([channel], 0):
            self._take(channel)
        return self._wants_pass, self._joins

    def _take(self, channel: Channel) -> None:
        """Waits for a message, and does what it says."""
        message = channel.recv()
        self._is_open = message != CLOSE
        for method, arguments in decode(message) if self._is_open else ():
            getattr(self, method)(*arguments())
        if said := self._release_failed():
            channel.send(encode(said))

    def _step(self) -> list[Call]:
        """One pass, and what is said of it."""
        ended, scheduler = self._engine.step(), self._engine.scheduler
        now = perf_counter()
        served = (self._requests[one.request_id] for one in (*ended, *scheduler.running))
        news = [found for one in served if (found := one.take_news(now)) is not None]
        for request in ended:
            del self._requests[request.request_id]
        return [(NEWS, (tuple(news), scheduler.num_preemptions)), *self._release_failed()]

    def _release_failed(self) -> list[Call]:
        failure = self._engine.take_release_failure()
        return [] if failure is None else [(RELEASE_FAILED, (type(failure).__name__, str(failure)))]


def _load(start: StartUp, groups: Groups, front: Channel) -> tuple[Loaded, LengthRules]:
    """The engine, with memory for as many requests as was planned elsewhere."""
    options, plan = dict(start.options), start.memory_plan
    if plan.note:  # they were lowered there, so nobody is asked here
        options |= {"max_length": plan.max_seq_len, "max_batch_size": plan.max_batch_size}
    registry = options["registry"] = options["registry"] or load_registry()
    launcher = launcher_of(start.parallel, "ranks of a replica", front)
    prepared = prepare_from_options(
        **options, parallel=start.parallel, groups=groups, must_fit=False
    )
    prepared = attrs.evolve(prepared, memory_plan=plan)
    draft = None if prepared.draft is None else prepared.draft.config
    lengths = LengthRules.of(prepared.model.config, draft)
    loaded = load_here(prepared, start.options, registry, launcher)
    if prepared.pipeline_config.runtime.arithmetic != "fastest":
        warn_of(prepared)
    return loaded, lengths
