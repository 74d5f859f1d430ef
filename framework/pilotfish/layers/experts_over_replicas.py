"""ExpertsOverReplicas: experts that the ranks of several replicas share, each with rows of its own.

Knows: which row goes to which rank, and that its results come back to be added where it lives. Does
not know: how experts compute, or who has rows in a round (`parallel/lockstep.py`).
Axis letters: T packed tokens, T' rows with padding, D model width, E experts, S experts of a row,
N ranks, R rows sorted by expert, one for each expert of a row.
"""

from __future__ import annotations

import torch

from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.grouped_linear import RowGroups, group_rows
from pilotfish.layers.experts import Experts
from pilotfish.parallel.collectives import all_gather, all_gather_rows, all_to_all_rows
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.traffic import Collective, PassRows, RowExchange
from pilotfish.weights import StoredRows

_COUNT = torch.int32
"""Of how many rows go to an expert."""


class ExpertsOverReplicas(Experts):
    """Each rank sends its rows to the ranks that have their experts, and adds what comes back.

    The rows of a replica are on all of its ranks: each sends a share of them, and what it made of
    these goes to the others. A row is sent once for each of its experts, sorted by expert, so what
    comes back lies as it was sent, and the sum is that of one device.
    `loads` are those of all replicas.
    """

    plan = None  # type: ignore[assignment]
    group: Group
    tensor: Group
    num_chosen: int
    backend: KernelBackend

    @classmethod
    def of(cls, whole: Experts, groups: Groups, num_chosen: int) -> ExpertsOverReplicas:
        """In the place of experts that were given no tensors. num_chosen: S."""
        made = cls.__new__(cls)
        vars(made).update(vars(whole))
        made.group, made.tensor = groups.expert, groups.tensor
        made.num_chosen = num_chosen
        made.keep_experts(groups.expert.share(whole.num_experts))
        return made

    def assign(self, name: str, tensor: torch.Tensor | StoredRows, backend: KernelBackend) -> None:
        """As `Experts.assign`. Raises ConfigError for a backend that groups rows on a GPU."""
        if backend.name == "triton":
            raise ConfigError("experts over several ranks run on native or torch kernels")
        self.backend = backend
        super().assign(name, tensor, backend)

    def mixed(
        self,
        x: torch.Tensor,
        choice: torch.Tensor,
        weights: torch.Tensor,
        shared: torch.Tensor | None,
        backend: KernelBackend,
    ) -> torch.Tensor:
        """The whole mixture: `shared + sum_s weight_s * expert_s(x)`.

        x, shared: [T', D]; choice: [T, S] int64, ascending; weights: [T, S] float32; all the same
        on every rank of the replica. Returns a new [T', D]; what stands in padding rows is 0.
        """
        num_rows, own = choice.shape[0], self.tensor.share(choice.shape[0])
        part = slice(own.start, own.stop)
        groups = self._sorted(choice[part], backend)
        routed = self.exchange(x[part].index_select(0, groups.rows), choice[part], backend)
        if own:
            last = None if shared is None else shared[part]
            routed = combine_rows(routed, groups.places, weights[part], last, backend=backend)
        whole = all_gather_rows(self.tensor, routed, num_rows)
        return torch.nn.functional.pad(whole, (0, 0, 0, x.shape[0] - num_rows))

    def take_part(self) -> None:
        """An exchange without rows of this rank's: others' come, and their results go back."""
        rows = torch.empty((0, self.width), dtype=self.dtype)
        self.exchange(rows, torch.empty((0, self.num_chosen), dtype=torch.int64), self.backend)

    def exchange(
        self, rows: torch.Tensor, choice: torch.Tensor, backend: KernelBackend
    ) -> torch.Tensor:
        """rows: [R, D], this rank's, sorted by expert -> [R, D], what their experts made of them.

        choice: [T, S] int64, the experts of this rank's rows, R = T S. Every rank of the group
        calls it.
        """
        assert rows.dtype == self.dtype, (rows.dtype, self.dtype)
        counts = torch.bincount(choice.flatten(), minlength=self.num_experts).to(_COUNT)
        of_ranks = torch.stack(list(all_gather(self.group, counts)))
        if self.loads is not None:
            self.loads += of_ranks.sum(0)
        here = of_ranks[:, self.own.start : self.own.stop]
        sent, received = counts.view(self.group.size, -1).sum(1).tolist(), here.sum(1).tolist()
        arrived = all_to_all_rows(self.group, rows, sent, received)
        return all_to_all_rows(self.group, self._run(arrived, here, backend), received, sent)

    def _run(
        self, rows: torch.Tensor, counts: torch.Tensor, backend: KernelBackend
    ) -> torch.Tensor:
        """rows: [R, D] of all ranks, each rank's sorted by expert; counts: [N, E of this rank], how
        many of each. Returns [R, D], in the same order.
        """
        if not len(rows):
            return rows
        size, num_own = counts.shape
        experts = torch.arange(num_own).repeat(size).repeat_interleave(counts.flatten())
        groups = group_rows(experts.unsqueeze(1), num_own, backend=backend)
        return self(rows, groups, backend).index_select(0, groups.places.flatten())

    def _sorted(self, choice: torch.Tensor, backend: KernelBackend) -> RowGroups:
        """choice: [T, S]; a rank may have no row."""
        if len(choice):
            return group_rows(choice, self.num_experts, backend=backend)
        return RowGroups(rows=choice.flatten(), places=choice)

    def collectives(self, run: PassRows) -> tuple[Collective, ...]:
        """Counts, rows out, results back, and the sums within the replica; with as many rows in
        every replica as in this one.
        """
        size, tensor, chosen = self.group.size, self.tensor.size, self.num_chosen
        row, held = self.width * run.itemsize, len(self.own)
        few, many = run.rows // tensor * row, -(-run.rows // tensor) * row
        replicas = size // tensor
        near, far = min(chosen, held), min(chosen, held * (size - 1))
        given = few * (chosen - near), many * far
        arrived = replicas * run.rows * row * near
        taken = 0, min(arrived, (replicas * run.rows * row - few) * near)
        out = RowExchange("all_to_all_rows", size, few * chosen, many * chosen, given, taken)
        back = RowExchange("all_to_all_rows", size, 0, arrived, taken, given)
        counts = Collective.of("all_gather", size, self.num_experts * _COUNT.itemsize)
        sums = (Collective.of("all_gather", tensor, many),) if tensor > 1 else ()
        return (counts, out, back, *sums)
