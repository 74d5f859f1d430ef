"""Planted drafters: each breaks a promise about drafts, or is told what cannot be asked of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pilotfish import LLM, SamplingParams, SpeculativeConfig, load_registry
from pilotfish.errors import PilotfishError
from pilotfish.registry import Plugin, Registry, SpeculatorSpec
from pilotfish.speculation import Proposal, StatelessConfig, TokenChooser
from pilotfish.testing import Result, Subject, check, promise_named, promises_named, save_tiny
from pilotfish.testing.drafters import ScriptedProposer
from speculation.pairs import METHODS, Shelf, registry

VOCAB = 96
LAW, WARM = "residual acceptance keeps the law", "a warm prefix drafts as a cold one"
ALONE, TEXT = "a draft batch equals singles", "the draft changes no text"


@attrs.frozen(kw_only=True)
class LearningConfig(StatelessConfig):
    """Says that it drafts from other requests' texts."""

    learns_across_requests: bool = True


class Bigrams(ScriptedProposer):
    """Draws what followed the newest token, with the target's noise, and says from which law."""

    def __init__(self, setup: Any = None) -> None:
        super().__init__(setup)
        self.chooser = TokenChooser(keeps_probs=True)

    def propose(self, batch: Any) -> Any:
        return [self.said(self.drawn(request)) for request in batch.requests]

    def drawn(self, request: Any) -> Proposal:
        text, tokens, probs = list(request.tokens), list[int](), list[torch.Tensor]()
        for _ in range(request.num_draft_tokens):
            logits = torch.zeros(1, VOCAB)
            for before, after in pairwise(text):
                if before == text[-1]:
                    logits[0, after] += 2.0
            [one] = self.chooser.choose(logits, [request.sampling_row(tokens)])
            if one is None or one.probs is None:
                break
            tokens.append(one.token)
            probs.append(one.probs)
            text.append(one.token)
        return Proposal(tokens=tokens, probs=torch.stack(probs) if probs else None)

    def said(self, proposal: Proposal) -> Proposal:
        return proposal


class OwnNoise(Bigrams):
    """Draws from the laws it says with a generator of its own."""

    generator = torch.Generator().manual_seed(0)

    def said(self, proposal: Proposal) -> Proposal:
        if proposal.probs is None:
            return proposal
        drawn = torch.multinomial(proposal.probs, 1, generator=self.generator)
        return attrs.evolve(proposal, tokens=drawn[:, 0].tolist())


class Likeliest(Bigrams):
    """Takes the likeliest token and says that it was drawn."""

    def said(self, proposal: Proposal) -> Proposal:
        if proposal.probs is None:
            return proposal
        return attrs.evolve(proposal, tokens=proposal.probs.argmax(-1).tolist())


class Flattened(Bigrams):
    """Says a flatter law than the one it drew from."""

    def said(self, proposal: Proposal) -> Proposal:
        if proposal.probs is None:
            return proposal
        flat = proposal.probs**0.2
        return attrs.evolve(proposal, probs=flat / flat.sum(-1, keepdim=True))


class OddProbs(Bigrams):
    """Laws that are none."""

    def said(self, proposal: Proposal) -> Proposal:
        if proposal.probs is None:
            return proposal
        probs = proposal.probs.clone()
        self.spoil(probs, proposal.tokens)
        return attrs.evolve(proposal, probs=probs)

    def spoil(self, probs: torch.Tensor, tokens: Any) -> None:
        raise NotImplementedError


class WithNaN(OddProbs):
    """A number that is none."""

    def spoil(self, probs: torch.Tensor, tokens: Any) -> None:
        probs[-1, 3] = float("nan")


class Negative(OddProbs):
    """Below zero, and of sum 1."""

    def spoil(self, probs: torch.Tensor, tokens: Any) -> None:
        probs[0, 4] -= 0.5
        probs[0, 5] += 0.5


class Unnormalized(OddProbs):
    """Of another sum."""

    def spoil(self, probs: torch.Tensor, tokens: Any) -> None:
        probs *= 1.01


class NoChance(OddProbs):
    """Nothing for the token that was drafted."""

    def spoil(self, probs: torch.Tensor, tokens: Any) -> None:
        probs[0] = 0.0
        probs[0, (tokens[0] + 1) % VOCAB] = 1.0


class Pool(ScriptedProposer):
    """Goes on as any text did that it has seen."""

    def __init__(self, setup: Any = None) -> None:
        super().__init__(setup)
        self.followed: dict[int, int] = {}

    def propose(self, batch: Any) -> Any:
        found = []
        for request in batch.requests:
            tokens = [request.tokens[-1]]
            while tokens[-1] in self.followed and len(tokens) <= request.num_draft_tokens:
                tokens.append(self.followed[tokens[-1]])
            found.append(Proposal(tokens=tokens[1 : request.num_draft_tokens + 1]))
        for request in batch.requests:
            self.followed |= dict(pairwise(request.tokens))
        return found


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("planted"), registry())


def with_drafter(drafter: type, config: str = "pilotfish.speculation:StatelessConfig") -> Registry:
    spec = SpeculatorSpec(method="own", config=config, model=f"{__name__}:{drafter.__name__}")
    return Registry(plugins=(*load_registry().plugins, Plugin(name="own", speculators=(spec,))))


def results(
    shelf: Shelf, names: Sequence[str], served: Registry, method: str, **options: Any
) -> Iterator[Result]:
    with Subject(
        name="llama",
        model=str(shelf.target("LlamaForCausalLM", "plain")),
        registry=served,
        dtypes=("float32",),
        num_threads=1,
        speculative=SpeculativeConfig(method=method),
        **options,
    ) as subject:
        for name in names:
            for promise in promises_named(name):
                yield check(promise, subject)


