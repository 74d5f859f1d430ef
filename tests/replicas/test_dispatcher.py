"""What a dispatcher makes of what leads say, without any process."""

from __future__ import annotations

import threading
from time import monotonic
from warnings import catch_warnings, simplefilter

import pytest

from pilotfish.config import ParallelConfig
from pilotfish.ranks.failure import Failure
from pilotfish.ranks.messages import decode
from pilotfish.replicas.dispatcher import Dispatcher
from pilotfish.replicas.engine import ReplicaEngine
from pilotfish.replicas.router import Router
from pilotfish.replicas.tasks import JOIN, NEWS
from pilotfish.warn import PilotfishWarning


def dispatcher(num_replicas: int = 2, shared_by: int = 1) -> Dispatcher:
    """Of leads that were not begun."""
    parallel = ParallelConfig(data_parallel=num_replicas, expert_parallel=shared_by)
    router = Router(num_replicas, num_pages=8, max_batch_size=2)
    return Dispatcher(parallel, [b""] * num_replicas, router, lambda request: ())


def test_one_that_never_began_is_not_waited_for() -> None:
    until = monotonic() + 60
    dispatcher().replicas[0].lead.close(until)
    assert monotonic() < until


def test_a_finalizer_may_close_in_a_thread_that_does() -> None:
    lead = dispatcher().replicas[0].lead

    def twice() -> None:
        with lead._end_lock:
            lead.close(monotonic())

    thread = threading.Thread(target=twice, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def test_a_warning_that_is_raised_costs_no_other_one() -> None:
    all_of_them = dispatcher()
    engine = ReplicaEngine(all_of_them)
    all_of_them.on_ready(all_of_them.replicas[0].lead, ["first", "second"])
    with catch_warnings():
        simplefilter("error")
        for said in ("first", "second"):
            with pytest.raises(PilotfishWarning, match=said):
                engine.warn()
        engine.warn()


def test_preemptions_of_a_lost_process_still_count() -> None:
    all_of_them = dispatcher()
    lead = all_of_them.replicas[1].lead
    all_of_them.on_message(lead, NEWS, ((), 3))
    all_of_them.on_lost(lead, Failure("planted"), RuntimeError())
    for count in (1, 2):
        all_of_them.on_message(lead, NEWS, ((), count))
        assert all_of_them.num_preemptions == 3 + count


def test_pages_are_forgotten_also_where_another_replica_is_missing() -> None:
    all_of_them = dispatcher(shared_by=2)
    all_of_them.on_ready(all_of_them.replicas[0].lead, [])
    all_of_them.router.begin(0, [b"page"], 1)
    all_of_them.forget_cached_prefixes()
    assert not all_of_them.router.loads[0].names


@pytest.mark.parametrize(("shared_by", "ready", "told"), [(2, 4, 1), (2, 3, 1), (1, 4, 0)])
def test_after_an_interrupt_all_have_heard_of_as_many_requests(
    monkeypatch: pytest.MonkeyPatch, shared_by: int, ready: int, told: int
) -> None:
    """Those that have met; the others are told when they meet."""
    all_of_them, heard = dispatcher(4, shared_by), [list[bytes]() for _ in range(4)]
    for replica, messages in zip(all_of_them.replicas, heard, strict=True):
        monkeypatch.setattr(replica.lead, "tell", messages.append)
        if replica.lead.number < ready:
            all_of_them.on_ready(replica.lead, [])
    all_of_them.settle()
    assert [len(messages) for messages in heard[:2]] == [told] * 2
    assert [len(messages) for messages in heard[2:]] == [told if ready == 4 else 0] * 2
    assert heard[0] == heard[1]
    for messages in heard:
        assert [name for one in messages for name, _ in decode(bytearray(one))] == [JOIN] * len(
            messages
        )
