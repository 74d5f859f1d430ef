"""A naive driver: a target, a draft, one StateManager, and histories of accepts as a test likes.

No engine: what is accepted is drawn, so histories come up that no sampler would make.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import attrs
import torch

from pilotfish import SamplingParams, load_registry
from pilotfish.batch import RequestContext
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig, SpeculativeConfig
from pilotfish.kernels import KernelBackend
from pilotfish.parallel.group import Groups
from pilotfish.protocols import ReturnLogits
from pilotfish.sampling import SamplingRow
from pilotfish.speculation import (
    DraftBatch,
    DraftOutputs,
    DraftRequest,
    DraftRows,
    Proposal,
    ProposerSetup,
)
from pilotfish.state import StateManager
from pilotfish.weights import Checkpoint, open_checkpoint
from pilotfish_eagle.config import EagleConfig
from pilotfish_eagle.model import EagleModel
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.model import Llama3Model

BACKEND = KernelBackend()
CPU = torch.device("cpu")
registry = cache(load_registry)


def pipeline(target: Path, draft: Path, dtype: str = "float32") -> PipelineConfig:
    """The options of a pair on disk."""
    return options_of(*(open_checkpoint(str(path)) for path in (target, draft)), dtype=dtype)


def options_of(target: Checkpoint, draft: Checkpoint, dtype: str = "float32") -> PipelineConfig:
    """The options of a pair that is open."""
    models: list[ModelConfig] = [one.model_config() for one in (target, draft)]
    return PipelineConfig(
        model=models[0],
        draft_model=models[1],
        runtime=RuntimeConfig(dtype=dtype),
        speculative=SpeculativeConfig(method="eagle"),
    )


def draft_config(target: Path, draft: Path) -> EagleConfig:
    """The draft's finalized config."""
    options = pipeline(target, draft)
    found = open_checkpoint(str(draft))
    config = EagleConfig.initialize(options)
    return config.finalize(found.huggingface_config, found.weights().infos)


def load(
    target: Path,
    draft: Path,
    dtype: str = "float32",
    backend: KernelBackend = BACKEND,
    device: torch.device = CPU,
    *,
    groups: Groups | None = None,
) -> EagleModel:
    """A loaded draft over a loaded target; the target runs on torch where there is no GPU, and
    nothing native is asked for. groups: of a rank that has a part of both.
    """
    target_file, draft_file = open_checkpoint(str(target)), open_checkpoint(str(draft))
    options = options_of(target_file, draft_file, dtype)
    config = EagleConfig.initialize(options)
    target_weights, draft_weights = target_file.weights(), draft_file.weights()
    config = config.finalize(draft_file.huggingface_config, draft_weights.infos)
    model = Llama3Model(
        options,
        Llama3Config.initialize(options).finalize(
            target_file.huggingface_config, target_weights.infos
        ),
        backend if backend.name == "native" or device != CPU else BACKEND,
        device=device,
        return_logits=ReturnLogits.ALL,
        return_hidden_states=config.return_hidden_states,
        aux_hidden_state_layers=config.aux_hidden_state_layers,
    )
    if groups is not None:
        model.shard(groups)
    model.load_model(target_weights)
    eagle = Recorder(
        ProposerSetup(
            pipeline_config=options,
            config=config,
            backend=backend,
            device=device,
            target=model,
            registry=registry(),
        )
    )
    if groups is not None:
        eagle.shard(groups)
    eagle.load_model(draft_weights)
    return eagle


class Recorder(EagleModel):
    """The draft itself, which also notes the logits of every drafted token."""

    def __init__(self, setup: ProposerSetup) -> None:
        super().__init__(setup)
        self.logits: dict[str, list[torch.Tensor]] = {}

    def forward(self, rows: DraftRows) -> DraftOutputs:
        outputs = super().forward(rows)
        drafting = [
            name for name, wanted in zip(rows.request_ids, rows.wanted, strict=True) if wanted
        ]
        for name, row in zip(drafting, outputs.logits, strict=True):
            self.logits.setdefault(name, []).append(row.cpu().clone())
        return outputs


@attrs.define
class Running:
    """A request: its tokens, rows committed, and what was drafted last."""

    context: RequestContext
    drafts: tuple[int, ...] = ()
    prompt_length: int = 0

    @property
    def tokens(self) -> list[int]:
        return self.context.tokens

    @property
    def num_committed(self) -> int:
        return self.context.num_computed


