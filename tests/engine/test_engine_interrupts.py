"""An exception at every single call of the engine and the state: no token and no page is lost."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from engine.test_engine_faults import TIGHT, WORK, check_lengths
from pilotfish.engine.request import Request
from pilotfish.multimodal.embedding_cache import EmbeddingCache
from soak.strikes import AtCall, PlantedInterrupt
from support.toy_model import ToyEngine, output_of

pytestmark = pytest.mark.usefixtures("one_thread")

PARTS = ("pilotfish.engine.request", "pilotfish.engine.scheduler", "pilotfish.state")


def play(strike: AtCall) -> tuple[list[Any], list[Any], ToyEngine]:
    """Streams of `WORK` under a strike: outputs, deltas, and the engine, which is idle again."""
    engine = ToyEngine(**TIGHT)
    requests: list[Request] = []
    for prompt, params in WORK:
        requests.append(engine.admission.admit(prompt, params, streams=True))
        try:
            strike.during(lambda: engine.engine.add(requests[-1]))
        except PlantedInterrupt:
            if requests[-1] not in engine.scheduler.requests:
                engine.engine.add(requests[-1])
    while engine.scheduler.requests:
        try:
            strike.during(engine.engine.step)
        except PlantedInterrupt:
            check_lengths(engine)
    engine.check_idle()
    told = [
        ([t for delta in r.outbox for t in delta.token_ids], "".join(d.text for d in r.outbox))
        for r in requests
    ]
    outputs = [output_of(request) for request in requests]
    facts = [(o.token_ids, o.text, o.finish_reason, o.logprobs, o.prompt_logprobs) for o in outputs]
    return facts, told, engine


@pytest.mark.parametrize("part", PARTS)
def test_an_interrupt_at_every_call_changes_nothing(part: str) -> None:
    """Its entry or its return; as many calls as a test has time for, evenly."""
    never = AtCall(10**9, part, PlantedInterrupt)
    wanted, told, _ = play(never)
    num_calls = 10**9 - never._left
    assert num_calls > 100
    for at in range(1, num_calls + 1, 1 + num_calls // 150):
        strike = AtCall(at, part, PlantedInterrupt)
        assert play(strike)[:2] == (wanted, told), f"struck at call {at} of {part}"
        assert strike.has_struck


def test_an_interrupt_at_any_point_leaves_the_budget_of_embeddings_whole() -> None:
    """Before or after any call, of Python or of C, as a signal comes."""

    def struck(at: int) -> bool:
        cache, left = EmbeddingCache(16), [at]

        def see(frame: object, event: str, what: object) -> None:
            left[0] -= what is not sys.setprofile
            if not left[0]:
                left[0] = -1
                raise KeyboardInterrupt

        sys.setprofile(see)
        try:
            for number in range(4):
                cache.put(bytes([number % 3]), torch.zeros(2, 1))
            cache.clear()
            cache.put(b"", torch.zeros(2, 1))
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        assert cache.num_bytes == 8 * len(cache), f"struck at event {at}"
        return left[0] < 0

    at = 1
    while struck(at):
        at += 1
    assert at > 50
