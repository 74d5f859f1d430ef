"""The sampler: rows are independent, ties go to the lowest id, bad logits are refused by name."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pilotfish.config import SamplingParams
from pilotfish.errors import PilotfishError
from pilotfish.sampling import Sampler, SamplingRow, TokenHistory, gumbel
from pilotfish.sampling.argmax import _first_of_maxima, lowest_argmax
from support.rows import row_after

params_st = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, -1, 1, 5, 300]),
    top_p=st.sampled_from([1.0, 1.0, 0.2, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.4]),
    logit_bias=st.sampled_from([{}, {}, {3: 2.5, 0: -1.0}]),
    logprobs=st.sampled_from([None, None, 0, 3]),
)


def row(
    params: SamplingParams | None = None, *, seed: int = 1, position: int = 0, name: str = "r"
) -> SamplingRow:
    options = params or SamplingParams()
    return SamplingRow(params=options, seed=seed, position=position, request_id=name)


def draw_logits(seed: int, rows: int, vocab_size: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(rows, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread


@settings(max_examples=25)
@given(
    st.integers(0, 2**31),
    st.sampled_from([8, 1001, 5003]),
    st.lists(st.tuples(params_st, st.integers(0, 2**63 - 1)), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
def test_a_row_does_not_depend_on_its_batch_mates(
    seed: int, vocab_size: int, requests: list[tuple[SamplingParams, int]], random: object
) -> None:
    """Alone or in any part of the batch, in any order: same tokens, logits and records."""
    logits = draw_logits(seed, len(requests), vocab_size)
    rows = [
        row_after(TokenHistory([1, 2, 2], [i, 4]), params, seed=s)
        for i, (params, s) in enumerate(requests)
    ]
    sampler = Sampler()
    together = sampler.sample(logits, rows)
    processed = sampler.process_logits(logits, rows)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    for part in ([order[0]], order, order[: len(order) // 2 + 1]):
        chosen = [rows[i] for i in part]
        again = sampler.sample(logits[part], chosen)
        assert torch.equal(again.token_ids, together.token_ids[part])
        assert again.logprobs == tuple(together.logprobs[i] for i in part)
        assert torch.equal(sampler.process_logits(logits[part], chosen), processed[part])


def test_a_row_does_not_depend_on_its_batch_mates_when_torch_forks_threads() -> None:
    """Rows longer than what torch gives to one thread, at odd offsets from one another."""
    logits = draw_logits(5, 6, 33_001)
    settings_of = [{}, {"top_p": 0.99}, {"min_p": 0.01}, {"top_k": 40, "top_p": 0.5}, {}, {}]
    rows = [
        row(SamplingParams(logprobs=2, temperature=min(i, 1) * 0.9, **options), seed=i)
        for i, options in enumerate(settings_of)
    ]
    sampler = Sampler()
    together = sampler.sample(logits, rows)
    processed = sampler.process_logits(logits, rows)
    for i, r in enumerate(rows):
        alone = sampler.sample(logits[i : i + 1].clone(), [r])
        assert alone.token_ids[0] == together.token_ids[i]
        assert alone.logprobs[0] == together.logprobs[i]
        assert torch.equal(sampler.process_logits(logits[i : i + 1].clone(), [r])[0], processed[i])


@given(
    st.integers(0, 2**31),
    st.sampled_from([5, 700, 4097]),
    st.lists(params_st, min_size=1, max_size=4),
)
def test_the_token_is_the_argmax_of_processed_logits_plus_noise(
    seed: int, vocab_size: int, options: list[SamplingParams]
) -> None:
    """Noise for the tokens that stay only gives the same token as noise for all."""
    logits = draw_logits(seed, len(options), vocab_size)
    rows = [
        row_after(TokenHistory([2, 0], [1] * i), params, seed=seed + i)
        for i, params in enumerate(options)
    ]
    scores = Sampler().process_logits(logits, rows)
    for i, r in enumerate(rows):
        if not r.params.is_greedy:
            scores[i] += gumbel(torch.tensor([r.seed]), torch.tensor([r.position]), vocab_size)[0]
    want = [max(range(vocab_size), key=lambda j: (float(s[j]), -j)) for s in scores]
    assert Sampler().sample(logits, rows).token_ids.tolist() == want


def test_text_depends_on_seed_and_position_only() -> None:
    """Neighbours, their number and their seeds, calls before: nothing shifts a request's noise."""
    logits = draw_logits(0, 1, 2000, 0.5)
    sampler = Sampler()
    alone = [int(sampler.sample(logits, [row(seed=5, position=p)]).token_ids) for p in range(60)]
    crowded = []
    for p in range(60):
        mates = [row(seed=p * 7 + i, position=i) for i in range(p % 4)]
        rows = [*mates, row(seed=5, position=p), *mates]
        crowded.append(
            int(sampler.sample(logits.expand(len(rows), -1), rows).token_ids[len(mates)])
        )
    assert crowded == alone
    other = [int(sampler.sample(logits, [row(seed=6, position=p)]).token_ids) for p in range(60)]
    assert sum(a == b for a, b in zip(alone, other, strict=True)) < 10
    assert len(set(alone)) > 40  # the position moves the noise


def test_equal_requests_with_equal_seeds_agree() -> None:
    logits = draw_logits(4, 1, 500).expand(3, -1)
    tokens = Sampler().sample(logits, [row(seed=9, position=3)] * 3).token_ids.tolist()
    assert len(set(tokens)) == 1


