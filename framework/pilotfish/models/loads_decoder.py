"""LoadsDecoder: how a decoder's network gets its part of the weights.

Knows: ranks, the order of a load. Does not know: which tensor goes where (`loads_network.py`),
passes or requests.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.layers.attention import PagedAttentionLayer
from pilotfish.layers.splitting import not_split
from pilotfish.models.claims import Claims
from pilotfish.models.loading import load_layers
from pilotfish.models.loads_network import LoadsNetwork
from pilotfish.parallel.group import Groups
from pilotfish.state import StateSpec
from pilotfish.weights import WeightSource, check_int4

if TYPE_CHECKING:
    from pilotfish.models.decoder import Decoder


class LoadsDecoder(LoadsNetwork, Claims):
    """The part of a DecoderModel that reads weights."""

    network: Decoder

    if TYPE_CHECKING:

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
