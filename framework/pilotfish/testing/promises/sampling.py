"""Promises about texts: seeds, sampling options, stop rules, against the definitions.

Knows: `LLM` and the naive oracle. Does not know: how the engine schedules.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Self

import attrs
import torch

from pilotfish.config import CacheConfig, SamplingParams
from pilotfish.engine import LLM, RequestOutput
from pilotfish.testing.compare import want_same_answer
from pilotfish.testing.naive import naive_answer
from pilotfish.testing.outcome import NotKnown, want
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

ANSWER = 10
COLD, COLDEST = 0.01, 1e-4
"""A temperature that makes the best token sure, unless another is nearly as good; the lowest."""
SURE = 14.0
"""Logits over the temperature that the best token is ahead, beside the logarithm of their number:
another one is then taken once in a million tokens."""
PROMPTS = 8
"""Of which one is taken whose best tokens are the surest."""
LOGPROB_ERROR = 1e-4
"""Of a float32 log-softmax against a float64 one."""


def sampled_options(count: int = ANSWER) -> list[SamplingParams]:
    """Every option of the sampler in some mixture, one seed each."""
    mixtures: list[dict[str, Any]] = [
        {},
        {"temperature": 0.0, "repetition_penalty": 1.4},
        {"temperature": 3.0, "top_k": 7},
        {"temperature": 0.8, "top_p": 0.7, "presence_penalty": 0.6},
        {"min_p": 0.1, "frequency_penalty": 1.5, "logit_bias": {3: 4.0, 5: -4.0}},
        {"temperature": 1.5, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        # Three tokens that would be said again and again, but for the penalties.
        {"logit_bias": {3: 20.0, 5: 19.0, 7: 19.5}, "frequency_penalty": 1.5},
    ]
    return [
        SamplingParams(max_tokens=count, seed=10 + i, ignore_eos=True, logprobs=2, **mixture)
        for i, mixture in enumerate(mixtures)
    ]


def same_seed_same_text(subject: Subject) -> None:
    """One request with one seed has one text, whatever is beside it and however it is cut."""
    params = sampled_options()
    prompts = [subject.tokens(n, n) for n in (3, LONG, 1, PAGE_SIZE, 9, 2 * PAGE_SIZE, 6)]
    for dtype in subject.dtypes:
        with subject.llm(dtype, max_batch_size=1) as llm:
            jobs = zip(prompts, params, strict=True)
            alone = [llm.generate(*job, progress=False)[0] for job in jobs]
        ways: dict[str, dict[str, Any]] = {
            "in one batch": {},
            "in chunks of 5 rows": {"max_batch_tokens": 5},
            "two at a time, pages of 16": {
                "max_batch_size": 2,
                "cache": CacheConfig(page_size_tokens=16, num_pages=16, prefix_caching=False),
            },
        }
        for way, options in ways.items():
            with subject.llm(dtype, **options) as llm:
                got = llm.generate(prompts, params, progress=False)
                again = llm.generate(prompts, params, progress=False)
            _want_equal(got, alone, f"{dtype}, {way}")
            _want_equal(again, alone, f"{dtype}, {way}, a second time")


def seeds_matter(subject: Subject) -> None:
    """Seeds are a request's own: equal ones give equal texts side by side, others another text."""
    seeds, prompt = [1, 2, 1, 3, 2, 4], subject.tokens(6)
    base = SamplingParams(max_tokens=ANSWER, ignore_eos=True)
    params = [attrs.evolve(base, seed=s) for s in seeds]
    with subject.llm() as llm:
        texts = _texts(llm, prompt, params)
        hots = _texts(llm, prompt, [attrs.evolve(p, temperature=50.0) for p in params])
        known = [_Greedy.of(subject, llm, subject.tokens(6, seed), base) for seed in range(PROMPTS)]
        surest = max(known, key=lambda greedy: len(greedy.text))
        cold = min(COLD, surest.temperature)
        count = max(1, len(surest.text))
        chilled = [attrs.evolve(p, temperature=cold, max_tokens=count) for p in params]
        colds = _texts(llm, surest.prompt, chilled)
    by_seed = dict(zip(seeds, texts, strict=True))
    want(
        texts == [by_seed[seed] for seed in seeds],
        "two requests with one seed and one prompt, side by side, differ",
        "the same text",
    )
    want(len(set(hots)) == 4, f"{len(set(hots))} texts of 4 seeds at temperature 50", "4")
    if not surest.text:
        raise NotKnown(
            f"of {PROMPTS} prompts none has a next token that a temperature of {COLDEST:g} makes "
            "sure: the best two logits lie too close"
        )
    want(
        set(colds) == {surest.text},
        f"{len(set(colds) - {surest.text})} texts of 4 seeds at temperature {cold:.2g} that are "
        "not the greedy one, whose logits make every token sure there",
        "the greedy text of every seed",
    )


