"""A toy architecture: its logits are a hash of the whole context, read back through the pages.

Any mistake about pages, lengths, positions or chunks changes the text. It needs no network and no
weights worth the name, so the engine is tested quickly and without an architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import attrs
import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from pilotfish.batch import RaggedBatch, RequestContext
from pilotfish.config import ModelConfig, PipelineConfig, SamplingParams
from pilotfish.engine.admission import Admission
from pilotfish.engine.engine import Engine
from pilotfish.engine.outputs import RequestOutput
from pilotfish.engine.request import Request
from pilotfish.engine.runner import Runner
from pilotfish.engine.scheduler import Scheduler
from pilotfish.engine.speculative import Speculation
from pilotfish.kernels import KernelBackend
from pilotfish.protocols import ModelInputs, ModelOutputs, ReturnHiddenStates, ReturnLogits
from pilotfish.registry import ArchitectureSpec, Plugin, Registry
from pilotfish.sampling import Sampler, SamplingRow, TokenHistory
from pilotfish.speculation import Proposer, SpeculationCounters, WidthPolicy
from pilotfish.speculation.acceptance import Acceptance, CoupledAcceptance
from pilotfish.speculation.width import FixedWidth
from pilotfish.state import KVCacheInputs, KVCacheParams, PagedStateSpec, StateManager, StateSpec
from pilotfish.tokenization.text_stream import BYTE_LETTERS
from pilotfish.tokenization.tokenizer import Tokenizer
from pilotfish.weights import WeightSource

EOS = 256
VOCAB = 257
"""256 bytes and an end token."""
_PRIME, _FACTOR = 2**31 - 1, 1_000_003
_MIX = np.arange(1, VOCAB + 1, dtype=np.int64) * 2654435761 % _PRIME


def context_hash(tokens: Sequence[int]) -> int:
    """A number that depends on every token and its place."""
    value = 7
    for token in tokens:
        value = context_hash_step(value, token)
    return value


def logits_of(number: int) -> NDArray[np.float32]:
    """[V] float32 in [0, 6), a function of the hash; the letters are likelier than other bytes."""
    mixed = (_MIX * (number % 46337 + 1) + number) % _PRIME
    logits = (mixed / _PRIME * 6).astype(np.float32)
    logits[97:123] += 2
    logits[EOS] += 1.5
    return logits


@attrs.frozen(kw_only=True)
class ToyConfig:
    """What the toy's config.json says."""

    vocab_size: int = VOCAB
    max_seq_len: int = 64
    dtype: str = "float32"

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        model = model_config or pipeline_config.model
        limit = model.max_length or model.huggingface_config.max_position_embeddings
        return cls(vocab_size=model.huggingface_config.vocab_size, max_seq_len=limit)

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        return self

    def get_kv_params(self) -> KVCacheParams:
        return KVCacheParams(num_layers=1, num_kv_heads=1, head_dim=1)

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        return (toy_cache(),)

    def get_max_seq_len(self) -> int:
        return self.max_seq_len


def toy_cache() -> PagedStateSpec:
    """A row holds the hash of the context up to it, in two halves, and its token."""
    return PagedStateSpec(name="toy", num_layers=1, row_shape=(3,), dtype="float32")


