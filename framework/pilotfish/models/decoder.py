"""Decoder: embedding, blocks, final norm and head, and the residual stream between them.

Knows: the order of layers and the boundaries between them. Does not know: batches or requests.
Axis letters: T packed tokens, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cached_property

import attrs
import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.elementwise import tanh
from pilotfish.kernels.rms_norm import add_scaled
from pilotfish.layers.attention import lay_outs
from pilotfish.layers.block import Block
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass, pair_of
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.norm import Norm
from pilotfish.layers.rope import Rotary
from pilotfish.layers.splitting import is_plain
from pilotfish.layers.vocab_parallel import VocabParallelEmbedding, VocabParallelHead
from pilotfish.parallel.group import Groups


@attrs.frozen
class Residual:
    """The residual stream after the last block, its last add still open.

    x: [T, D], the last block's output; residual: [T, D]; the whole is `residual + multiplier * x`.
    """

    x: torch.Tensor
    residual: torch.Tensor | None
    multiplier: float

    def rows(self, index: torch.Tensor | None) -> Residual:
        """Only some rows; index: [R] int64, None for all."""
        if index is None:
            return self
        residual = None if self.residual is None else self.residual.index_select(0, index)
        return Residual(self.x.index_select(0, index), residual, self.multiplier)

    def sum(self, backend: KernelBackend) -> torch.Tensor:
        """[T, D], the stream itself, in memory of its own."""
        if self.residual is None:
            return self.x.clone()
        return add_scaled(self.residual, self.x, self.multiplier, backend=backend)


class Decoder(Layer):
    """A decoder-only network.

    residual_multiplier: what the blocks scale their outputs with.
    logits_scaling: the logits are divided by it.
    logits_cap: where they are then bent below it, `cap * tanh(logits / cap)`; None: nowhere.
    rotary: None where no layer turns its rows by their positions. turns_by_length: whether a row's
        angles depend on the length of its request's prompt too.
    dtypes_given: of what the blocks gave in the last pass that ran them; None before the first.
    A head tied to the embedding is a `Linear(..., keep_plain=True)` that the weight rules tie.
    Parameters: embed_tokens.weight, layers.{layer}..., norm.weight, lm_head.weight.
    """

    def __init__(
        self,
        *,
        embed_tokens: Embedding,
        layers: Sequence[Block],
        norm: Norm,
        lm_head: Linear,
        rotary: Rotary | None,
        residual_multiplier: float = 1.0,
        logits_scaling: float = 1.0,
        logits_cap: float | None = None,
    ) -> None:
        self.embed_tokens = embed_tokens
        self.layers = tuple(layers)
        self.norm = norm
        self.lm_head = lm_head
        self.rotary = rotary
        self.turns_by_length = rotary is not None and rotary.by_length
        self.residual_multiplier = residual_multiplier
        self.logits_scaling = logits_scaling
        self.logits_cap = logits_cap
        self.dtypes_given: set[torch.dtype] | None = None

    @cached_property
    def lay_outs(self) -> tuple[Callable[[ForwardPass], None], ...]:
        """For `ForwardPass.start`; asked for when every layer stands in its place."""
        return lay_outs(self)

    def shard(self, groups: Groups, name: str = "") -> None:
        """Splits the layers, and the vocabulary where embedding and head are the library's."""
        super().shard(groups, name)
        embedding, head, group = self.embed_tokens, self.lm_head, groups.tensor
        if group.is_alone or not (is_plain(embedding, Embedding) and is_plain(head, Linear)):
            return
        if embedding.vocab_size < group.size:
            raise ConfigError(
                f"{embedding.vocab_size} token ids over {group.size} ranks; wanted tensor_parallel "
                f"of at most {embedding.vocab_size}"
            )
        self.embed_tokens = VocabParallelEmbedding(embedding, group)
        self.lm_head = VocabParallelHead(head, groups)

    def run(
        self, rows: torch.Tensor, run: ForwardPass, boundaries: Collection[int] = ()
    ) -> tuple[Residual, dict[int, torch.Tensor]]:
        """Runs every block.

        rows: [T, D], what enters block 0; it may be updated in place.
        boundaries: which to keep; 0 is `rows`, i the stream after block i-1.
        Returns the open stream and boundary -> [T, D].
        """
        kept: dict[int, torch.Tensor] = {}
        given: set[torch.dtype] = set()
        state = Residual(rows, None, self.residual_multiplier)
        for number, block in enumerate(self.layers):
            if number in boundaries:
                kept[number] = state.sum(run.backend)
            made = pair_of(block, block(state.x, state.residual, run))
            state = Residual(*made, self.residual_multiplier)
            given |= {made[0].dtype, made[1].dtype}
        self.dtypes_given = given
        if len(self.layers) in boundaries:
            kept[len(self.layers)] = state.sum(run.backend)
        return state, kept

    def finish(self, state: Residual, backend: KernelBackend) -> torch.Tensor:
        """The final norm: an open stream -> [T, D]. Closes the stream in place."""
        return self.norm.add(state.x, state.residual, backend, state.multiplier)[0]

    def logits(self, normed: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """normed: [T, D] after the final norm -> [T, V] float32, scaling and cap included."""
        return self.scaled(self.lm_head(normed, backend, torch.float32), backend)

    def scaled(self, logits: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        """The head's float32 output, which may be updated in place -> logits."""
        if self.logits_scaling != 1.0:
            logits.div_(self.logits_scaling)
        if self.logits_cap is None:
            return logits
        return tanh(logits.div_(self.logits_cap), backend=backend).mul_(self.logits_cap)
