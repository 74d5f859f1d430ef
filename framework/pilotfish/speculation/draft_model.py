"""DraftNetwork and DraftModel: what drafts that read their target's hidden states have in common.

Knows: loading, shards, row padding, the start of a pass, what is borrowed of the target. Does not
know: how blocks compute, which rows run, or how tokens are chosen (SequentialProposer,
BlockProposer).
Axis letters: B requests, T packed rows, T' rows with padding, R rows of logits, D draft width, V
vocabulary of the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeVar

import torch

from pilotfish.errors import WeightsError
from pilotfish.invariance.padding import RowPadding
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.invariance.rows import padded
from pilotfish.kernels import KernelBackend
from pilotfish.layers.attention import Attention, lay_outs
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.column_parallel import ColumnParallelLinear
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.rope import Rotary
from pilotfish.layers.splitting import is_plain
from pilotfish.layers.vocab_parallel import VocabParallelEmbedding, VocabParallelHead
from pilotfish.models.loading import load_layers
from pilotfish.models.loads_network import LoadsNetwork
from pilotfish.parallel.group import Groups
from pilotfish.speculation.draft_config import DRAFT_CACHE, DraftConfig
from pilotfish.speculation.draft_vocabulary import DraftVocabulary, fitted
from pilotfish.speculation.proposer import ProposerSetup
from pilotfish.state import KVCacheInputs
from pilotfish.weights import WeightSource

Planned = TypeVar("Planned")


class DraftNetwork(Layer):
    """Base: what stands around a draft's blocks, without what it borrows of its target.

    backend: of all kernels; None: torch's. embed_tokens, lm_head, vocabulary: None where the draft
    has none of its own. padding: of rows, so that a row's bits are its own; set when the weights
    are known. fc: what a subclass makes its rows of the target's hidden states with, if it has it.
    Parameters: embed_tokens.weight, lm_head.weight, vocabulary.offsets.
    """

    fc: Linear

    def __init__(self, config: DraftConfig, backend: KernelBackend | None = None) -> None:
        self.backend = KernelBackend() if backend is None else backend
        self.padding = RowPadding()
        self.rotary = Rotary(config.rope)
        self.embed_tokens: Embedding | None = None
        self.lm_head: Linear | None = None
        self.vocabulary: DraftVocabulary | None = None
        self._passes: dict[Any, Any] = {}
        if config.own_embedding:
            self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        if config.has_head:
            self.lm_head = Linear(
                config.hidden_size, config.draft_vocab_size, keep_plain=config.has_tied_head
            )
        if config.has_head and config.has_offsets:
            self.vocabulary = DraftVocabulary(config.draft_vocab_size, config.target_vocab_size)

    def shard(self, groups: Groups, name: str = "") -> None:
        """Splits the layers, the vocabulary of an embedding and a head of its own, and fc."""
        super().shard(groups, name)
        embedding, head, group = self.embed_tokens, self.lm_head, groups.tensor
        if group.is_alone:
            return
        if embedding is not None and is_plain(embedding, Embedding):
            self.embed_tokens = VocabParallelEmbedding(embedding, group)
        if head is not None and is_plain(head, Linear):
            self.lm_head = VocabParallelHead(head, groups)
        if is_plain(getattr(self, "fc", None), Linear):
            self.fc = ColumnParallelLinear(self.fc, group)

    @cached_property
    def lay_outs(self) -> tuple[Callable[[ForwardPass], None], ...]:
        """For `ForwardPass.start`; asked for when every layer stands in its place."""
        return lay_outs(self)

    def padded(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy of rows, [T, *] -> [T', *], zeros behind them: passes work in place."""
        short = padded(rows.shape[0], self.padding.body) - rows.shape[0]
        ends = (*(0, 0) * (rows.ndim - 1), 0, short)
        return torch.nn.functional.pad(rows, ends) if short else rows.clone()

    def start(
        self,
        kv: KVCacheInputs,
        input_row_offsets: torch.Tensor,
        started: Sequence[int] | None = None,
        *,
        attends: bool = True,
    ) -> ForwardPass:
        """The shared part of a pass; row i of request b stands at position cache_lengths[b] + i.

        input_row_offsets: [B+1] int32. started: [B], tokens each request was started with, for
        angles that depend on it. attends: whether any layer will attend to the rows.
        """
        device = input_row_offsets.device
        return ForwardPass.start(
            kv,
            input_row_offsets,
            backend=self.backend,
            rotary=self.rotary,
            row_multiple=self.padding.body,
            attention_multiple=self.padding.attention,
            prompt_lengths=None if started is None else torch.tensor(started, device=device),
            lay_outs=self.lay_outs if attends else (),
        )

    def planned(self, key: object, make: Callable[[], Planned | Literal[False]]) -> Planned | None:
        """A pass as native calls, planned when first asked for; None on another backend.

        make: gives it, or False where the network computes in a way of its own.
        """
        if self.backend.name != "native":
            return None
        if key not in self._passes:
            self._passes[key] = make()
        found: Planned | None = self._passes[key] or None
        return found