def _texts(
    llm: LLM, prompt: Sequence[int], params: Sequence[SamplingParams]
) -> list[tuple[int, ...]]:
    outputs = llm.generate([list(prompt)] * len(params), list(params), progress=False)
    return [tuple(output.token_ids) for output in outputs]


@attrs.frozen(kw_only=True)
class _Greedy:
    """A prompt, the beginning of what temperature 0 makes of it that is sure, and the temperature.

    It is sure where a temperature of no less than COLDEST leaves the second-best logit no chance.
    """

    prompt: list[int]
    text: tuple[int, ...]
    temperature: float

    @classmethod
    def of(cls, subject: Subject, llm: LLM, prompt: list[int], params: SamplingParams) -> Self:
        (text,) = _texts(llm, prompt, [attrs.evolve(params, temperature=0.0)])
        rows = subject.alone([*prompt, *text[:-1]], num_prompt=len(prompt))[len(prompt) - 1 :]
        best = rows.float().topk(2, dim=-1).values
        ahead = (best[:, 0] - best[:, 1]) / (math.log(rows.shape[-1]) + SURE)
        sure = ahead.cummin(0).values
        count = int((sure >= COLDEST).sum())
        temperature = float(sure[count - 1]) if count else 0.0
        return cls(prompt=prompt, text=text[:count], temperature=temperature)


def texts_are_naive_decodings(subject: Subject) -> None:
    """Tokens and log probabilities are those of the definitions, computed anew for every token."""
    dtype = subject.dtype
    params = sampled_options(8)
    prompts = [subject.tokens(n, n) for n in (5, 9, 1, PAGE_SIZE, 6, 3, 2)]
    with subject.llm(dtype, max_batch_tokens=7) as llm:
        got = llm.generate(prompts, params, progress=False)
    for prompt, options, output in zip(prompts, params, got, strict=True):
        naive = naive_answer(_from_scratch(subject, dtype, prompt), prompt, options)
        want(
            list(output.token_ids) == naive.tokens,
            f"{list(output.token_ids)} with {_changed(options)}",
            f"{naive.tokens}",
        )
        records = output.logprobs or []
        numbers = [record.logprob for record in records]
        gaps = [abs(a - b) for a, b in zip(numbers, naive.logprobs, strict=False)]
        want(
            len(numbers) == len(naive.tokens)
            and [record.token_id for record in records] == naive.tokens
            and max(gaps) <= LOGPROB_ERROR,
            f"log probabilities {[round(n, 4) for n in numbers]}",
            f"{[round(n, 4) for n in naive.logprobs]}",
        )


def prompt_logprobs_are_the_models(subject: Subject) -> None:
    """Log probabilities of a prompt's tokens are the model's own, of the row before each token."""
    prompt = subject.tokens(LONG)
    scored = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    with subject.llm(max_batch_tokens=6) as llm:
        (output,) = llm.generate([prompt], scored, progress=False)
    logprobs = torch.log_softmax(subject.alone(prompt).double().cpu(), -1)
    wanted = [float(logprobs[i, token]) for i, token in enumerate(prompt[1:])]
    records = output.prompt_logprobs or [None]
    got = [record.logprob for record in records[1:] if record is not None]
    gaps = [abs(a - b) for a, b in zip(got, wanted, strict=False)]
    want(
        records[0] is None and len(got) == len(wanted) and max(gaps) <= LOGPROB_ERROR,
        f"{[round(n, 3) for n in got[:6]]} ...",
        f"{[round(n, 3) for n in wanted[:6]]} ...",
    )


