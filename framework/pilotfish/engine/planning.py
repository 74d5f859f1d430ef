"""The memory plan of a run: every part in bytes, from configs and file headers alone.

Knows: what weights, state, activations and images take. Does not know: any architecture, or how
the parts are allocated.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pilotfish.config import PipelineConfig, RuntimeConfig
from pilotfish.engine.drafting import PreparedDraft
from pilotfish.protocols import ArchConfig, ImageMemory
from pilotfish.state import MemoryPlan, SlotStateSpec, activation_bytes, available_bytes
from pilotfish.state.specs import DTYPE_BYTES
from pilotfish.weights import TensorInfo, stays_stored
from pilotfish.weights.footprint import weight_kinds


def plan_memory(
    pipeline_config: PipelineConfig,
    config: ArchConfig,
    infos: Mapping[str, TensorInfo],
    vocab_size: int,
    draft: PreparedDraft | None,
    *,
    staying: Collection[str] = (),
) -> MemoryPlan:
    """The plan. config: complete. infos: of the tensors that the model reads.

    staying: names of those that are used as they lie in the file; others take the run's dtype.
    Raises CapacityError naming what was needed.
    """
    runtime = pipeline_config.runtime
    specs = tuple(config.get_state_specs())
    uncommitted = sum(spec.bytes_per_row for spec in specs if isinstance(spec, SlotStateSpec))
    itemsize = DTYPE_BYTES[runtime.dtype]
    kinds = {"model": weight_kinds(infos, runtime.dtype, staying.__contains__)}
    if draft is not None:
        specs += tuple(draft.config.get_state_specs())
        if draft.weights is not None:
            kinds["draft"] = _draft_kinds(draft, draft.weights.infos, runtime)
    return MemoryPlan.make(
        weights={name: sum(of_model.values()) for name, of_model in kinds.items()},
        weight_kinds=kinds,
        specs=specs,
        cache=pipeline_config.cache,
        max_batch_size=runtime.max_batch_size,
        max_seq_len=config.get_max_seq_len(),
        scratch_tokens=0 if draft is None else draft.policy.most + draft.num_scratch_rows,
        activations=uncommitted * runtime.max_batch_tokens
        + _feature_bytes(pipeline_config, draft) * runtime.max_batch_tokens
        + activation_bytes(
            max_batch_tokens=runtime.max_batch_tokens,
            widths=_widths(pipeline_config.model.huggingface_config),
            itemsize=itemsize,
            vocab_size=vocab_size,
            max_logit_rows=max(runtime.max_batch_tokens, runtime.max_batch_size)
            + _draft_logit_rows(pipeline_config, draft),
        ),
        available=available_bytes(runtime.device),
        device=runtime.device,
        images=_image_bytes(pipeline_config, config),
    )


def _draft_kinds(
    draft: PreparedDraft, infos: Mapping[str, TensorInfo], runtime: RuntimeConfig
) -> dict[str, int]:
    """As the model's; a draft is not made yet, and all its matrices are such that may stay."""

    def stays(name: str) -> bool:
        return runtime.backend == "native" and stays_stored(infos[name], runtime.dtype)

    kinds = weight_kinds(infos, runtime.dtype, stays)
    repeated = int(getattr(draft.config, "num_repeated_weights", 0))
    if repeated:
        more = repeated * DTYPE_BYTES[runtime.dtype]
        kinds[runtime.dtype] = kinds.get(runtime.dtype, 0) + more
    return kinds


def _draft_logit_rows(pipeline_config: PipelineConfig, draft: PreparedDraft | None) -> int:
    """Rows of logits that drafting makes while those of the pass are still held."""
    runtime = pipeline_config.runtime
    if draft is None:
        return 0
    return draft.num_logit_rows(runtime.max_batch_size, runtime.max_batch_tokens)


def _image_bytes(pipeline_config: PipelineConfig, config: ArchConfig) -> dict[str, int]:
    """What images take, by part; empty for an architecture of text only."""
    get_memory = getattr(config, "get_image_memory", None)
    memory: ImageMemory | None = None if get_memory is None else get_memory()
    if memory is None:
        return {}
    return memory.parts(pipeline_config.cache.image_bytes, pipeline_config.runtime.max_batch_tokens)


def _feature_bytes(pipeline_config: PipelineConfig, draft: PreparedDraft | None) -> int:
    """What a row of a pass keeps for the drafter: its taps, and the taps side by side."""
    taps = () if draft is None else draft.config.taps
    hf = pipeline_config.model.huggingface_config
    width = int(getattr(getattr(hf, "text_config", None) or hf, "hidden_size", 0) or 0)
    return 2 * len(taps) * width * DTYPE_BYTES[pipeline_config.runtime.dtype]


def _widths(huggingface_config: Any) -> tuple[int, ...]:
    """Widths of what lives at once in the widest layer, from what most configs say."""
    hf = getattr(huggingface_config, "text_config", None) or huggingface_config
    hidden = int(getattr(hf, "hidden_size", 0) or 0)
    inner = int(getattr(hf, "intermediate_size", 0) or 4 * hidden)
    # A token's rows once for each of its experts: in, out, and in float32 for the sum.
    experts = int(getattr(hf, "num_experts_per_tok", 0) or 0)
    expert = int(getattr(hf, "moe_intermediate_size", 0) or inner)
    return (hidden,) * 6 + (inner,) * 3 + (experts * hidden,) * 5 + (experts * expert,) * 3
