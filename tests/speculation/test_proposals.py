"""What a drafter returns is checked, and what it fails to drop costs no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig, load_registry
from pilotfish.errors import PilotfishError
from pilotfish.registry import Plugin, Registry, SpeculatorSpec
from pilotfish.speculation import Proposal
from pilotfish.testing import Subject, check, promise_named
from pilotfish.testing.drafters import ScriptedProposer
from speculation.pairs import Shelf
from support.engine_strategies import Job
from support.toy_model import VOCAB, Drafting, ToyEngine, naive_answer

ASKED = "the draft is what was asked for"
PARAMS = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
LAWS = torch.full((2, VOCAB), 1 / VOCAB)

FAULTS: dict[str, tuple[Any, str]] = {
    "nothing": (None, r"returned None; wanted a list with one Proposal for each of 1 request"),
    "a generator": (iter(()), "wanted a list with one Proposal"),
    "a text": ("abc", r"returned 'abc' \(str\); wanted a list with one Proposal"),
    "too few": ([], "returned 0 proposals; wanted one for each of 1 requests"),
    "a list of tokens": (
        [[1, 2]],
        r"returned \[1, 2\] \(list\) for request 0; wanted a .*Proposal",
    ),
    "no tokens": ([Proposal(tokens=None)], "tokens None for request 0; wanted a list of token ids"),  # type: ignore[arg-type]
    "text for tokens": ([Proposal(tokens="ab")], "tokens 'ab'.* wanted a list of token ids"),  # type: ignore[arg-type]
    "a tensor": ([Proposal(tokens=torch.tensor([1]))], "tokens tensor.*wanted a list"),  # type: ignore[arg-type]
    "a None among tokens": ([Proposal(tokens=[1, None])], "a token None for request 0; .* ints"),  # type: ignore[list-item]
    "floats": (
        [Proposal(tokens=[1.5, 1.5])],  # type: ignore[list-item]
        r"a token 1.5 \(float\) for request 0; wanted .* ints",
    ),
    "a bool": (
        [Proposal(tokens=[True])],
        r"a token True \(bool\) .* wanted token ids that are ints",
    ),
    "probs of another length": (
        [Proposal(tokens=[1], probs=LAWS)],
        rf"probs \[2, {VOCAB}\] of float32 for request 0; wanted probs \[1, {VOCAB}\] of floats",
    ),
    "probs of another vocabulary": ([Proposal(tokens=[1, 2], probs=LAWS[:, 1:])], r"probs \[2, "),
    "probs that are whole numbers": (
        [Proposal(tokens=[1, 2], probs=LAWS.long())],
        "of int64 for request 0",
    ),
    "a list for probs": ([Proposal(tokens=[1], probs=[0.5])], r"probs \[0.5\] \(list\)"),  # type: ignore[arg-type]
}


class Faulty(ScriptedProposer):
    """Returns what it is told to."""

    def __init__(self, found: Any) -> None:
        super().__init__()
        self._found = found

    def propose(self, batch: Any) -> Any:
        return self._found


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_no_list_of_proposals_is_refused_by_the_drafters_name(name: str) -> None:
    found, said = FAULTS[name]
    engine = ToyEngine(drafting=Drafting(proposer=Faulty(found)))
    engine.add([1, 2, 3], PARAMS)
    with pytest.raises(PilotfishError, match=said) as caught:
        engine.engine.step()
    assert str(caught.value).startswith("Faulty.propose returned ")


@pytest.mark.parametrize("tokens", [[1] * 40, [-1], [2**70], [5, VOCAB, 1], range(4), ()])
def test_too_many_tokens_and_foreign_ids_cost_nothing(tokens: Any) -> None:
    job: Job = ([1, 2, 3], PARAMS)
    engine = ToyEngine(drafting=Drafting(proposer=Faulty([Proposal(tokens=tokens)])))
    [output] = engine.run([job])
    assert list(output.token_ids) == naive_answer(*job)[0]


def test_probs_of_the_right_shape_are_taken() -> None:
    engine = ToyEngine(drafting=Drafting(proposer=Faulty([Proposal(tokens=[1, 2], probs=LAWS)])))
    assert engine.run([([1, 2, 3], PARAMS)])[0].finish_reason == "length"


# Through LLM and the kit


class Clinging(ScriptedProposer):
    """Never lets a request go."""

    def release(self, request_id: str) -> None:
        raise RuntimeError("in release")


class TooMany(ScriptedProposer):
    """One token more than asked."""

    def propose(self, batch: Any) -> Any:
        return [Proposal(tokens=[0] * (one.num_draft_tokens + 1)) for one in batch.requests]


class Foreign(ScriptedProposer):
    """Ids that the target does not have."""

    def propose(self, batch: Any) -> Any:
        return [Proposal(tokens=[10**6] * one.num_draft_tokens) for one in batch.requests]


class Floats(ScriptedProposer):
    """No ids at all."""

    def propose(self, batch: Any) -> Any:
        return [Proposal(tokens=[1.5] * one.num_draft_tokens) for one in batch.requests]  # type: ignore[list-item]


class Silent(ScriptedProposer):
    """Returns nothing."""

    def propose(self, batch: Any) -> Any:
        return None


def registry_with(drafter: type) -> Registry:
    spec = SpeculatorSpec(
        method="own",
        config="pilotfish.speculation:StatelessConfig",
        model=f"{__name__}:{drafter.__name__}",
    )
    return Registry(plugins=(*load_registry().plugins, Plugin(name="own", speculators=(spec,))))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("proposals")
    return str(Shelf(folder, load_registry()).target("LlamaForCausalLM", "plain"))


@pytest.mark.parametrize(
    ("drafter", "said"),
    [
        (TooMany, "got TooMany.propose returned 4 tokens; wanted at most 3, the width"),
        (
            Foreign,
            "got Foreign.propose returned the token 1000000; wanted ids of the target, 0 to 95",
        ),
        (Floats, "got Floats.propose returned a token 1.5 (float) for request 0; wanted token ids"),
        (Silent, "got Silent.propose returned None; wanted a list with one Proposal"),
    ],
)
def test_the_kit_says_what_a_drafter_owes(llama: str, drafter: type, said: str) -> None:
    with Subject(
        name="own",
        model=llama,
        registry=registry_with(drafter),
        dtypes=("float32",),
        num_threads=1,
        speculative=SpeculativeConfig(method="own"),
    ) as subject:
        result = check(promise_named(ASKED), subject)
        other = check(promise_named("a draft batch equals singles"), subject)
    assert result.status == "FAILED"
    assert result.said.startswith(said)
    assert "zip" not in other.said


def test_a_release_that_raises_costs_no_answer(llama: str) -> None:
    prompts = [[1, 2, 3], [4, 5], [6] * 7]
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (3, 9, 6)]
    with LLM(llama) as plain:
        wanted = [out.token_ids for out in plain.generate(prompts, params)]
    with LLM(llama, speculative="own", registry=registry_with(Clinging)) as llm:
        with pytest.warns(RuntimeWarning, match="release of a request raised RuntimeError: in rel"):
            outputs = llm.generate(prompts, params)
        assert [out.token_ids for out in outputs] == wanted
        with pytest.warns(RuntimeWarning, match="its answer is whole"):
            deltas = list(llm.stream(prompts[1], params[1]))
        assert deltas[-1].output is not None
        assert deltas[-1].output.token_ids == wanted[1]
        llm.engine.runner.state.check()
        assert not llm.engine.runner.state.request_ids


def test_a_release_that_raises_costs_none_when_pages_run_out(llama: str) -> None:
    prompts = [[1, 2, 3], [4, 5], [6] * 7]
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
    tight = CacheConfig(page_size_tokens=4, num_pages=9)
    with LLM(llama) as plain:
        wanted = [out.token_ids for out in plain.generate(prompts, params)]
    own = registry_with(Clinging)
    with LLM(llama, speculative="own", registry=own, cache=tight, max_length=32) as llm:
        with pytest.warns(RuntimeWarning, match="release of a request"):
            outputs = llm.generate(prompts, params)
        assert llm.num_preemptions
    assert [out.token_ids for out in outputs] == wanted