@attrs.define(kw_only=True)
class Move:
    """What one request does in a step. rows: of a prefill chunk, or 0 to verify what was drafted.

    accept: of the drafted tokens. next_token: that follows. width: to be drafted.
    """

    rows: int = 0
    accept: int = 0
    next_token: int = 0
    width: int = 0


class Driver:
    """Steps of several requests; pages that nobody owns and rows not yet written are NaN."""

    def __init__(
        self,
        eagle: EagleModel,
        page_size_tokens: int = 4,
        num_pages: int = 96,
        prefix_caching: bool = False,
    ) -> None:
        self.eagle, self.target = eagle, eagle.target
        size = self.target.groups.tensor.size
        of_draft = (spec.of_rank(size) for spec in eagle.config.get_state_specs())
        specs = (*self.target.state, *of_draft)
        self.states = StateManager(
            specs,
            num_pages=num_pages,
            page_size_tokens=page_size_tokens,
            device=eagle.device,
            prefix_caching=prefix_caching,
            lookahead=eagle.config.lookahead,
            poison=True,
        )
        self.params = SamplingParams(temperature=0.0)
        self.running: dict[str, Running] = {}

    def add(self, name: str, prompt: Sequence[int]) -> Running:
        """A new request; with prefix caching some of its rows may be there already."""
        num_computed = self.states.claim(name, list(prompt))
        context = RequestContext(request_id=name, tokens=list(prompt), num_computed=num_computed)
        self.running[name] = Running(context, prompt_length=len(prompt))
        return self.running[name]

    def step(self, moves: dict[str, Move]) -> dict[str, Proposal]:
        """One step of some requests: the target's pass, the accepts, the draft, the commit."""
        counts: list[int] = []
        kept: list[int] = []
        for name, move in moves.items():
            one = self.running[name]
            context = one.context
            if not move.rows:
                context.tokens = context.tokens + list(one.drafts)
            count = move.rows or 1 + len(one.drafts)
            context.num_scheduled = count
            counts.append(count)
            scratch = self.eagle.config.num_scratch_rows(move.width)
            self.states.reserve(name, context.scheduled_tokens, scratch=scratch)
        features = self._target_pass(list(moves), counts)
        first, requests = 0, []
        for (name, move), count in zip(moves.items(), counts, strict=True):
            one = self.running[name]
            num_new = move.rows or 1 + move.accept
            drafts = self._accept(one, move, count)
            kept.extend(range(first, first + num_new))
            first += count
            requests.append(self._request(one, num_new, move.width if drafts else 0))
        batch = DraftBatch(
            requests=requests,
            features=features[torch.tensor(kept, device=features.device)],
            kv_inputs=self.states.kv_inputs,
        )
        self.eagle.logits = {}  # type: ignore[attr-defined]
        proposals = dict(zip(moves, self.eagle.propose(batch), strict=True))
        for request in requests:
            self.states.commit(request.request_id, request.num_new)
            one = self.running[request.request_id]
            one.context.num_computed += request.num_new
            one.drafts = tuple(proposals[request.request_id].tokens)
        return proposals

    def _target_pass(self, names: list[str], counts: list[int]) -> torch.Tensor:
        contexts = [self.running[name].context for name in names]
        kv = self.states.kv_inputs(names, counts)
        hidden = self.target.execute(
            self.target.prepare_initial_token_inputs([contexts], kv, 1)
        ).hidden_states
        assert hidden is not None
        return hidden

    def _accept(self, one: Running, move: Move, count: int) -> bool:
        """Leaves the tokens that count; returns whether one of them is new."""
        context = one.context
        if not move.rows:
            context.tokens = context.tokens[: context.num_computed + 1 + move.accept]
            context.tokens.append(move.next_token)
        elif context.num_computed + count == len(context.tokens):
            context.tokens.append(move.next_token)
        else:
            return False
        return True

    def _request(self, one: Running, num_new: int, width: int) -> DraftRequest:
        tokens = list(one.tokens)
        return DraftRequest(
            request_id=one.context.request_id,
            tokens=tokens,
            num_before=one.num_committed,
            num_new=num_new,
            num_draft_tokens=width,
            sampling_row=lambda drafted: SamplingRow(
                params=self.params, seed=7, position=len(tokens) + len(drafted)
            ),
        )
