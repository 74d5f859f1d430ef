"""How ranks share a model: what each reads and says in a pass, and how many ranks agree.

Knows: a rank's share, and floors that follow from bytes. Does not know: how it is shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

import attrs

from pilotfish.config import ParallelConfig
from pilotfish.errors import ConfigError, WeightsError
from pilotfish.layers.embedding import Embedding
from pilotfish.loading.prepared import Prepared
from pilotfish.loading.share import Share
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.parallel.group import Groups
from pilotfish.parallel.traffic import Bounds, Collective
from pilotfish.protocols.optional import of_model
from pilotfish.state import StateSpec
from pilotfish.weights import LoadPlan, TensorInfo, plan_load
from pilotfish.weights.shards import check_shards

READ_IN_PASSES = ("layers", "norm", "lm_head")
"""Parts of a network whose weights every pass reads; others serve images and the like."""
SIZES = (*range(1, 11), 12, 16, 20, 24, 32, 40, 48, 64)
"""Of ranks and of slices, that are tried where others are refused."""


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


@contextmanager
def saying_what_fits(
    model: object, infos: Mapping[str, TensorInfo], parallel: ParallelConfig
) -> Iterator[None]:
    """Where one layer refuses what is asked of it, its ConfigError ends with what all would take.

    model: made for these options, without weights. infos: of its tensors; empty where they are
    absent, and what cannot be cut in a file is not known.
    """
    try:
        yield
    except ConfigError as error:
        fits = ""
        if parallel.num_slices > 1 and isinstance(model, DecoderModel):
            fits = _what_fits(model, infos, parallel)
        if not fits:
            raise
        raise ConfigError(f"{error}; {fits}") from error


def _what_fits(
    model: DecoderModel, infos: Mapping[str, TensorInfo], parallel: ParallelConfig
) -> str:
    """Sizes that every layer takes: with as many slices as are asked for, or as there are ranks;
    where there are none, numbers of slices for as many ranks; else both. "" where it is not for its
    size that a layer refuses.
    """
    asked, slices = parallel.tensor_parallel, parallel.reduction_slices
    plan = _plan_of(model, infos)

    def takes(size: int, num_slices: int) -> bool:
        return num_slices % size == 0 and _takes(model, size, num_slices, plan, infos)

    sizes = [n for n in SIZES if takes(n, slices or n)]
    if asked in sizes:
        return ""
    if sizes:
        with_slices = "" if slices is None else f" with reduction_slices {slices}"
        return f"all layers take tensor_parallel {_either(sizes)}{with_slices}"
    counts = [n for n in SIZES if takes(asked, n)]
    if counts:
        return f"with tensor_parallel {asked} all layers take reduction_slices {_either(counts)}"
    both = [n for n in SIZES if takes(n, n)]
    return f"all layers take tensor_parallel {_either(both)} with as many reduction_slices"


def _either(sizes: list[int]) -> str:
    *few, last = map(str, sizes)
    return f"{', '.join(few)} or {last}" if few else last


def _plan_of(model: DecoderModel, infos: Mapping[str, TensorInfo]) -> LoadPlan | None:
    """None where the tensors are not there, or are not the model's."""
    try:
        shapes = model.build_network().parameter_shapes()
        return plan_load(model.weight_rules(), infos, shapes) if infos else None
    except WeightsError:
        return None


def _takes(
    model: DecoderModel,
    size: int,
    num_slices: int,
    plan: LoadPlan | None,
    infos: Mapping[str, TensorInfo],
) -> bool:
    """Whether its layers can be split so, with all experts on every rank, and what the plan reads
    of the file.
    """
    config = ParallelConfig(tensor_parallel=size, expert_parallel=1, reduction_slices=num_slices)
    network = model.build_network()
    try:
        network.shard(Groups.of_rank(0, config))
        if plan is not None:
            keeps = network.may_stay if model.backend.name == "native" else None
            check_shards(plan, infos, network.shards(), keeps)
    except ConfigError:
        return False
    return True


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
    """As `_takes`, and whether the draft can be split so."""
    share, draft = prepared.share, prepared.draft
    if not _takes(model, size, num_slices, share.plan if share.staying else None, share.infos):
        return False
    if draft is None or draft.share is None:
        return True
    config = ParallelConfig(tensor_parallel=size, expert_parallel=1, reduction_slices=num_slices)
    try:
        proposer = prepared.make_proposer(draft.registry, Groups.of_rank(0, config))
        of_model(proposer).plan_load(draft.share.infos)
    except ConfigError:
        return False
    return True


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
