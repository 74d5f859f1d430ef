"""LoadsNetwork: how a decoder's network gets its part of the weights.

Knows: shapes, files' tensors, ranks. Does not know: passes or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pilotfish.errors import WeightsError
from pilotfish.invariance.own_parts import functions_in_place
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.layers.attention import PagedAttentionLayer
from pilotfish.layers.splitting import not_split
from pilotfish.models.claims import Claims
from pilotfish.models.loading import load_layers
from pilotfish.parallel.group import Groups
from pilotfish.state import StateSpec
from pilotfish.weights import (
    LoadPlan,
    TensorInfo,
    WeightRules,
    WeightSource,
    check_int4,
    plan_load,
    stays_stored,
    tensors_read,
    without_ignored,
)
from pilotfish.weights.shards import check_shards


class LoadsNetwork(Claims):
    """The part of a DecoderModel that reads weights."""

    config: Any
    _planned_load: tuple[Mapping[str, TensorInfo], LoadPlan] | None = None

    if TYPE_CHECKING:

        def weight_rules(self) -> WeightRules:
            """How a checkpoint's tensors become the network's parameters."""

        def join_replicas(self, groups: Groups) -> None:
            """After the network was split."""

    def shard(self, groups: Groups) -> None:
        """Leaves this rank its part of the network; once, before `load_model`.

        Raises ConfigError naming the layer that cannot be split so.
        """
        if groups.is_trivial:
            self.groups = groups
            return
        layers = list(self.network.layers_inside())
        by_heads = any(getattr(spec, "heads_axis", None) is not None for spec in self.state)
        knows = any(isinstance(layer, PagedAttentionLayer) for layer in layers)
        if by_heads and not knows and not groups.tensor.is_alone:
            raise not_split(self.network, "the network", "no layer is a PagedAttentionLayer")
        self.network.shard(groups)
        self.join_replicas(groups)
        self.groups = groups

    @property
    def state(self) -> tuple[StateSpec, ...]:
        """The caches this model needs."""
        specs: tuple[StateSpec, ...] = self.config.get_state_specs()
        return tuple(spec.of_rank(self.groups.tensor.size) for spec in specs)

    def parameter_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Every parameter with memory of its own, name -> shape; a tied one has none."""
        ties = self.weight_rules().ties
        shapes = self.network.parameter_shapes()
        return {name: shape for name, shape in shapes.items() if name not in ties}

    def without_ignored(self, infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors that `load_model` reads, without those that the rules let lie."""
        return without_ignored(self.weight_rules(), infos, self.network.parameter_shapes())

    def staying(self, infos: Mapping[str, TensorInfo]) -> frozenset[str]:
        """The tensors that `load_model` uses as they lie in the file, in what memory they take."""
        if self.backend.name != "native":
            return frozenset()
        shapes = self.network.parameter_shapes()
        read = tensors_read(self.weight_rules(), infos, filter(self.network.may_stay, shapes))
        return frozenset(name for name in read if stays_stored(infos[name], self.config.dtype))

    def plan_load(self, infos: Mapping[str, TensorInfo]) -> LoadPlan:
        """Which tensors fill which parameter. Raises WeightsError naming what does not fit, and
        ConfigError for a tensor that cannot be cut where ranks or slices want it.
        """
        if self._planned_load is None or self._planned_load[0] is not infos:
            shapes = self.network.parameter_shapes()
            try:
                self._planned_load = infos, plan_load(self.weight_rules(), infos, shapes)
            except WeightsError as error:
                functions = functions_in_place(self)
                if not functions:
                    raise
                raise WeightsError(
                    f"{error}; {', '.join(functions)} is a function, in which no parameter is "
                    "found: wanted a Layer in its place"
                ) from None
            keeps = self.network.may_stay if self.backend.name == "native" else None
            check_shards(self._planned_load[1], infos, self.network.shards(), keeps)
        return self._planned_load[1]

    def load_model(self, weights: WeightSource, known: ProbeCache | None = None) -> None:
        """Fills every parameter, and finds the padding that holds on this machine.

        known: what probes found, read and filled; models may share one.
        Raises WeightsError naming missing, extra and misshapen tensors before any is read.
        """
        check_int4(weights)
        plan, known = self.plan_load(weights.infos), known or ProbeCache()
        self.probe_padding(known)  # with matrices of its own, while there are no others
        load_layers(
            self.network,
            plan,
            weights,
            self.dtype,
            backend=self.backend,
            device=self.device,
            shards=self.network.shards(),
        )
        self._planned_load = None
        if self.network.rotary is not None:
            self.network.rotary.to(self.device)
        self._is_loaded, self._pass_probe = True, None
        self.probe_padding(known)  # what came in another form than declared