def ties_go_to_the_lowest_id(subject: Subject) -> None:
    """Of tokens with exactly equal logits the lowest id is taken."""
    vocab = subject.vocab_size

    def pair(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            if tensor.shape[0] == vocab:
                tensor[1::2] = tensor[: vocab - 1 : 2]

    greedy = SamplingParams(temperature=0, max_tokens=ANSWER, ignore_eos=True)
    prompts, barred = [subject.tokens(5, seed) for seed in range(3)], subject.placeholder_ids
    with subject.with_weights(pair) as tied, tied.llm() as llm:
        outputs = llm.generate(prompts, greedy, progress=False)
        for prompt, output in zip(prompts, outputs, strict=True):
            answer = output.token_ids
            seen = itertools.takewhile(lambda token: token not in barred, answer[:-1])
            rows = llm.score([*prompt, *seen])[len(prompt) - 1 :]
            for token, row in zip(answer, rows, strict=False):
                best = (row == row.max()).nonzero()[:, 0].tolist()
                want(len(best) > 1, "no ties: equal weights gave unequal logits", "equal logits")
                want(token == best[0], f"token {token} of the equal ones {best}", f"{best[0]}")


def limits_cut_the_same_text(subject: Subject) -> None:
    """max_tokens, min_tokens, end tokens and the context cut a text; they do not change it."""
    prompt = subject.tokens(7)
    free = SamplingParams(max_tokens=2 * ANSWER, seed=3, temperature=0.9, ignore_eos=True)
    with subject.llm() as llm:
        text = list(llm.generate([prompt], free, progress=False)[0].token_ids)
        for count in (1, 2, PAGE_SIZE + 1, ANSWER):
            short = attrs.evolve(free, max_tokens=count)
            _want_cut(llm, prompt, short, f"max_tokens {count}", (text[:count], "length"))
        for place in (0, 3, ANSWER):
            ended, upto = attrs.evolve(free, stop_token_ids=[text[place]]), text.index(text[place])
            _want_cut(llm, prompt, ended, f"stop id {place}", (text[: upto + 1], "stop"))
        late = attrs.evolve(free, stop_token_ids=[text[1]], min_tokens=5)
        # Chunks change no bits, so the naive answer may be computed in one pass a token.
        naive = naive_answer(_from_scratch(subject, subject.dtype, prompt), prompt, late)
        where = "an end token before min_tokens"
        _want_cut(llm, prompt, late, where, (naive.tokens, naive.reason))
    for room in (1, 5):
        with subject.llm(max_length=len(prompt) + room) as llm:
            where = f"a context with room for {room}"
            _want_cut(llm, prompt, free, where, (text[:room], "length"))


def _want_cut(
    llm: LLM, prompt: list[int], params: SamplingParams, where: str, wanted: tuple[list[int], str]
) -> None:
    (output,) = llm.generate([prompt], params, progress=False)
    tokens, reason = wanted
    want(
        list(output.token_ids) == tokens and output.finish_reason == reason,
        f"{where}: {list(output.token_ids)}, {output.finish_reason}",
        f"{tokens}, {reason}",
    )


def _from_scratch(subject: Subject, dtype: str, prompt: Sequence[int]) -> Any:
    """A text -> the logits after it, from one pass over all of it in a state of its own."""
    return lambda text: subject.alone(text, dtype, num_prompt=len(prompt))[-1]


def _want_equal(got: Sequence[RequestOutput], wanted: Sequence[RequestOutput], where: str) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        want_same_answer(ours, theirs, f"{where}, request {ours.index} of {len(got)}", "as alone")


def _changed(params: SamplingParams) -> dict[str, Any]:
    """The options that are not the defaults."""
    given, usual = (attrs.asdict(one, recurse=False) for one in (params, SamplingParams()))
    return {name: value for name, value in given.items() if value != usual[name]}