def test_a_drafter_that_copies_is_made_to_draft(shelf: Shelf) -> None:
    found = list(results(shelf, ["drafts"], load_registry(), "ngram"))
    assert [(r.promise, r.said) for r in found if r.status != "ok"] == []


def test_a_drafter_that_never_drafts_is_not_known_to_draft_right(shelf: Shelf) -> None:
    asked, served = (TEXT, WARM, ALONE), with_drafter(ScriptedProposer)
    found = {r.promise: r for r in results(shelf, asked, served, "own")}
    assert found[TEXT].status == "FAILED"
    assert found[WARM].status == found[ALONE].status == "not known"
    assert "nothing was drafted" in found[WARM].said


@pytest.mark.parametrize("drafter", [Bigrams, OwnNoise], ids=lambda kind: str(kind.__name__))
def test_tokens_drawn_from_what_is_said_of_them_keep_the_law(shelf: Shelf, drafter: type) -> None:
    (result,) = results(shelf, [LAW], with_drafter(drafter), "own")
    assert result.status == "ok", result.said


@pytest.mark.parametrize(
    ("drafter", "said"),
    [
        (Likeliest, "drafted tokens that are the likely ones more, or less, often"),
        (Flattened, "deviations; wanted at most 6: each token drawn from the law"),
        (WithNaN, "WithNaN.propose returned probs whose row"),
        (Negative, "which is below 0 for request"),
        (Unnormalized, "adds up to 1.01"),
        (NoChance, "the probability 0 for request"),
    ],
)
def test_laws_that_are_not_those_of_the_tokens_break_the_promise(
    shelf: Shelf, drafter: type, said: str
) -> None:
    (result,) = results(shelf, [LAW], with_drafter(drafter), "own")
    assert result.status == "FAILED"
    assert said in result.said


@pytest.mark.parametrize(
    ("drafter", "said"),
    [
        (WithNaN, r"probs whose row \d holds NaN or an infinity for request 0; wanted in each row"),
        (Negative, r"probs whose row 0 has -0\.\d+, which is below 0"),
        (Unnormalized, r"probs whose row 0 adds up to 1\.01"),
        (NoChance, r"probs whose row 0 gives its own token \d+ the probability 0"),
    ],
)
def test_the_engine_refuses_laws_that_are_none(shelf: Shelf, drafter: type, said: str) -> None:
    llm = LLM(
        str(shelf.target("LlamaForCausalLM", "plain")),
        speculative=SpeculativeConfig(method="own", width=3, acceptance="residual"),
        registry=with_drafter(drafter),
    )
    params = SamplingParams(temperature=1.0, max_tokens=9, ignore_eos=True, seed=1)
    with pytest.raises(PilotfishError, match=rf"^{drafter.__name__}\.propose returned {said}"):
        llm.generate([5, 17, 42, 17, 42, 17], params)


def test_a_row_that_depends_on_the_next_token_says_so(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prefix hit after a text that departs right at a page's end brings a row of that text."""
    from pilotfish_eagle.config import EagleConfig

    draft = {"draft": str(shelf.draft("eagle-1"))}
    (kept,) = results(shelf, [WARM], registry(), METHODS["eagle-1"], **draft)
    assert kept.status == "ok", kept.said
    real = EagleConfig.initialize.__func__  # type: ignore[attr-defined]
    monkeypatch.setattr(
        EagleConfig,
        "initialize",
        classmethod(lambda cls, *args, **o: attrs.evolve(real(cls, *args, **o), lookahead=0)),
    )
    (broken,) = results(shelf, [WARM], registry(), METHODS["eagle-1"], **draft)
    assert broken.status == "FAILED"
    assert "after a text with another last one, warm: " in broken.said
    assert "its config says `lookahead` 1" in broken.said


def test_what_is_learnt_from_other_requests_is_declared(shelf: Shelf) -> None:
    silent = {r.promise: r for r in results(shelf, (WARM, ALONE), with_drafter(Pool), "own")}
    for name in (WARM, ALONE):
        assert silent[name].status == "FAILED"
        assert "says `learns_across_requests` in its config" in silent[name].said
    served = with_drafter(Pool, f"{__name__}:LearningConfig")
    said = {r.promise: r.status for r in results(shelf, ["drafts"], served, "own")}
    of_others = {said.pop(name) for name in (WARM, ALONE, "drafts are the oracle's")}
    assert of_others == {"not applicable"}
    assert set(said.values()) == {"ok"}


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The most numbers that any tensor has."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            is_strided = made.layout == torch.strided  # and not packed by a library
            nbytes = made.untyped_storage().nbytes() if is_strided else made.nbytes
            self.found = max(self.found, nbytes // made.itemsize)
        return made


def test_no_table_of_the_vocabulary_squared_is_made(tmp_path: Path) -> None:
    size, served = 2048, load_registry()
    path = save_tiny("LlamaForCausalLM", "plain", tmp_path, served, {"vocab_size": size})
    with (
        Subject(
            name="many tokens",
            model=str(path),
            registry=served,
            dtypes=("float32",),
            speculative=SpeculativeConfig(method="ngram"),
        ) as subject,
        Largest() as largest,
    ):
        result = check(promise_named(LAW), subject)
    assert result.status == "ok", result.said
    assert size < largest.found < size * size / 4