class ToyModel:
    """Each row's hash continues the hash in the row before, as attention would see it.

    nan_token: a context that holds this token gets logits that are NaN.
    faults: called with the name of each entry point; may raise.
    """

    config_class: ClassVar[type[Any]] = ToyConfig
    keeps_bits: ClassVar[bool] = True
    """What NumPy computes here cannot be tried."""

    def __init__(
        self,
        pipeline_config: Any = None,
        arch_config: ToyConfig | None = None,
        backend: KernelBackend | None = None,
        *,
        device: torch.device | None = None,
        return_logits: ReturnLogits = ReturnLogits.VARIABLE,
        return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE,
        aux_hidden_state_layers: Sequence[int] = (),
    ) -> None:
        self.config = arch_config or ToyConfig()
        self.device = device or torch.device("cpu")
        self.return_logits = return_logits
        self.return_hidden_states = return_hidden_states
        self.row_multiple = 1
        self.return_hidden_states = return_hidden_states
        self.nan_token: int | None = None
        self.passes: list[tuple[int, ...]] = []
        self.released: list[str] = []

    @property
    def state(self) -> tuple[StateSpec, ...]:
        return self.config.get_state_specs()

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {"toy.weight": (2, 2)}

    def load_model(self, weights: WeightSource) -> None:
        assert set(weights.infos) == {"toy.weight"}

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> ModelInputs:
        batch = RaggedBatch.pack([c.scheduled_tokens for c in replica_batches[0]], self.device)
        wanted = [return_n_logits] if isinstance(return_n_logits, int) else list(return_n_logits)
        return ModelInputs(
            tokens=batch.tokens,
            input_row_offsets=batch.input_row_offsets,
            return_n_logits=torch.tensor(wanted, dtype=torch.int64),
            kv_cache_inputs=kv_cache_inputs,
        )

    def prepare_next_token_inputs(
        self, next_tokens: torch.Tensor, prev_model_inputs: ModelInputs
    ) -> ModelInputs:
        raise NotImplementedError("the engine makes the inputs of every pass anew")

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        kv = model_inputs.kv_cache_inputs
        assert kv is not None
        self.passes.append(kv.row_counts)
        size, memory = kv.page_size_tokens, kv.blocks[0].numpy()
        offsets = model_inputs.input_row_offsets.tolist()
        tokens, slots = model_inputs.tokens.tolist(), kv.write_slots.tolist()
        rows: list[NDArray[np.float32]] = []
        hidden: list[tuple[int, int]] = []
        logit_offsets = [0]
        for b, (length, wanted) in enumerate(
            zip(kv.lengths, model_inputs.return_n_logits.tolist(), strict=True)
        ):
            table = kv.lookup_table[b].numpy()
            own = range(offsets[b], offsets[b + 1])
            for row, i in enumerate(own, start=length):
                number = self._continue(memory[table].reshape(-1, 3)[:row], tokens[i])
                halves: tuple[int, int] = (-1, -1) if number is None else divmod(number, 65536)
                memory[slots[i] // size, slots[i] % size] = (*halves, tokens[i])
                hidden.append(halves)
                if i >= offsets[b + 1] - wanted:
                    rows.append(self._logits(number))
            logit_offsets.append(len(rows))
        logits = np.stack(rows) if rows else np.zeros((0, VOCAB), dtype=np.float32)
        return ModelOutputs(
            logits=torch.from_numpy(logits),
            logit_offsets=torch.tensor(logit_offsets),
            hidden_states=torch.tensor(hidden, dtype=torch.float32),
        )

    def release(self, request_id: str) -> None:
        self.released.append(request_id)

    def _continue(self, before: NDArray[np.float32], token: int) -> int | None:
        """The hash after one more token; None where a row of the context is not to be trusted.

        before: [rows, 3], the context; all of it is read: every row must continue the one before.
        """
        if token == self.nan_token or not np.isfinite(before).all():
            return None
        high, low, tokens = before.astype(np.int64).T
        hashes = np.full(len(before) + 1, 7, dtype=np.int64)
        hashes[1:] = high * 65536 + low
        if ((hashes[:-1] * _FACTOR + tokens + 1) % _PRIME != hashes[1:]).any():
            return None
        return context_hash_step(int(hashes[-1]), token)

    def _logits(self, number: int | None) -> NDArray[np.float32]:
        if number is None:
            return np.full(VOCAB, np.nan, dtype=np.float32)
        return logits_of(number)


def context_hash_step(number: int, token: int) -> int:
    """The hash after one more token."""
    return (number * _FACTOR + token + 1) % _PRIME


def toy_tokenizer() -> Tokenizer:
    """One token a byte, and an end token."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(BYTE_LETTERS), merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens(["<end>"])
    return Tokenizer(
        _Codec(backend),
        backend,
        vocab_size=VOCAB,
        special_tokens={"eos_token": "<end>"},
        special_ids=frozenset({EOS}),
        eos_token_ids=(EOS,),
    )


@attrs.frozen
class _Codec:
    backend: tokenizers.Tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def toy_registry() -> Registry:
    """A registry that serves the toy and nothing else."""
    spec = ArchitectureSpec(
        names=("ToyHashModel",),
        config="support.toy_model:ToyConfig",
        model="support.toy_model:ToyModel",
    )
    return Registry(plugins=(Plugin(name="toy", architectures=(spec,)),))


def write_toy_checkpoint(
    directory: Path, *, max_length: int = 64, generation_eos: int | list[int] | None = None
) -> Path:
    """A checkpoint on disk that `LLM` can open with `toy_registry()`."""
    config = {
        "architectures": ["ToyHashModel"],
        "model_type": "toy_hash",
        "vocab_size": VOCAB,
        "max_position_embeddings": max_length,
        "eos_token_id": EOS,
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    if generation_eos is not None:
        generation = json.dumps({"eos_token_id": generation_eos})
        (directory / "generation_config.json").write_text(generation)
    save_file({"toy.weight": torch.zeros(2, 2)}, str(directory / "model.safetensors"))
    backend = toy_tokenizer().backend
    assert backend is not None
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>"})
    )
    return directory


@attrs.define(kw_only=True)
class Drafting:
    """What a ToyEngine drafts with; nothing by default."""

    proposer: Proposer | None = None
    policy: WidthPolicy = attrs.field(factory=lambda: FixedWidth(3))
    acceptance: Acceptance = attrs.field(factory=lambda: CoupledAcceptance(Sampler()))
    paged_caches: Sequence[PagedStateSpec] = ()
    lookahead: int = 0
    num_scratch: int = 0

    def new_counters(self) -> SpeculationCounters | None:
        return None if self.proposer is None else SpeculationCounters(method="m", acceptance="c")


@attrs.define(kw_only=True)
class ToyEngine:
    """An engine over the toy, with every part at hand. State is poisoned wherever nobody may read.

    One step is what `LLM` does; `run` is its loop.
    """

    num_pages: int = 64
    page_size: int = 4
    max_batch_size: int = 4
    max_batch_tokens: int = 8
    max_drafted_rows: int = 512  # so many that the scheduler has drafts to cut
    max_seq_len: int = 64
    prefix_caching: bool = True
    with_text: bool = True
    drafting: Drafting | None = None
    model: ToyModel = attrs.field(init=False)
    state: StateManager = attrs.field(init=False)
    runner: Runner = attrs.field(init=False)
    scheduler: Scheduler = attrs.field(init=False)
    engine: Engine = attrs.field(init=False)
    admission: Admission = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.model = ToyModel(arch_config=ToyConfig(max_seq_len=self.max_seq_len))
        drafting = self.drafting or Drafting()
        self.state = StateManager(
            [toy_cache(), *drafting.paged_caches],
            num_pages=self.num_pages,
            page_size_tokens=self.page_size,
            prefix_caching=self.prefix_caching,
            lookahead=drafting.lookahead,
            poison=True,
        )
        self.scheduler = Scheduler(
            self.state,
            max_batch_size=self.max_batch_size,
            max_batch_tokens=self.max_batch_tokens,
            on_release=self._release,
            num_scratch=drafting.num_scratch,
        )
        made = None
        if drafting.proposer is not None:
            made = Speculation(
                acceptance=drafting.acceptance,
                proposer=drafting.proposer,
                policy=drafting.policy,
                vocab_size=VOCAB,
                num_scratch=drafting.num_scratch,
                max_batch_tokens=self.max_drafted_rows,
            )
        self.runner = Runner(self.model, self.state, Sampler(), made)
        self.engine = Engine(self.scheduler, self.runner)
        self.admission = Admission(
            vocab_size=VOCAB,
            max_seq_len=self.max_seq_len,
            eos_token_ids=(EOS,),
            max_cached_tokens=self.num_pages * self.page_size,
            tokenizer=toy_tokenizer() if self.with_text else None,
            new_counters=drafting.new_counters,
        )

    def _release(self, request_id: str) -> None:
        self.runner.release(request_id)
        self.model.release(request_id)

    def add(
        self, prompt: str | Sequence[int], params: SamplingParams, streams: bool = False
    ) -> Request:
        request = self.admission.admit(prompt, params, streams=streams)
        self.engine.add(request)
        return request

    def step(self) -> None:
        """One step; raises what letting go of a request raised."""
        self.engine.step()
        failure = self.engine.take_release_failure()
        if failure is not None:
            raise failure

    def run(
        self, jobs: Sequence[tuple[str | Sequence[int], SamplingParams]]
    ) -> list[RequestOutput]:
        requests = [self.add(prompt, params) for prompt, params in jobs]
        while self.engine.has_work:
            self.step()
        self.check_idle()
        return [output_of(request) for request in requests]

    def check_idle(self) -> None:
        """Nothing is held, and the books balance."""
        self.state.check()
        assert not self.engine.has_work
        assert self.state.request_ids == ()
        assert self.scheduler.release_failure is None
        assert self.state.pool.num_free + self.state.pool.num_cached == self.num_pages


def output_of(request: Request) -> RequestOutput:
    """The output in the one terminal event; there must be exactly one, and it the last."""
    terminal = [delta for delta in request.outbox if delta.finish_reason is not None]
    assert len(terminal) == 1
    assert request.outbox[-1] is terminal[0]
    output = terminal[0].output
    assert output is not None
    return output


def naive_answer(
    prompt: Sequence[int],
    params: SamplingParams,
    *,
    max_seq_len: int = 64,
    seen: Sequence[int] | None = None,
) -> tuple[list[int], str, str]:
    """What one request must give, from the definition: token by token, everything anew.

    seen: what the model sees in place of the prompt's tokens, if not these.
    Returns the tokens of the answer, its text and why it ended. Shares the sampler with the
    engine, and nothing else.
    """
    tokens, answer = list(prompt if seen is None else seen), list[int]()
    ends = {*params.stop_token_ids} | (set() if params.ignore_eos else {EOS})
    while True:
        row = SamplingRow(
            params=params,
            seed=params.seed or 0,
            position=len(tokens),
            history=TokenHistory(prompt, answer),
            banned_ids=sorted(ends) if len(answer) < params.min_tokens else (),
        )
        logits = torch.from_numpy(logits_of(context_hash(tokens)))[None]
        token = int(Sampler().sample(logits, [row]).token_ids)
        tokens.append(token)
        answer.append(token)
        enough = len(answer) >= params.min_tokens
        if token in ends and enough:
            return answer, _text(answer[:-1]), "stop"
        text = _text(answer)
        # Only what this token completed counts: an earlier one was allowed to pass.
        places = [_first_new(text, _text(answer[:-1]), stop) for stop in params.stop]
        found = [p for p in places if p is not None]
        if enough and found:
            return answer, text[: min(found, key=lambda p: p[::-1])[0]], "stop"
        if len(answer) == params.max_tokens or len(tokens) == max_seq_len:
            return answer, text, "length"


def _first_new(text: str, before: str, stop: str) -> tuple[int, int] | None:
    """Where a stop string begins and ends that is in the text and was not before."""
    start = text.find(stop, max(0, len(before) - len(stop) + 1))
    return None if start < 0 else (start, start + len(stop))


def _text(tokens: Sequence[int]) -> str:
    return bytes(token for token in tokens if token < 256).decode("utf-8", errors="replace")
