"""Native sampling: the noise's error and bits, every way of running, the torch path's answers.

The tests of what sampling means (tests/sampling) run on the native path too.
"""

from __future__ import annotations

import hashlib
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.native_cases import (
    guarded,
    in_every_way,
    instruction_set,
    instruction_sets,
    needs_library,
    same_bits,
)
from pilotfish.config import SamplingParams
from pilotfish.errors import PilotfishError, RequestError
from pilotfish.kernels.sampling import native
from pilotfish.sampling import (
    Sampler,
    SamplingRow,
    TokenHistory,
    Truncation,
    gumbel,
    gumbel_at,
    token_logprobs,
    truncate_,
)
from pilotfish.sampling.bitmask import apply_bitmask
from pilotfish.sampling.noise import _gumbel_from_bits
from pilotfish.sampling.truncation import find_cuts
from support.processors import aten_capability
from support.rows import row_after

pytestmark = needs_library

WIDTHS = [1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 255, 257, 1000, 5003]
AROUND = st.sampled_from(WIDTHS)


def on_the_torch_path(call: Callable[[], object]) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "serves", lambda device: False)
        return call()


def draw_logits(seed: int, rows: int, vocab: int, *, grain: float = 0.0) -> torch.Tensor:
    """Some masked, some zeros of both signs; with a grain, ties abound."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator) * 3.0
    if grain:
        logits = (logits / grain).round() * grain
    masked = torch.rand(rows, vocab, generator=generator) < 0.1
    masked[:, int(torch.randint(vocab, (1,), generator=generator))] = False
    return logits.masked_fill(masked, -math.inf)


# --- Noise


def counters_that_hash_to(bits: np.ndarray) -> torch.Tensor:
    """bits: [n] uint64. SplitMix64's finalizer, backwards, without its last step."""
    for multiplier, shift in ((0x94D049BB133111EB, 27), (0xBF58476D1CE4E5B9, 30)):
        bits = bits * np.uint64(pow(multiplier, -1, 1 << 64))
        whole = bits
        for _ in range(64 // shift):
            whole = bits ^ (whole >> np.uint64(shift))
        bits = whole
    return torch.from_numpy(bits.view(np.int64))


def bits_of_every_size() -> np.ndarray:
    """[n] uint64 from 0 to 2**63 - 1: both ends, each power of two and its neighbours, and many
    in between; and those around 1 - sqrt(1/2), where the mantissa changes its exponent."""
    random = np.random.default_rng(0)
    found = [
        np.arange(2000, dtype=np.uint64),
        np.uint64((1 << 63) - 1) - np.arange(2000, dtype=np.uint64),
    ]
    for power in range(63):
        found.append(random.integers(1 << power, 2 << power, 4000, dtype=np.uint64))
        found.append(np.uint64(1 << power) + np.arange(-1, 2).astype(np.uint64))
    for edge in (1 - 2**-0.5, 1 - 2**-1.5, 0.5, 1 - 1 / math.e):
        found.append(
            np.uint64(edge * 2**63) + np.arange(-300, 300).astype(np.uint64) * np.uint64(1 << 38)
        )
    return np.concatenate(found) & np.uint64((1 << 63) - 1)


def test_noise_is_no_further_from_float64_than_twice_torchs() -> None:
    bits = bits_of_every_size()
    counters = counters_that_hash_to(bits)
    got = torch.empty(len(bits))
    native.gumbel_of_counters(counters, got)
    eager = torch.empty(len(bits))
    on_the_torch_path(
        lambda: _gumbel_from_bits(counters.clone(), torch.empty_like(counters), eager)
    )
    v = np.clip(bits.astype(np.float32).astype(np.float64) * 2.0**-63, 2.0**-64, 1.0 - 2.0**-24)
    exact = torch.from_numpy(-np.log(-np.log1p(-v)))
    scale = exact.abs().clamp(min=1.0)
    error, usual = ((x.double() - exact).abs() / scale for x in (got, eager))
    assert error.max() <= 2 * usual.max()
    assert error.max() <= 1.5 * 2.0**-23  # and so it stays where torch gets worse


def test_a_small_v_keeps_each_of_its_bits() -> None:
    """Neighbours of v differ in the noise as long as float32 tells their logarithms apart."""
    v = np.arange(1, 1 << 12, dtype=np.uint64)
    got = torch.empty(len(v))
    native.gumbel_of_counters(counters_that_hash_to(v), got)
    assert (got.diff() < 0).all()


@pytest.mark.parametrize(
    ("seed", "position", "digest"),
    [
        (0, 0, "95279c64a2f50485"),
        (42, 1000, "56d05be76c44d019"),
        (2**63 - 1, 2**31, "d71e4f3dae232f8e"),
    ],
)
def test_the_bits_of_the_noise_are_these(seed: int, position: int, digest: str) -> None:
    """On every instruction set; a change of them changes the text of every seed."""
    pair = torch.tensor([seed]), torch.tensor([position])
    for index in instruction_sets():
        with instruction_set(index):
            noise = gumbel(*pair, 5003)
            assert hashlib.sha256(noise.numpy().tobytes()).hexdigest()[:16] == digest
            at = gumbel_at(*pair, torch.arange(5003)[None])
            assert torch.equal(at, noise)


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 2**40)), max_size=5), AROUND)
def test_noise_has_the_same_bits_in_every_way(pairs: list[tuple[int, int]], vocab: int) -> None:
    numbers = torch.tensor(pairs, dtype=torch.int64).reshape(len(pairs), 2)
    seeds, positions = numbers[:, 0], numbers[:, 1]
    noise = in_every_way(lambda: gumbel(seeds, positions, vocab))
    for row, pair in zip(noise, numbers, strict=True):
        assert torch.equal(gumbel(pair[:1], pair[1:], vocab)[0], row)
    ids = torch.randperm(vocab)
    at = in_every_way(lambda: gumbel_at(seeds, positions, ids.expand(len(pairs), -1)))
    assert torch.equal(at, noise[:, ids])


