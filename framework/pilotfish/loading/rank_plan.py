"""How ranks share a model: what each reads and says in a pass, and how many ranks agree.

Knows: a rank's share, and floors that follow from bytes. Does not know: how it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

import attrs

from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.layer import Layer
from pilotfish.loading.prepared import Prepared
from pilotfish.loading.share import Share
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.parallel.group import Groups
from pilotfish.parallel.traffic import Bounds, Collective
from pilotfish.protocols.optional import of_model
from pilotfish.state import StateSpec
from pilotfish.weights.shards import check_shards

READ_IN_PASSES = ("layers", "norm", "lm_head")
"""Parts of a network whose weights every pass reads; others serve images and the like."""


@attrs.frozen(slots=False)
class RankPass:
    """A pass of some rows, of which `logit_rows` give logits, on the fullest rank of a share."""

    share: Share
    rows: int
    logit_rows: int

    @cached_property
    def collectives(self) -> list[Collective]:
        """In the order in which they are made."""
        return self.share.collectives(self.rows, self.logit_rows)

    @property
    def sent(self) -> Bounds:
        """Bytes that a rank sends, the one that gathers logits aside: least and most."""
        return _sum(one.sent for one in self.collectives)

    @property
    def received(self) -> Bounds:
        """Bytes that the first rank gets from others."""
        return _sum(one.received for one in self.collectives)

    @cached_property
    def weights_read(self) -> Bounds:
        """Bytes of weights that the pass multiplies with: least where all rows choose the same
        experts, spread over all ranks; most where the experts of a rank are all chosen. Replicas
        that share experts have as many rows each.
        """
        share, least, most = self.share, 0, 0
        of_experts: Counter[str] = Counter()
        for parameter, count in share.parameter_bytes.items():
            if parameter in share.expert_parameters:
                of_experts[share.expert_parameters[parameter]] += count
            elif self._is_read(parameter):
                least, most = least + count, most + count
        for name, count in of_experts.items():
            layer = share.mixtures[name]
            own, chosen = len(layer.experts.own), layer.router.routing.num_chosen
            num_ranks = layer.experts.num_experts // own
            least += count // own * -(-chosen // num_ranks)
            rows = self.rows * share.groups.num_expert_replicas
            most += count // own * min(own, rows * chosen)
        return least, most

    def floor_ms(self, bandwidth_gb_s: float, link_gb_s: float) -> tuple[float, float]:
        """Milliseconds that weights take through a device's memory and what ranks say through the
        links, one after the other, and nothing else: no pass is faster.
        """
        read, received = self.weights_read, self.received
        least, most = ((read[i] / bandwidth_gb_s + received[i] / link_gb_s) / 1e6 for i in (0, 1))
        return least, most

    def _is_read(self, parameter: str) -> bool:
        """Whether every pass reads it whole: of a table only where the head shares it."""
        owner, _, _ = parameter.rpartition(".")
        if isinstance(self.share.layers.get(f"{owner}."), Embedding):
            assert self.share.network is not None
            declared = self.share.network.parameter_shapes().keys()
            return bool(declared - self.share.parameter_bytes.keys())
        return parameter.partition(".")[0] in READ_IN_PASSES


def _sum(bounds: Iterator[Bounds]) -> Bounds:
    least = most = 0
    for one in bounds:
        least, most = least + one[0], most + one[1]
    return least, most


def sizes_that_agree(prepared: Prepared) -> list[int]:
    """Numbers of ranks that give the bits of this one, with as many reduction slices.

    Empty where sums of native kernels are not what is computed: others may depend on columns.
    """
    model, share = prepared.model, prepared.share
    if prepared.backend.name != "native" or not isinstance(model, DecoderModel):
        return []
    num_slices = share.groups.reduction_slices
    divisors = (n for n in range(1, num_slices + 1) if num_slices % n == 0)
    return [n for n in divisors if _accepts(prepared, model, n, num_slices)]


def _accepts(prepared: Prepared, model: DecoderModel, size: int, num_slices: int) -> bool:
    """Whether layers and draft can be split so, with all experts on every rank."""
    config = ParallelConfig(tensor_parallel=size, expert_parallel=1, reduction_slices=num_slices)
    network, groups = model.build_network(), Groups.of_rank(0, config)
    try:
        network.shard(groups)
        _check_stored(prepared.share, network)
        draft = prepared.draft
        if draft is not None and draft.share is not None:
            proposer = prepared.make_proposer(draft.registry, groups)
            of_model(proposer).plan_load(draft.share.infos)
    except ConfigError:
        return False
    return True


def _check_stored(share: Share, network: Layer) -> None:
    if share.staying and share.plan is not None:
        check_shards(share.plan, share.infos, network.shards(), network.may_stay)


def whole_specs(prepared: Prepared) -> tuple[StateSpec, ...]:
    """Of the caches that ranks share, as one device has them."""
    draft = prepared.draft
    of_draft = () if draft is None or draft.share is None else draft.config.get_state_specs()
    return (*prepared.model.config.get_state_specs(), *of_draft)


def replicated(prepared: Prepared) -> dict[str, int]:
    """Bytes of what every rank holds whole, of the model and of a draft that ranks share."""
    draft = prepared.draft
    of_draft = {} if draft is None or draft.share is None else draft.share.replicated
    return {**prepared.share.replicated, **{f"draft.{name}": n for name, n in of_draft.items()}}
