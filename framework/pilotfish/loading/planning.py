"""The memory plan of a run: every part in bytes, from configs and file headers alone.

Knows: what weights, state, activations and images take. Does not know: any architecture, or how
the parts are allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import attrs

from pilotfish.config import CacheConfig, PipelineConfig, RuntimeConfig
from pilotfish.loading.draft import PreparedDraft
from pilotfish.loading.share import Share
from pilotfish.platform.memory import available_bytes
from pilotfish.protocols import NO_LIMIT, ArchConfig
from pilotfish.protocols.optional import of_config
from pilotfish.state import MemoryPlan, SlotStateSpec, activation_bytes
from pilotfish.state.copies import NO_COPIES, Copies
from pilotfish.state.memory import (
    OtherRanks,
    bytes_of_pages,
    bytes_of_slots,
    logit_bytes,
    would_fit,
)
from pilotfish.state.specs import DTYPE_BYTES
from pilotfish.weights import TensorInfo, stays_stored
from pilotfish.weights.footprint import weight_kinds

LEAST_LENGTH = 512
"""A context that is cut below this is of little use: fewer requests at once come first."""
LEAST_ROWS = 64
"""Passes of fewer are not advised: prompts would be read slowly."""
NOTE = "to fit the memory"
"""How a note begins."""
UNLIMITED_TOKENS = 1 << 20
"""The longest context, unasked, of a model that has no limit of its own."""

PROCESS_BYTES = 280 << 20
"""What a worker takes beside its share, torch and this package imported: 262 MiB of its own were
measured, with a tiny model. This process has taken as much already."""


def plan_memory(
    pipeline_config: PipelineConfig,
    config: ArchConfig,
    share: Share,
    vocab_size: int,
    draft: PreparedDraft | None,
    *,
    lowers_batch: bool = False,
) -> MemoryPlan:
    """The plan. config: complete. share: the first rank's, of the model.

    lowers_batch: nobody asked for this batch size, so fewer requests may run at once.

    Where it does not fit, and the user gave no `max_length`, it is the plan of the longest context
    that does, and its `note` says so; where nothing fits it is that of what was asked. Contexts of
    a model without a limit are those that pages hold which are taken unasked.
    Raises CapacityError where the user's bytes hold no page.
    """
    plan_of = partial(_plan_of, pipeline_config, config, share, draft, vocab_size=vocab_size)
    length, batch = config.get_max_seq_len(), pipeline_config.runtime.max_batch_size
    if length >= NO_LIMIT:
        length = min(length, UNLIMITED_TOKENS)
        length = min(length, plan_of(max_batch_size=batch, max_seq_len=length).unasked_tokens)
    asked = plan_of(max_batch_size=batch, max_seq_len=length)
    if not asked.missing:
        if config.get_max_seq_len() < NO_LIMIT:
            return asked
        note = (
            f"the model has no limit of its own: there are contexts of {length} tokens "
            "(--max-length, max_length)"
        )
        return attrs.evolve(asked, note=note)
    cuts_length = pipeline_config.model.max_length is None
    while True:
        tried = plan_of(max_batch_size=batch, max_seq_len=length)
        longest = tried.longest_that_fits if cuts_length else 0
        least = min(length, LEAST_LENGTH) if lowers_batch and batch > 1 else 1
        if tried.missing and longest >= least:
            tried = plan_of(max_batch_size=batch, max_seq_len=longest)
        if not tried.missing:
            return attrs.evolve(tried, note=_note(asked, tried))
        if not lowers_batch or batch == 1:
            return attrs.evolve(asked, smaller=_smaller(plan_of, asked, pipeline_config.runtime))
        batch //= 2


def _smaller(
    plan_of: Callable[..., MemoryPlan], asked: MemoryPlan, runtime: RuntimeConfig
) -> tuple[str, ...]:
    """What of the sizes would fit instead, each by itself, or else all together; () for nothing."""
    length, batch, rows = asked.max_seq_len, asked.max_batch_size, runtime.max_batch_tokens
    tried_rows = [n for n in _halves(rows) if n >= LEAST_ROWS]
    sizes = {"max_seq_len": length, "max_batch_size": batch, "max_batch_tokens": rows}

    def fits(**other: int) -> bool:
        return not plan_of(**{**sizes, **other}).missing

    ways = list(asked.shorter)
    for name, given, tried in (
        ("max_batch_size", batch, _halves(batch)),
        ("max_batch_tokens", rows, tried_rows),
    ):
        found = next((n for n in tried if fits(**{name: n})), None)
        if found is not None:
            ways.append(would_fit(name, given, found))
    if ways:
        return tuple(ways)
    for row in (rows, *tried_rows):
        one = plan_of(max_batch_size=1, max_seq_len=length, max_batch_tokens=row)
        longest = min(length, one.longest_that_fits)
        if longest and fits(max_seq_len=longest, max_batch_size=1, max_batch_tokens=row):
            changes = (
                ("max_length", length, longest),
                ("max_batch_size", batch, 1),
                ("max_batch_tokens", rows, row),
            )
            lower = [would_fit(name, now, to) for name, now, to in changes if to < now]
            return (" and ".join(lower),)
    return ()


def _halves(size: int) -> list[int]:
    """Smaller sizes, the largest first."""
    return [size >> shift for shift in range(1, size.bit_length())]


def _note(asked: MemoryPlan, found: MemoryPlan) -> str:
    """What was made smaller, and how to have it otherwise."""
    said: list[str] = []
    if found.max_seq_len < asked.max_seq_len:
        said.append(
            f"contexts of {found.max_seq_len} tokens, not the model's {asked.max_seq_len} "
            "(--max-length, max_length)"
        )
    if found.max_batch_size < asked.max_batch_size:
        said.append(
            f"{found.max_batch_size} requests at once, not {asked.max_batch_size} "
            "(--max-batch-size, max_batch_size)"
        )
    return f"{NOTE} there are {' and '.join(said)}"


def _plan_of(
    pipeline_config: PipelineConfig,
    config: ArchConfig,
    share: Share,
    draft: PreparedDraft | None,
    *,
    vocab_size: int,
    max_batch_size: int,
    max_seq_len: int,
    max_batch_tokens: int | None = None,
) -> MemoryPlan:
    """The plan of these sizes, whether it fits or not."""
    rows = max_batch_tokens or pipeline_config.runtime.max_batch_tokens
    runtime = attrs.evolve(
        pipeline_config.runtime, max_batch_size=max_batch_size, max_batch_tokens=rows
    )
    pipeline_config = attrs.evolve(pipeline_config, runtime=runtime)
    specs, kinds = share.specs, {"model": share.weight_kinds}
    drafted_rows = 0
    if draft is not None:
        specs += draft.state_specs
        drafted_rows = draft.num_logit_rows(max_batch_size, rows)
        if draft.weights is not None:
            kinds["draft"] = _draft_kinds(draft, draft.weights.infos, runtime)
    drafting = _feature_bytes(pipeline_config, draft) * rows + logit_bytes(drafted_rows, vocab_size)
    widths = _widths(pipeline_config.model.huggingface_config, share)
    pass_bytes = _pass_bytes(runtime, share, widths, vocab_size)
    images = _image_bytes(pipeline_config, config)
    return MemoryPlan.make(
        weights={name: sum(of_model.values()) for name, of_model in kinds.items()},
        weight_kinds=kinds,
        specs=specs,
        cache=pipeline_config.cache,
        max_batch_size=max_batch_size,
        max_seq_len=max_seq_len,
        scratch_tokens=0 if draft is None else draft.policy.most + draft.num_scratch_rows,
        activations=pass_bytes + drafting,
        available=available_bytes(runtime.device),
        device=runtime.device,
        images=images,
        others=_with_draft(
            _others(pipeline_config, share, widths, vocab_size, sum(images.values())),
            draft,
            sum(kinds.get("draft", {}).values()),
            drafting,
            pipeline_config.cache,
        ),
        copies=_copies(pipeline_config, share),
    )


def _pass_bytes(
    runtime: RuntimeConfig, share: Share, widths: Iterable[int], vocab_size: int
) -> int:
    """What a pass takes on a rank that makes logits of so many ids, without a drafter."""
    rows = runtime.max_batch_tokens
    uncommitted = sum(spec.bytes_per_row for spec in share.specs if isinstance(spec, SlotStateSpec))
    return (
        uncommitted * rows
        + share.exchanged_bytes(rows)
        + activation_bytes(
            max_batch_tokens=rows,
            widths=tuple(widths),
            itemsize=DTYPE_BYTES[runtime.dtype],
            vocab_size=vocab_size,
            max_logit_rows=max(rows, runtime.max_batch_size),
        )
    )


def _others(
    pipeline_config: PipelineConfig,
    share: Share,
    widths: Iterable[int],
    vocab_size: int,
    image_bytes: int,
) -> OtherRanks:
    """What the other ranks take of the model, the sampler's part aside, and of themselves."""
    runtime, size = pipeline_config.runtime, pipeline_config.parallel.num_ranks
    if size == 1:
        return OtherRanks()
    slots = bytes_of_slots(share.specs, runtime.max_batch_size)
    pass_bytes = _pass_bytes(runtime, share, widths, -(-vocab_size // size))
    return OtherRanks(
        count=size - 1,
        weights=sum(share.weight_kinds.values()) - share.mapped_whole,
        fixed=PROCESS_BYTES + pass_bytes + sum(slots.values()) + image_bytes,
        page_bytes=sum(bytes_of_pages(share.specs, pipeline_config.cache).values()),
    )


def _copies(pipeline_config: PipelineConfig, share: Share) -> Copies:
    """What further replicas take of this machine. On Ray each may have a machine of its own."""
    parallel = pipeline_config.parallel
    if parallel.num_replicas == 1 or parallel.distributed == "ray":
        return NO_COPIES
    return Copies(count=parallel.num_replicas - 1, mapped=share.mapped, process=PROCESS_BYTES)


def _with_draft(
    others: OtherRanks,
    draft: PreparedDraft | None,
    weights: int,
    drafting: int,
    cache: CacheConfig,
) -> OtherRanks:
    """With what of a drafter that ranks share is on each of them.

    weights: bytes of its weights on one rank. drafting: of what a pass takes for it.
    """
    if draft is None or draft.share is None:
        return others
    pages = sum(bytes_of_pages(draft.state_specs, cache).values())
    return attrs.evolve(
        others,
        weights=others.weights + weights,
        fixed=others.fixed + drafting,
        page_bytes=others.page_bytes + pages,
    )


def _draft_kinds(
    draft: PreparedDraft, infos: Mapping[str, TensorInfo], runtime: RuntimeConfig
) -> dict[str, int]:
    """As the model's. Of a draft that is not shared nobody knows which tensors stay: all its
    matrices are such that may.
    """
    if draft.share is not None and draft.share.plan is not None:
        return draft.share.parameter_kinds

    def stays(name: str) -> bool:
        return runtime.backend == "native" and stays_stored(infos[name], runtime.dtype)

    kinds = weight_kinds(infos, runtime.dtype, stays)
    repeated = int(getattr(draft.config, "num_repeated_weights", 0))
    if repeated:
        more = repeated * DTYPE_BYTES[runtime.dtype]
        kinds[runtime.dtype] = kinds.get(runtime.dtype, 0) + more
    return kinds


def _image_bytes(pipeline_config: PipelineConfig, config: ArchConfig) -> dict[str, int]:
    """What images take, by part; empty for an architecture of text only."""
    memory = of_config(config).get_image_memory()
    if memory is None:
        return {}
    return memory.parts(pipeline_config.cache.image_bytes, pipeline_config.runtime.max_batch_tokens)


def _feature_bytes(pipeline_config: PipelineConfig, draft: PreparedDraft | None) -> int:
    """What a row of a pass keeps for the drafter: its aux hidden states, and those side by side."""
    aux_hidden_state_layers = () if draft is None else draft.config.aux_hidden_state_layers
    hf = pipeline_config.model.huggingface_config
    width = int(getattr(getattr(hf, "text_config", None) or hf, "hidden_size", 0) or 0)
    return 2 * len(aux_hidden_state_layers) * width * DTYPE_BYTES[pipeline_config.runtime.dtype]


def _widths(huggingface_config: Any, share: Share) -> tuple[int, ...]:
    """Widths of what lives at once in the widest layer, from what most configs say."""
    hf = getattr(huggingface_config, "text_config", None) or huggingface_config
    hidden = int(getattr(hf, "hidden_size", 0) or 0)
    inner = int(getattr(hf, "intermediate_size", 0) or 4 * hidden)
    # A token's rows once for each of its experts: in, out, and in float32 for the sum.
    chosen = int(getattr(hf, "num_experts_per_tok", 0) or 0)
    expert = int(getattr(hf, "moe_intermediate_size", 0) or inner)
    own = share.experts_of_row(chosen)
    return (
        (hidden,) * 6
        + (share.inner_width(inner),) * 3
        + (own * hidden,) * 2
        + (chosen * hidden,) * 3
        + (own * expert,) * 3
    )
