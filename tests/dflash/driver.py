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
from pilotfish.speculation import BlockRows, DraftBatch, DraftRequest, Proposal, ProposerSetup
from pilotfish.speculation.draft_config import DRAFT_CACHE
from pilotfish.state import StateManager
from pilotfish.weights import Checkpoint, open_checkpoint
from pilotfish_dflash.config import DFlashConfig
from pilotfish_dflash.model import DFlashProposer
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
        speculative=SpeculativeConfig(method="dflash"),
    )


def draft_config(target: Path, draft: Path) -> DFlashConfig:
    """The draft's finalized config."""
    found = open_checkpoint(str(draft))
    config = DFlashConfig.initialize(pipeline(target, draft))
    return config.finalize(found.huggingface_config, found.weights().infos)


class Recorder(DFlashProposer):
    """The draft itself, which also notes the logits of its last block, and what it took in."""

    logits_seen: torch.Tensor | None = None

    def forward(self, rows: BlockRows) -> torch.Tensor:
        found = super().forward(rows)
        self.logits_seen = found.cpu().clone()
        return found


def load(
    target: Path,
    draft: Path,
    dtype: str = "float32",
    backend: KernelBackend = BACKEND,
    device: torch.device = CPU,
    *,
    groups: Groups | None = None,
) -> Recorder:
    """A loaded draft over a loaded target; the target runs on torch where there is no GPU, and
    nothing native is asked for. groups: of a rank that has a part of both.
    """
    target_file, draft_file = open_checkpoint(str(target)), open_checkpoint(str(draft))
    options = options_of(target_file, draft_file, dtype)
    config = DFlashConfig.initialize(options)
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
    proposer = Recorder(
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
        proposer.shard(groups)
    proposer.load_model(draft_weights)
    return proposer


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


@attrs.frozen(kw_only=True)
class Drafted:
    """A proposal, its logits [G, V], the tokens before it, and the length of the prompt."""

    tokens: tuple[int, ...]
    prompt_length: int
    proposal: Proposal
    logits: torch.Tensor


class Driver:
    """Steps of several requests; pages that nobody owns and rows not yet written are NaN."""

    def __init__(
        self,
        proposer: Recorder,
        page_size_tokens: int = 4,
        num_pages: int = 96,
        prefix_caching: bool = False,
    ) -> None:
        self.proposer, self.target = proposer, proposer.target
        size = self.target.groups.tensor.size
        of_draft = (spec.of_rank(size) for spec in proposer.config.get_state_specs())
        specs = (*self.target.state, *of_draft)
        self.states = StateManager(
            specs,
            num_pages=num_pages,
            page_size_tokens=page_size_tokens,
            device=proposer.device,
            prefix_caching=prefix_caching,
            lookahead=proposer.config.lookahead,
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

    def step(self, moves: dict[str, Move]) -> list[Drafted]:
        """One step of some requests: the target's pass, the accepts, the draft, the commit."""
        counts = [self._reserve(name, move) for name, move in moves.items()]
        features = self._target_pass(list(moves), counts)
        kept: list[int] = []
        requests: list[DraftRequest] = []
        first = 0
        for (name, move), count in zip(moves.items(), counts, strict=True):
            one = self.running[name]
            num_new = move.rows or 1 + move.accept
            kept.extend(range(first, first + num_new))
            first += count
            width = move.width if self._accept(one, move, count) else 0
            requests.append(self._request(one, num_new, width))
        batch = DraftBatch(
            requests=requests,
            features=features[torch.tensor(kept, device=features.device)],
            kv_inputs=self.states.kv_inputs,
        )
        proposals = self.proposer.propose(batch)
        found = self._drafted(requests, proposals)
        for request, proposal in zip(requests, proposals, strict=True):
            self.states.commit(request.request_id, request.num_new)
            one = self.running[request.request_id]
            one.context.num_computed += request.num_new
            one.drafts = tuple(proposal.tokens)
        return found

    def rows(self, name: str) -> torch.Tensor:
        """[L, p, 2, K, H]: the draft's committed keys and values of a request."""
        count = self.running[name].num_committed
        pages = list(self.states.pages_of(name))
        blocks = self.states.paged_cache(DRAFT_CACHE).blocks
        return torch.stack([block[pages].flatten(0, 1)[:count] for block in blocks])

    def _reserve(self, name: str, move: Move) -> int:
        one = self.running[name]
        context = one.context
        if not move.rows:
            context.tokens = context.tokens + list(one.drafts)
        count = move.rows or 1 + len(one.drafts)
        context.num_scheduled = count
        scratch = self.proposer.config.num_scratch_rows(move.width)
        self.states.reserve(name, context.scheduled_tokens, scratch=scratch)
        return count

    def _drafted(
        self, requests: Sequence[DraftRequest], proposals: Sequence[Proposal]
    ) -> list[Drafted]:
        found: list[Drafted] = []
        first = 0
        for request, proposal in zip(requests, proposals, strict=True):
            count = len(proposal.tokens)
            assert count == request.num_draft_tokens, "a draft that was asked for is missing"
            if not count:
                continue
            logits = self.proposer.logits_seen
            assert logits is not None
            found.append(
                Drafted(
                    tokens=tuple(request.tokens),
                    prompt_length=self.running[request.request_id].prompt_length,
                    proposal=proposal,
                    logits=logits[first : first + count],
                )
            )
            first += count
        return found

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
            num_started_tokens=one.prompt_length,
        )
