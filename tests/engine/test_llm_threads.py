"""One LLM for several threads: what they ask at once runs in one batch, and every text is right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pilotfish import LLM, SamplingParams
from support.toy_model import naive_answer, toy_registry, write_toy_checkpoint


def test_threads_get_their_own_texts(tmp_path: Path) -> None:
    """generate, stream and score at once."""
    with LLM(str(write_toy_checkpoint(tmp_path)), registry=toy_registry()) as llm:

        def ask(number: int) -> None:
            prompt = [97 + number % 5, 98, 99 + number % 3]
            params = SamplingParams(seed=number, max_tokens=9, ignore_eos=True)
            wanted = naive_answer(prompt, params)[0]
            if number % 3 == 0:
                got = list(llm.generate(prompt, params)[0].token_ids)
            elif number % 3 == 1:
                got = [t for delta in llm.stream(prompt, params) for t in delta.token_ids]
            else:
                assert llm.score(prompt).shape[0] == 3
                return
            assert got == wanted

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(ask, range(60)))
        assert llm.engine.scheduler.running == ()
