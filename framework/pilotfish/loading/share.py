"""Share: what one rank holds of a model, and what it says in a pass; from layers and headers.

Knows: shards, caches and collectives of a model that ranks may share. Does not know: memory plans,
or what is done with the numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Self

import attrs

from pilotfish.layers.experts import Experts
from pilotfish.layers.layer import Layer
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.row_parallel import RowParallelLinear
from pilotfish.parallel.group import Groups
from pilotfish.parallel.lockstep import agreement
from pilotfish.parallel.shard import Shard
from pilotfish.parallel.traffic import Collective, PassRows, Talks, collectives_of
from pilotfish.state import StateSpec
from pilotfish.state.specs import DTYPE_BYTES
from pilotfish.weights import LoadPlan, TensorInfo
from pilotfish.weights.footprint import form_of, parts_held, weight_kinds
from pilotfish.weights.shards import bytes_read_of, cut_of


@attrs.frozen(kw_only=True, slots=False)
class Share:
    """groups: this rank's. specs: of its caches. dtype: the run's.

    network: None for a model that is no network of layers, which no ranks share. plan: which tensor
    fills which parameter; None where nobody says. infos: of the tensors that the model reads.
    staying: names of those that are used as they lie in the file, where all ranks map it.
    """

    groups: Groups
    specs: tuple[StateSpec, ...]
    network: Layer | None
    plan: LoadPlan | None
    infos: Mapping[str, TensorInfo]
    staying: Collection[str]
    dtype: str

    @classmethod
    def of(
        cls,
        model: object,
        groups: Groups,
        *,
        specs: Iterable[StateSpec] = (),
        plan: object,
        infos: Mapping[str, TensorInfo],
        staying: Collection[str],
        dtype: str,
    ) -> Self:
        """Of a model, or a drafter, that was split already, without weights.

        specs: of its caches; none for a drafter, whose caches are its config's.
        """
        network = getattr(model, "network", None)
        return cls(
            groups=groups,
            specs=tuple(specs),
            network=network if isinstance(network, Layer) else None,
            plan=plan if isinstance(plan, LoadPlan) else None,
            infos=infos,
            staying=staying,
            dtype=dtype,
        )

    # What it holds.

    @cached_property
    def shards(self) -> Mapping[str, Shard]:
        """Of the parameters that it does not hold whole."""
        return {} if self.network is None else self.network.shards()

    @cached_property
    def weight_kinds(self) -> dict[str, int]:
        """Bytes of weights by form; see `footprint.weight_kinds`."""
        return weight_kinds(self.infos, self.dtype, self.staying.__contains__, self._parts)

    @cached_property
    def parameter_kinds(self) -> dict[str, int]:
        """As `weight_kinds`; a tensor that fills several parameters counts for each."""
        found: Counter[str] = Counter()
        for _, name, part in self._held:
            kind, whole = form_of(name, self.infos, self.dtype, self.staying.__contains__)
            found[kind] += round(whole * part)
        return dict(found.most_common())

    @cached_property
    def mapped(self) -> int:
        """Bytes that all ranks together map of files; replicas map the same."""
        names = self.staying
        return sum(form_of(name, self.infos, self.dtype, lambda _: True)[1] for name in names)

    @cached_property
    def mapped_whole(self) -> int:
        """Of them those that every rank maps of the same file: they are in memory once."""
        whole = (name for name in self.staying if name not in self._parts)
        return sum(form_of(name, self.infos, self.dtype, lambda _: True)[1] for name in whole)

    @cached_property
    def parameter_bytes(self) -> dict[str, int]:
        """Bytes of every parameter with memory of its own, as this rank holds it."""
        found: dict[str, float] = {}
        for parameter, name, part in self._held:
            _, whole = form_of(name, self.infos, self.dtype, self.staying.__contains__)
            found[parameter] = found.get(parameter, 0.0) + whole * part
        return {name: round(count) for name, count in found.items()}

    @cached_property
    def replicated(self) -> dict[str, int]:
        """Bytes of the parameters that every rank holds whole."""
        if self.plan is None or self.groups.is_whole:
            return {}
        is_spread = not self.groups.expert.is_alone
        experts = self.expert_parameters if is_spread else {}
        return {
            step.parameter: self.parameter_bytes[step.parameter]
            for step in self.plan.steps
            if step.parameter not in experts and cut_of(step, self.shards) is None
        }

    @cached_property
    def expert_parameters(self) -> dict[str, str]:
        """Of all experts, also those of other ranks: the path to the layer that has them."""
        return {
            parameter: name
            for name, layer in self.mixtures.items()
            for parameter in layer.experts.parameter_shapes(f"{name}experts.")
        }

    @cached_property
    def bytes_read(self) -> dict[str, int]:
        """What it reads of each tensor of the files."""
        if self.plan is None:
            return {name: info.num_bytes for name, info in self.infos.items()}
        return bytes_read_of(self.plan, self.infos, self.shards)

    @cached_property
    def _held(self) -> list[tuple[str, str, float]]:
        """A parameter, a tensor that fills it, and which part of that is held."""
        return [] if self.plan is None else list(parts_held(self.plan, self.shards))

    @cached_property
    def _parts(self) -> dict[str, float]:
        """Of each tensor which part is held, of those that are not held whole."""
        found: dict[str, float] = {}
        for _, name, part in self._held:
            found[name] = min(1.0, found.get(name, 0.0) + part)
        return {name: part for name, part in found.items() if part < 1.0}

    # What it does in a pass.

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Of the network, those inside others too, in the order of a pass; see `named_layers`."""
        return {} if self.network is None else dict(self.network.named_layers())

    def collectives(self, rows: int, logit_rows: int) -> list[Collective]:
        """Of a pass with so many rows and rows of logits, padding included; where replicas share
        experts, with as many in each.
        """
        run = PassRows(rows, logit_rows, DTYPE_BYTES[self.dtype])
        made = collectives_of(self._talking, run)
        is_round = self.groups.num_expert_replicas > 1
        return [agreement(self.groups.expert), *made] if is_round else made

    def inner_width(self, width: int) -> int:
        """Of a feed-forward that is `width` wide: its columns here."""
        size = self.groups.tensor.size
        fits = any(layer.in_features * size == width for layer in self._row_parallel)
        return width // size if fits else width

    def experts_of_row(self, chosen: int) -> int:
        """Of so many experts of a row, as many as can be this rank's; where replicas share them,
        of a row of each.
        """
        held = (len(layer.experts.own) for layer in self.mixtures.values())
        return min(chosen, max(held, default=chosen)) * self.groups.num_expert_replicas

    def exchanged_bytes(self, rows: int) -> int:
        """What of a pass's fullest exchange lives at once on a rank: its own terms and all ranks'.

        Of logits nothing: their copies are counted with the sampler's.
        """
        terms = (
            4 * rows * layer.out_features * (layer.in_features // layer.slice_width)
            for layer in self._row_parallel
        )
        received = (one.held for one in self.collectives(rows, 0))
        return max(terms, default=0) + max(received, default=0)

    @cached_property
    def mixtures(self) -> Mapping[str, MixtureOfExperts]:
        """The layers with experts of the library's, by the path to each."""
        return {
            name: layer
            for name, layer in self.layers.items()
            if isinstance(layer, MixtureOfExperts) and isinstance(layer.experts, Experts)
        }

    @cached_property
    def _talking(self) -> tuple[Talks, ...]:
        return tuple(one for one in self.layers.values() if isinstance(one, Talks))

    @cached_property
    def _row_parallel(self) -> tuple[RowParallelLinear, ...]:
        return tuple(one for one in self.layers.values() if isinstance(one, RowParallelLinear))
