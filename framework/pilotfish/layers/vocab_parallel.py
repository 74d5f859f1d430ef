"""An embedding and a head whose vocabulary the ranks share.

Knows: which rank has which rows, and how whole rows come together. Does not know: sampling.
Axis letters: T packed tokens, V vocabulary, D model width, N ranks.
"""

from __future__ import annotations

from typing import Any

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, linear
from pilotfish.kernels.native.numbers import want_indices
from pilotfish.layers.column_parallel import ColumnParallelLinear, not_whole
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.linear import Linear
from pilotfish.parallel.collectives import all_gather, gather_columns
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.shard import Shard
from pilotfish.parallel.traffic import Collective, PassRows


class VocabParallelEmbedding(Embedding):
    """A table of which every rank has some rows; a row comes from the rank that has it.

    Raises PluginError for whoever reads `weight`, and ValueError for tokens that it has not.
    """

    def __init__(self, whole: Embedding, group: Group) -> None:
        super().__init__(
            whole.vocab_size,
            whole.width,
            multiplier=whole.multiplier,
            rounds_multiplier=whole.rounds_multiplier,
        )
        self.group, self.own = group, group.share(whole.vocab_size)
        self.keep("weight", Shard.rows(self.own))
        starts = [group.share_of(rank, whole.vocab_size).start for rank in range(1, group.size)]
        self._starts = torch.tensor(starts)

    def complete(self, tensors: dict[str, Any], backend: KernelBackend) -> None:
        """Keeps this rank's rows."""
        whole = Embedding(len(self.own), self.width)
        whole.complete(tensors, backend)
        self._table = whole._table

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        """No rank has it whole."""
        raise not_whole("embed_tokens.weight", self.own, "embed_tokens(tokens)")

    def rows(self, tokens: torch.Tensor) -> torch.Tensor:
        """As the whole table's; the same on every rank."""
        if tokens.device.type == "cpu":
            want_indices("tokens", tokens, self.vocab_size)
        local = (tokens - self.own.start).clamp_(0, len(self.own) - 1)
        of_ranks = torch.stack(list(all_gather(self.group, super().rows(local))))
        owner = torch.bucketize(tokens, self._starts.to(tokens.device), right=True)
        return of_ranks[owner, torch.arange(len(tokens), device=tokens.device)]

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Every rank's rows go to all."""
        num_bytes = run.rows * self.width * run.itemsize
        return (Collective.of("all_gather", self.group.size, num_bytes),)


class VocabParallelHead(ColumnParallelLinear):
    """A head of which every rank makes some of the logits; the first rank gets all of them, and
    the others where `Groups.logits_everywhere` says so: else theirs hold nothing.

    out_features: V. Raises PluginError for whoever reads `packed`.
    """

    def __init__(self, whole: Linear, groups: Groups) -> None:
        super().__init__(whole, groups.tensor)
        self.is_for_all = groups.logits_everywhere

    @property
    def packed(self) -> LinearWeight:  # type: ignore[override]
        """No rank has it whole."""
        own = self.group.share(self.out_features)
        raise not_whole("lm_head.packed", own, "lm_head(rows, backend)")

    def __call__(
        self, x: torch.Tensor, backend: KernelBackend, out_dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """x: [T, D] -> a new [T, V]."""
        if self.is_for_all:
            return super().__call__(x, backend, out_dtype)
        own = linear(x, self.part, backend=backend, out_dtype=out_dtype)
        whole = gather_columns(self.group, own, self.out_features)
        return own.new_empty((x.shape[0], self.out_features)) if whole is None else whole

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Logits go to the first rank, in float32; of a pass that wants none, nothing does."""
        if not run.logit_rows:
            return ()
        width = len(self.group.share_of(0, self.out_features))
        num_bytes = run.logit_rows * width * torch.float32.itemsize
        return (Collective.of("gather", self.group.size, num_bytes),)