@given(st.integers(1, 300), st.data())
def test_greedy_ties_go_to_the_lowest_id(vocab_size: int, data: st.DataObject) -> None:
    places = data.draw(st.sets(st.integers(0, vocab_size - 1), min_size=1, max_size=6))
    logits = torch.full((2, vocab_size), -1.0)
    logits[0, list(places)] = 2.0
    params = SamplingParams(temperature=0.0)
    got = Sampler().sample(logits, [row(params), row(params)])
    assert got.token_ids.tolist() == [min(places), 0]
    ids, values = _first_of_maxima(logits)
    assert ids.tolist() == [min(places), 0]
    assert values.tolist() == [2.0, -1.0]
    assert torch.equal(lowest_argmax(logits)[1], values)


def test_the_comparison_argmax_shows_nan() -> None:
    scores = torch.tensor([[1.0, math.nan, 2.0], [0.0, -0.0, -1.0]])
    for argmax in (_first_of_maxima, lowest_argmax):
        ids, values = argmax(scores)
        assert math.isnan(float(values[0]))
        assert int(ids[1]) == 0


@pytest.mark.parametrize("top_k", [-1, 3])
def test_sampled_ties_go_to_the_lowest_id(top_k: int) -> None:
    """At 1e9 the noise is below float32's spacing, so equal logits stay exactly equal."""
    logits = torch.zeros(1, 40)
    logits[0, [9, 5, 31]] = 1e9
    for position in range(20):
        r = row(SamplingParams(top_k=top_k), position=position)
        assert int(Sampler().sample(logits, [r]).token_ids) == 5


@pytest.mark.parametrize("params", [SamplingParams(temperature=t, top_k=k) for t, k in
                                    [(0.0, -1), (1.0, -1), (0.7, 2)]])  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_bad_logits_name_the_request(params: SamplingParams, value: float) -> None:
    logits = torch.zeros(3, 6)
    logits[1, 4] = value
    rows = [row(name="first"), row(params, position=17, name="second"), row(name="third")]
    for call in (Sampler().sample, Sampler().process_logits):
        with pytest.raises(PilotfishError, match=r"'second', position 17.*(NaN|\+inf)"):
            call(logits, rows)


def test_nan_is_refused_even_under_a_ban() -> None:
    logits = torch.zeros(1, 6)
    logits[0, 2] = math.nan
    params = SamplingParams(min_tokens=3)
    r = row_after(TokenHistory([1]), params, seed=0, stop_ids=[2], request_id="q")
    with pytest.raises(PilotfishError, match=r"'q'.*NaN"):
        Sampler().sample(logits, [r])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_nothing_left_is_refused(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, min_tokens=1)
    logits = torch.full((1, 4), -math.inf)
    with pytest.raises(PilotfishError, match=r"'r'.*every token is masked"):
        Sampler().sample(logits, [row(params)])
    logits[0, 2] = 0.0
    banned = row_after(TokenHistory([1]), params, seed=0, stop_ids=[2], request_id="b")
    for call in (Sampler().sample, Sampler().process_logits):
        with pytest.raises(PilotfishError, match=r"'b'.*every token is masked"):
            call(logits, [banned])


@pytest.mark.parametrize("params", [SamplingParams(temperature=50.0, top_k=k, top_p=p) for k, p in
                                    [(-1, 1.0), (6, 1.0), (-1, 0.9999)]])  # fmt: skip
def test_masked_tokens_are_never_sampled(params: SamplingParams) -> None:
    logits = torch.full((1, 12), -math.inf)
    logits[0, [2, 7, 11]] = torch.tensor([0.0, -3.0, 1.0])
    rows = [row(params, seed=s) for s in range(600)]
    tokens = set(Sampler().sample(logits.expand(600, -1), rows).token_ids.tolist())
    assert tokens == {2, 7, 11}


@pytest.mark.parametrize(
    "logits", [torch.zeros(2, 5), torch.zeros(5), torch.zeros(1, 5, dtype=torch.bfloat16)]
)
def test_misshapen_logits_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"wanted \[1, V\] float32"):
        Sampler().sample(logits, [row()])
    with pytest.raises(ValueError, match=r"wanted \[1, V\] float32"):
        Sampler().process_logits(logits, [row()])


def test_an_empty_batch() -> None:
    sampled = Sampler().sample(torch.empty(0, 9), [])
    assert sampled.token_ids.shape == (0,)
    assert sampled.logprobs == ()


def test_logits_that_are_a_view() -> None:
    """Rows picked out of a larger tensor, not contiguous."""
    logits = draw_logits(8, 12, 700)[::3, 1::2]
    assert not logits.is_contiguous()
    options = [
        SamplingParams(temperature=t, top_k=k) for t, k in [(0, -1), (1, -1), (1, 7), (2, 3)]
    ]
    rows = [row(params, seed=i) for i, params in enumerate(options)]
    want = Sampler().sample(logits.contiguous(), rows).token_ids
    assert torch.equal(Sampler().sample(logits, rows).token_ids, want)


def test_logits_from_any_autograd_mode() -> None:
    params = SamplingParams(top_k=4, logprobs=1, presence_penalty=0.5)
    rows = [row_after(TokenHistory([1], [2]), params, seed=3)]
    logits = draw_logits(6, 1, 50)
    want = Sampler().sample(logits, rows)
    with torch.inference_mode():
        inferred = logits * 1.0
    for other in (inferred, logits.clone().requires_grad_()):
        got = Sampler().sample(other, rows)
        assert torch.equal(got.token_ids, want.token_ids)
        assert got.logprobs == want.logprobs
        assert not Sampler().process_logits(other, rows).requires_grad


def test_the_room_imports_without_torch() -> None:
    code = "import sys, pilotfish.sampling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    import pilotfish.sampling as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = room.nothing_such
