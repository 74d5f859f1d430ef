"""LoadsNetwork: which of a checkpoint's tensors fill a network, a target's or a draft's.

Knows: rules, shapes, what ranks and slices cut. Does not know: when weights are read, or what the
network is for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pilotfish.errors import WeightsError
from pilotfish.invariance.own_parts import functions_in_place
from pilotfish.kernels import KernelBackend
from pilotfish.weights import (
    LoadPlan,
    TensorInfo,
    WeightRules,
    plan_load,
    stays_stored,
    tensors_read,
    without_ignored,
)
from pilotfish.weights.shards import check_shards


class LoadsNetwork:
    """Base of what has a `network`, and reads its weights by `weight_rules`."""

    config: Any
    network: Any
    backend: KernelBackend
    _planned_load: tuple[Mapping[str, TensorInfo], LoadPlan] | None = None

    def weight_rules(self) -> WeightRules:
        """How a checkpoint's tensors become the network's parameters."""
        raise NotImplementedError

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
            network = self.network
            try:
                plan = plan_load(self.weight_rules(), infos, network.parameter_shapes())
            except WeightsError as error:
                functions = functions_in_place(self)
                if not functions:
                    raise
                raise WeightsError(
                    f"{error}; {', '.join(functions)} is a function, in which no parameter is "
                    "found: wanted a Layer in its place"
                ) from None
            keeps = network.may_stay if self.backend.name == "native" else None
            check_shards(plan, infos, network.shards(), keeps)
            self._planned_load = infos, plan
        return self._planned_load[1]