def draft_block(
    config: DraftConfig, layer: int, *, mlp_bias: bool = False, **attention: Any
) -> PreNormBlock:
    """A block of the draft's own sizes. attention: more arguments of `Attention`."""
    width = config.hidden_size
    return PreNormBlock(
        RMSNorm(width, config.rms_norm_eps),
        Attention(layer, *config.attention_sizes, **attention),
        RMSNorm(width, config.rms_norm_eps),
        GatedMLP(width, config.intermediate_size, bias=mlp_bias),
    )


class DraftModel(LoadsNetwork):
    """Base of a proposer, beside its driver; a subclass sets `network` and has `weight_rules`.

    target: lends its embedding and its head where the draft has none of its own.
    """

    config_class: ClassVar[type[Any]]
    config: DraftConfig
    network: DraftNetwork
    device: torch.device
    dtype: torch.dtype
    target: Any

    def take_setup(self, setup: ProposerSetup) -> dict[str, Any]:
        """Keeps what it is made from. Returns arguments that every driver takes."""
        speculative = setup.pipeline_config.speculative
        self.config = setup.config
        self.backend = setup.backend
        self.dtype = getattr(torch, self.config.dtype)
        self.target = setup.target
        return {
            "cache_name": DRAFT_CACHE,
            "whose": setup.pipeline_config.whose_draft,
            "device": torch.device(setup.device),
            "max_positions": self.config.max_position,
            "keeps_probs": speculative is not None and speculative.acceptance == "residual",
        }

    # Loading.

    def shard(self, groups: Groups) -> None:
        """Leaves one of several ranks its part of the network; once, before weights are planned.

        What is borrowed of the target is the target's part. Raises ConfigError naming the layer
        that cannot be split so.
        """
        self.network.shard(groups)

    def load_model(self, weights: WeightSource | None) -> None:
        """Fills every parameter, and finds to how many rows passes are padded on this machine.

        Where no number of rows keeps their bits, rows are not padded: no text depends on it.
        Raises WeightsError naming missing, extra and misshapen tensors before any is read.
        """
        if weights is None:
            raise WeightsError(
                f"the method {self.config.format_class.method} got no weights; wanted the draft's"
            )
        network = self.network
        plan = self.plan_load(weights.infos)
        # With matrices of its own, while there are no others.
        network.padding = RowPadding.probe(
            network,
            network.lm_head,
            backend=self.backend,
            dtype=self.dtype,
            known=ProbeCache(),
        )
        load_layers(
            network,
            plan,
            weights,
            self.dtype,
            backend=self.backend,
            device=self.device,
            shards=network.shards(),
        )
        self._planned_load = None
        for name in weights.infos:
            if network.vocabulary is not None and name.removeprefix("model.") == "t2d":
                network.vocabulary.check_mask(weights.load(name))
        network.rotary.to(self.device)

    # Running.

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [T] int64 -> [T, D]."""
        own = self.network.embed_tokens
        if own is not None:  # what only the target's padding has is some row of it
            return own(tokens.clamp(max=self.config.vocab_size - 1))
        rows: torch.Tensor = self.target.embed(tokens)
        return rows

    def head(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [R, D], as the head reads them -> [R, its vocabulary] float32."""
        own, count = self.network.lm_head, rows.shape[0]
        if own is None:
            logits: torch.Tensor = self.target.lm_head(rows)
            return logits
        short = padded(count, self.network.padding.head) - count
        return own(torch.nn.functional.pad(rows, (0, 0, 0, short)), self.backend).float()[:count]

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        """rows: [R, D], as the head reads them -> [R, V] float32."""
        return self.over_target(self.head(rows))

    def over_target(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [R, the head's vocabulary] -> [R, V], -inf where the draft has no token."""
        if self.network.vocabulary is not None:
            logits = self.network.vocabulary(logits)
        return fitted(logits, self.config.target_vocab_size)
