"""What `pilotfish inspect` says of several ranks, as plain data and as lines.

Knows: words and units. Does not know: how the numbers are found (`loading.rank_plan`).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pilotfish.loading.prepared import Prepared
    from pilotfish.loading.rank_plan import RankPass
    from pilotfish.parallel.traffic import Bounds
    from pilotfish.state import PagedStateSpec

PASSES = {"decode": (16, 16), "prefill": (512, 1)}
"""Rows of the passes that are shown, and how many of them give logits."""
_NUMBER = re.compile(r"\d+")


def describe_ranks(
    prepared: Prepared, bandwidth: float | None, link: float | None
) -> dict[str, Any] | None:
    """Of the first rank; None where nothing is asked of ranks: no sharing, no slices, no floors.

    Bytes are lists of least and most where the choice of experts decides.
    bandwidth, link: of a device's memory and between ranks, GB/s; link: None on one rank.
    """
    from pilotfish.loading.rank_plan import RankPass, replicated, sizes_that_agree

    share, plan = prepared.share, prepared.memory_plan
    if share.groups.is_trivial and bandwidth is None:
        return None
    passes = {name: RankPass(share, *rows) for name, rows in PASSES.items()}
    found: dict[str, Any] = {
        "tensor_parallel": share.groups.tensor.size,
        "data_parallel": share.groups.data.size,
        "expert_parallel": share.groups.expert.size if share.mixtures else None,
        "reduction_slices": share.groups.reduction_slices,
        "same_bits_on": sizes_that_agree(prepared),
        "bytes_per_rank": {
            "weights": sum(plan.weights.values()),
            "caches": sum(plan.state.values()),
            "activations": plan.activations,
        },
        "replicated_weights_bytes": _alike(replicated(prepared)),
        "replicated_caches": _whole_caches(prepared),
        "ranks_per_kv_head": _ranks_per_head(prepared),
        "passes": {name: _describe_pass(one) for name, one in passes.items()},
    }
    if bandwidth is not None:
        found["floors_ms"] = {
            name: [round(ms, 3) for ms in one.floor_ms(bandwidth, link or math.inf)]
            for name, one in passes.items()
        }
    return found


def _alike(counts: Mapping[str, int]) -> dict[str, int]:
    """Names that differ in numbers alone together, the most bytes first."""
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[_NUMBER.sub("N", name)] += count
    return dict(found.most_common())


def _whole_caches(prepared: Prepared) -> list[str]:
    """Names of caches that every rank keeps whole."""
    from pilotfish.loading.rank_plan import whole_specs

    size = prepared.groups.tensor.size
    specs = whole_specs(prepared)
    return [spec.name for spec in specs if size > 1 and spec.of_rank(size) == spec]


def _ranks_per_head(prepared: Prepared) -> dict[str, int]:
    """On how many ranks each kv head of a paged cache is, where that is more than one."""
    from pilotfish.loading.rank_plan import whole_specs
    from pilotfish.state import PagedStateSpec

    size = prepared.groups.tensor.size
    paged = (spec for spec in whole_specs(prepared) if isinstance(spec, PagedStateSpec))
    heads = {spec.name: _heads(spec) for spec in paged}
    return {name: size // count for name, count in heads.items() if count and size > count}


def _heads(spec: PagedStateSpec) -> int:
    return 0 if spec.heads_axis is None else spec.row_shape[spec.heads_axis]


def _describe_pass(one: RankPass) -> dict[str, Any]:
    made = one.collectives
    names = dict.fromkeys(collective.name for collective in made)
    return {
        "rows": one.rows,
        "logit_rows": one.logit_rows,
        "collectives": {
            name: {
                "calls": len(mine),
                "bytes_sent": [sum(c.sent[i] for c in mine) for i in (0, 1)],
            }
            for name in names
            if (mine := [c for c in made if c.name == name])
        },
        "bytes_received": list(one.received),
        "weights_bytes_read": list(one.weights_read),
    }


def lines_of_ranks(facts: Mapping[str, Any]) -> Iterator[str]:
    """What `describe_ranks` found, to be read."""
    size, slices = facts["tensor_parallel"], facts["reduction_slices"]
    experts = facts["expert_parallel"]
    spread = f", experts over {experts} of them" if experts else ""
    replicas = facts["data_parallel"]
    each = f" in each of {replicas} replicas" if replicas > 1 else ""
    yield f"ranks: {size}{each}{spread}, sums {f'in {slices} slices' if slices > 1 else 'whole'}"
    if facts["same_bits_on"]:
        agree = ", ".join(map(str, facts["same_bits_on"]))
        yield f"  the same bits on {agree} ranks, with --reduction-slices {slices}"
    parts = (f"{name} {_size(count)}" for name, count in facts["bytes_per_rank"].items())
    yield f"  on the first rank: {', '.join(parts)}"
    whole = facts["replicated_weights_bytes"]
    if whole:
        most = [f"{name} {_size(count)}" for name, count in list(whole.items())[:4]]
        more = f", {len(whole) - 4} more names" if len(whole) > 4 else ""
        yield f"  on every rank whole: {_size(sum(whole.values()))} ({', '.join(most)}{more})"
    for name in facts["replicated_caches"]:
        yield f"  on every rank whole: the cache {name!r}"
    for name, count in facts["ranks_per_kv_head"].items():
        yield f"  every kv head of the cache {name!r} is on {count} ranks"
    for name, one in facts["passes"].items():
        said = (
            f"{made['calls']} {kind}, {_between(made['bytes_sent'])}"
            for kind, made in one["collectives"].items()
        )
        told = "; ".join(said) or "nothing"
        yield f"  a rank sends in {name} of {one['rows']} rows: {told}"
    for name, (least, most) in facts.get("floors_ms", {}).items():
        bounds = f"{least:.4g}" if least == most else f"{least:.4g} to {most:.4g}"
        rows = facts["passes"][name]["rows"]
        yield f"  floor of {name} of {rows} rows, from bytes of weights and links: {bounds} ms"


def _between(bounds: Bounds) -> str:
    least, most = bounds
    return _size(least) if least == most else f"{_size(least)} to {_size(most)}"


def _size(num_bytes: int) -> str:
    from pilotfish.state.memory import size_in_words

    return size_in_words(num_bytes)