def test_noise_of_no_rows() -> None:
    none = torch.empty(0, dtype=torch.int64)
    assert gumbel(none, none, 7).shape == (0, 7)
    assert gumbel_at(none, none, none).shape == (0,)


# --- Tokens, laws and records

params_st = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([-1, -1, 1, 2, 7, 40, 1000]),
    top_p=st.sampled_from([1.0, 1.0, 1e-6, 0.3, 0.9, 0.9999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 1.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
    logit_bias=st.sampled_from([{}, {}, {0: 1.7}]),
    logprobs=st.sampled_from([None, 0, 3, 100]),
    min_tokens=st.sampled_from([0, 0, 5]),
)


def rows_of(options: Sequence[SamplingParams], vocab: int) -> list[SamplingRow]:
    prompt, answer = [0, vocab // 2, vocab - 1], [vocab // 3] * 2
    stops = [vocab - 1] if vocab > 1 else []
    return [
        row_after(TokenHistory(prompt, answer), params, seed=i * 77, stop_ids=stops)
        for i, params in enumerate(options)
    ]


def everything(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """[R, n] float64: token, processed logits and records of each row."""
    sampled = Sampler().sample(logits, rows)
    processed = Sampler().process_logits(logits, rows)
    found = []
    for token, probs, record in zip(sampled.token_ids, processed, sampled.logprobs, strict=True):
        numbers = [float(token)]
        if record is not None:
            numbers += [record.token_id, record.logprob, record.rank]
            numbers += [n for pair in record.top for n in pair]
        padded = numbers + [0.0] * (204 - len(numbers))
        found.append(torch.cat([torch.tensor(padded, dtype=torch.float64), probs.double()]))
    return torch.stack(found)


@settings(max_examples=40)
@given(
    st.integers(0, 2**31),
    AROUND,
    st.lists(params_st, min_size=1, max_size=5),
    st.sampled_from([0.0, 0.25, 2.0]),
)
def test_bits_do_not_depend_on_rows_threads_or_instructions(
    seed: int, vocab: int, options: list[SamplingParams], grain: float
) -> None:
    logits = draw_logits(seed, len(options), vocab, grain=grain)
    logits[:, 0] = 1.0  # what a ban leaves
    rows = rows_of(options, vocab)
    together = in_every_way(lambda: everything(logits, rows))
    for i in range(len(rows)):
        alone = everything(guarded(logits[i : i + 1]), rows[i : i + 1])
        assert same_bits(alone[0], together[i])


FIELDS = [
    "temperature",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "min_tokens",
]


@settings(max_examples=40)
@given(st.integers(0, 2**31), AROUND, st.lists(params_st, min_size=1, max_size=4))
def test_the_torch_path_says_the_same(seed: int, vocab: int, options: list[SamplingParams]) -> None:
    """Bit for bit where no exponential decides: edits, temperature, top_k, min_p, order, ranks."""
    options = [
        SamplingParams(**{f: getattr(p, f) for f in FIELDS} | {"top_p": 1.0}) for p in options
    ]
    logits = draw_logits(seed, len(options), vocab, grain=0.5)
    logits[:, 0] = 1.0
    rows = rows_of(options, vocab)
    got = Sampler().process_logits(logits, rows)
    wanted = on_the_torch_path(lambda: Sampler().process_logits(logits, rows))
    assert isinstance(wanted, torch.Tensor)
    assert same_bits(got + 0.0, wanted + 0.0)  # of equal zeros either sign may come out
    tokens, counts = list(range(len(rows))), [3] * len(rows)
    tokens = [min(token, vocab - 1) for token in tokens]
    found = token_logprobs(logits, tokens, counts)
    usual = on_the_torch_path(lambda: token_logprobs(logits, tokens, counts))
    assert isinstance(usual, list)
    for one, other in zip(found, usual, strict=True):
        assert (one.token_id, one.rank) == (other.token_id, other.rank)
        assert [i for i, _ in one.top] == [i for i, _ in other.top]
        assert one.logprob == pytest.approx(other.logprob, abs=1e-6)
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-6)


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
@pytest.mark.parametrize("options", [{}, {"top_k": 700}, {"top_p": 0.9999}])
def test_the_bound_of_the_noise_leaves_no_winner_out(spread: float, options: object) -> None:
    """Of many near rivals, in all orders, the first with the highest score is drawn."""
    assert isinstance(options, dict)
    logits = torch.randn(1, 1500, generator=torch.Generator().manual_seed(8)).mul(spread)
    params = SamplingParams(temperature=0.7, **options)
    rows = [SamplingRow(params=params, seed=1, position=i) for i in range(400)]
    scores = Sampler().process_logits(logits, rows[:1])
    scores = scores + gumbel(torch.ones(400, dtype=torch.int64), torch.arange(400), 1500)
    drawn = Sampler().sample(logits.expand(400, -1), rows).token_ids
    assert torch.equal(drawn, torch.from_numpy(scores.numpy().argmax(axis=1)))


@pytest.mark.parametrize("spread", [0.001, 1.0, 30.0])
@pytest.mark.parametrize("top_p", [1e-9, 0.1, 0.5, 0.95, 0.999, 1 - 1e-9])
def test_top_p_of_a_whole_vocabulary(spread: float, top_p: float) -> None:
    """The prefix by sorted masses, which are added up here one by one."""
    logits = draw_logits(3, 2, 49_153, grain=spread / 64) * spread
    for row, cut in zip(logits, find_cuts(logits, [Truncation(top_p=top_p)] * 2), strict=True):
        values = np.sort(row.double().numpy())[::-1]
        weights = np.exp(values - values[0])
        before = np.cumsum(weights) - weights
        slack = 2e-6
        low = max(1, int((before < (top_p - slack) * weights.sum()).sum()))
        high = int((before < (top_p + slack) * weights.sum()).sum())
        assert cut is not None
        assert low <= cut.num_tokens <= max(high, 1)
        assert cut.last_value == values[cut.num_tokens - 1]


@pytest.mark.parametrize("grain", [0.0, 0.5])
@pytest.mark.parametrize("vocab", [129, 2048, 49_153])
def test_top_k_of_every_size(vocab: int, grain: float) -> None:
    """Few are found from maxima of groups, of groups of groups, many from the whole row."""
    logits = draw_logits(vocab, 1, vocab, grain=grain)
    order = torch.sort(logits[0], descending=True, stable=True).indices
    for k in (1, 2, 3, 40, 63, 64, 65, 127, 383, 384, 385, 1535, 1536, 1537, 1600, vocab):
        if k <= vocab:
            work = logits.clone()
            truncate_(work, [Truncation(top_k=k)])
            wanted = torch.full_like(logits, -math.inf)
            wanted[0, order[:k]] = logits[0, order[:k]]
            assert same_bits(work, wanted), k


@pytest.mark.parametrize("every", [1, 8])
def test_top_k_where_each_group_has_one_high_token(every: int) -> None:
    """The maxima are then all high, or one in eight; there are fewer of them than of tokens."""
    vocab = 49_152
    tokens = torch.arange(vocab)
    is_high = (tokens % 128 < 16) & (tokens // 128 % every == 0)
    logits = torch.where(is_high, 5.0, 0.0)[None]
    order = torch.sort(logits[0], descending=True, stable=True).indices
    num_high = int(is_high.sum())
    for k in (384, 385, 767, 768, 769, 1000, 1536, 1537, num_high, num_high + 1, 7000):
        work = logits.clone()
        truncate_(work, [Truncation(top_k=k)])
        assert torch.equal(work[0].isfinite().nonzero()[:, 0], order[:k].sort().values), k


@given(st.integers(0, 2**31), AROUND, st.integers(0, 4))
def test_records_of_a_flat_row(seed: int, vocab: int, num_top: int) -> None:
    token = seed % vocab
    [record] = token_logprobs(torch.zeros(1, vocab), [token], num_top)
    assert record.logprob == pytest.approx(-math.log(vocab), abs=2e-14)
    assert record.rank == token + 1
    assert [i for i, _ in record.top] == list(range(min(num_top, vocab)))


def test_more_likeliest_tokens_than_there_are() -> None:
    [record] = token_logprobs(torch.tensor([[1.0, 3.0, 1.0]]), [2], 9)
    assert [i for i, _ in record.top] == [1, 0, 2]
    assert record.rank == 3


def test_the_likeliest_of_a_whole_vocabulary() -> None:
    logits = draw_logits(1, 1, 49_153, grain=0.01)
    [record] = token_logprobs(logits, [5], 49_153)
    order = torch.sort(logits[0], descending=True, stable=True).indices
    assert [i for i, _ in record.top] == order.tolist()


@given(st.integers(0, 2**31), st.integers(1, 100), st.integers(1, 3))
def test_bitmasks_have_the_torch_paths_bits(seed: int, vocab: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = -(-vocab // 32)
    masks = torch.randint(-(2**31), 2**31, (rows, words), generator=generator).int()
    logits = draw_logits(seed, rows, 2 * vocab)[:, ::2]
    logits[0, 0] = math.nan
    wanted = on_the_torch_path(lambda: apply_bitmask(logits, masks))
    assert isinstance(wanted, torch.Tensor)
    assert same_bits(in_every_way(lambda: apply_bitmask(logits, masks)), wanted)
    assert same_bits(apply_bitmask(guarded(logits), guarded(masks)), wanted)


# --- What cannot be sampled, and memory


@pytest.mark.parametrize("vocab", [1, 16, 17, 129, 300])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_bad_logits_are_found_wherever_they_are(
    vocab: int, value: float, temperature: float
) -> None:
    row = SamplingRow(params=SamplingParams(temperature=temperature), seed=0, position=0)
    for place in range(vocab):
        logits = torch.zeros(1, vocab)
        logits[0, place] = value
        if value > -math.inf or vocab == 1 or math.isnan(value):
            with pytest.raises(PilotfishError, match=r"NaN|\+inf|every token is masked"):
                Sampler().sample(logits, [row])
        else:
            assert int(Sampler().sample(logits, [row]).token_ids) != place


def test_a_bad_row_poisons_no_other() -> None:
    logits = draw_logits(0, 3, 700)
    logits[1, 5] = math.nan
    records = native.new_rows(3)
    for record in records:
        record.temperature = 1.0
    tokens = torch.full((3,), -7)
    assert not native.sample_rows(logits, records, tokens=tokens, draws=True)
    assert [record.status for record in records] == [0, native.BAD_LOGITS, 0]
    rows = [SamplingRow(params=SamplingParams(), seed=0, position=0)]
    for i in (0, 2):
        assert Sampler().sample(logits[i : i + 1], rows).token_ids[0] == tokens[i]


def test_temperatures_that_overflow_are_refused() -> None:
    logits = torch.tensor([[1e35, 0.0]])
    row = SamplingRow(params=SamplingParams(temperature=2e-5), seed=0, position=0, request_id="q")
    with pytest.raises(PilotfishError, match=r"'q'.*\+inf"):
        Sampler().sample(logits, [row])


def test_ids_of_no_token_are_refused_with_the_edit_that_has_them() -> None:
    logits, history = torch.zeros(1, 6), TokenHistory([1], [2])
    penalty = SamplingParams(presence_penalty=1.0)
    cases = [
        (SamplingRow(params=SamplingParams(logit_bias={2**70: 1.0}), seed=0, position=0), "bias"),
        (SamplingRow(params=SamplingParams(), seed=0, position=0, banned_ids=[6]), "banned"),
        (SamplingRow(params=SamplingParams(), seed=0, position=0, banned_ids=[-1]), "banned"),
        (row_after(history, penalty, seed=0, draft_ids=[9]), "the prompt or the answer"),
    ]
    for row, where in cases:
        for call in (Sampler().sample, Sampler().process_logits):
            with pytest.raises(RequestError, match=where):
                call(logits, [row])
    with pytest.raises(IndexError):
        token_logprobs(logits, [6], 1)


def test_a_row_to_be_cut_without_a_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="finite maximum"):
        find_cuts(torch.tensor([[0.0, math.nan]]), [Truncation(top_k=1)])


@pytest.mark.parametrize("vocab", [1, 3, 16, 17, 130, 1025])
def test_nothing_behind_an_array_is_touched(vocab: int) -> None:
    logits = guarded(draw_logits(vocab, 2, vocab))
    for options in ({}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}):
        records = native.new_rows(2)
        for record in records:
            record.temperature = 1.0
            for name, value in options.items():
                setattr(record, name, value)
        tokens, processed = guarded(torch.zeros(2, dtype=torch.int64)), guarded(logits)
        assert native.sample_rows(logits, records, tokens=tokens, draws=True, processed=processed)
    out = guarded(torch.full((vocab,), math.nan))
    native.gumbel_of_counters(guarded(torch.arange(vocab)), out)
    assert out.isfinite().all()


def test_cuts_in_place_of_rows_that_are_not_contiguous() -> None:
    wide = draw_logits(4, 3, 80)
    wanted = wide[:, ::2].clone()
    truncate_(wanted, [Truncation(top_k=5)] * 3)
    truncate_(wide[:, ::2], [Truncation(top_k=5)] * 3)
    assert same_bits(wide[:, ::2].contiguous(), wanted)


# --- What the processor says

PROGRAM = """
import hashlib, torch
from pilotfish.config import SamplingParams
from pilotfish.sampling import Sampler, SamplingRow, gumbel
torch.set_num_threads(2)
logits = torch.randint(-4000, 4000, (6, 5003), generator=torch.Generator().manual_seed(0)) / 512
options = [{}, {"top_p": 0.9}, {"top_k": 30, "top_p": 0.8}, {"min_p": 0.05}, {"temperature": 0}, {}]
found = []
for position in range(20):
    rows = [SamplingRow(params=SamplingParams(logprobs=3, **o), seed=5, position=position)
            for o in options]
    sampled = Sampler().sample(logits, rows)
    found += [sampled.token_ids.tolist(), sampled.logprobs]
    found.append(Sampler().process_logits(logits, rows).numpy().tobytes())
found.append(gumbel(torch.arange(3), torch.arange(3), 5003).numpy().tobytes())
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


def said_by_a_process(**variables: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_torchs_choice_of_instructions_changes_nothing() -> None:
    names = {aten_capability(name) for name in ("default", "avx2", "avx512")}
    said = {said_by_a_process(ATEN_CPU_CAPABILITY=name) for name in names}
    assert len(said) == 1


def test_there_is_another_path_without_the_library() -> None:
    assert len(said_by_a_process(PILOTFISH_INSTRUCTIONS="none")) == 65
