"""Loading: from a user's MODEL and options to a model with weights and state.

Knows: the order of the steps, so that what can be refused is refused before weights are read.
Does not know: any architecture, or how requests are run.
"""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.config import (
    CacheConfig,
    ModelConfig,
    PipelineConfig,
    RuntimeConfig,
    SpeculativeConfig,
)
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.plugins import load_registry
from pilotfish.protocols import ArchConfig, PipelineModel, ReturnLogits
from pilotfish.registry import Registry, Route
from pilotfish.state import (
    MemoryPlan,
    PagedStateSpec,
    StateManager,
    activation_bytes,
    available_bytes,
)
from pilotfish.state.specs import DTYPE_BYTES
from pilotfish.weights import Checkpoint, WeightSource, open_checkpoint

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True)
class Prepared:
    """Everything that is decided before weights are read. Made by `prepare`.

    pipeline_config: the options with every "auto" resolved. model: without weights; its config is
    complete. weights: the checkpoint's tensors, unread. vocab_size: ids that the model knows.
    """

    checkpoint: Checkpoint
    route: Route
    pipeline_config: PipelineConfig
    model: PipelineModel
    backend: KernelBackend
    device: torch.device
    weights: WeightSource
    vocab_size: int
    memory_plan: MemoryPlan

    @property
    def dtype(self) -> str:
        """Of weights and activations."""
        return self.pipeline_config.runtime.dtype

    @property
    def num_parameters(self) -> int:
        """Numbers in the checkpoint's tensors."""
        return sum(math.prod(info.shape) for info in self.weights.infos.values())

    def load(self) -> StateManager:
        """Reads the weights into `model` and allocates its state.

        Raises WeightsError naming tensors that do not fit.
        """
        self.model.load_model(self.weights)
        return StateManager(
            [spec for spec in self.model.state if isinstance(spec, PagedStateSpec)],
            num_pages=self.memory_plan.num_pages,
            page_size_tokens=self.memory_plan.page_size_tokens,
            device=self.device,
            prefix_caching=self.pipeline_config.cache.prefix_caching,
        )


def prepare_from_options(
    model: str,
    *,
    registry: Registry | None = None,
    draft: str | None = None,
    speculative: str | SpeculativeConfig | None = None,
    cache: CacheConfig | None = None,
    max_length: int | None = None,
    **runtime: Any,
) -> Prepared:
    """As `prepare`, with the arguments of `LLM`. runtime: fields of RuntimeConfig."""
    return prepare(
        model,
        registry=registry if registry is not None else load_registry(),
        draft=draft,
        speculative=speculative,
        runtime=RuntimeConfig(**runtime),
        cache=cache,
        max_length=max_length,
    )


def prepare(
    model: str,
    *,
    registry: Registry,
    draft: str | None = None,
    speculative: str | SpeculativeConfig | None = None,
    runtime: RuntimeConfig | None = None,
    cache: CacheConfig | None = None,
    max_length: int | None = None,
) -> Prepared:
    """Opens the checkpoint, routes it, plans the memory and makes the model; reads no weights.

    Raises CheckpointError, RouteError, ConfigError, or CapacityError when it does not fit.
    """
    checkpoint = open_checkpoint(model, registry)
    model_config = checkpoint.model_config(max_length)
    route = _route(registry, model_config, draft, speculative)
    weights = checkpoint.weights()
    resolved = _resolve(runtime or RuntimeConfig(), checkpoint, weights)
    device = _device(resolved.device)
    backend = _backend(resolved, device)
    pipeline_config = PipelineConfig(
        model=model_config,
        cache=cache or CacheConfig(),
        runtime=attrs.evolve(resolved, backend=backend.name),
    )
    config = route.config_class().initialize(pipeline_config)
    vocab_size = _vocab_size(config, model_config)
    memory_plan = _plan(pipeline_config, config, weights, vocab_size)
    config = config.finalize(checkpoint.huggingface_config, weights.infos)
    return Prepared(
        checkpoint=checkpoint,
        route=route,
        pipeline_config=pipeline_config,
        model=route.model_class()(
            pipeline_config,
            config,
            backend,
            device=device,
            return_logits=ReturnLogits.VARIABLE,
        ),
        backend=backend,
        device=device,
        weights=weights,
        vocab_size=vocab_size,
        memory_plan=memory_plan,
    )


def _route(
    registry: Registry,
    model: ModelConfig,
    draft: str | None,
    speculative: str | SpeculativeConfig | None,
) -> Route:
    method = speculative.method if isinstance(speculative, SpeculativeConfig) else speculative
    draft_architecture = None
    if draft is not None:
        draft_architecture = open_checkpoint(draft, registry).model_config().architecture
    route = registry.route(model.architecture, method, draft_architecture)
    if route.speculator is not None:
        raise ConfigError(
            f"the method {method!r} is registered, but this version runs plain decoding only; "
            "leave --speculative and --draft out"
        )
    return route


def _resolve(
    runtime: RuntimeConfig, checkpoint: Checkpoint, weights: WeightSource
) -> RuntimeConfig:
    """The options with dtype and device decided."""
    import torch

    dtype, device = runtime.dtype, runtime.device
    if dtype == "auto":
        dtype = checkpoint.dtype(weights)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return attrs.evolve(runtime, dtype=dtype, device=device)


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {name!r}; wanted auto, cpu, cuda or cuda:N ({str(error).splitlines()[0]})"
        ) from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {name!r}; wanted auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= count:
        raise ConfigError(f"device is {name!r} and there are {count} GPUs here; try device cpu")
    return device


def _backend(runtime: RuntimeConfig, device: torch.device) -> KernelBackend:
    backend = KernelBackend.choose(runtime.backend, device.type, runtime.arithmetic)
    if backend.name == "triton" and device.type == "cpu" and not _interprets_triton():
        raise ConfigError(
            "backend is 'triton' on a CPU; wanted 'torch' or 'auto' there (TRITON_INTERPRET=1 runs "
            "triton kernels on a CPU, slowly, for tests)"
        )
    return backend


def _interprets_triton() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _vocab_size(config: ArchConfig, model: ModelConfig) -> int:
    """The config's, else the checkpoint's."""
    hf = model.huggingface_config
    for source in (config, hf, getattr(hf, "text_config", None)):
        found = getattr(source, "vocab_size", None)
        if isinstance(found, int) and found > 0:
            return found
    raise ConfigError(
        f"{model.model}: vocab_size is in neither the architecture's config nor the checkpoint's; "
        "wanted the number of token ids"
    )


def _plan(
    pipeline_config: PipelineConfig, config: ArchConfig, weights: WeightSource, vocab_size: int
) -> MemoryPlan:
    runtime = pipeline_config.runtime
    specs = config.get_state_specs()
    for spec in specs:
        if not isinstance(spec, PagedStateSpec):
            raise ConfigError(
                f"the state {spec.name!r} is a {type(spec).__name__}; this version allocates "
                "PagedStateSpec only"
            )
    itemsize = DTYPE_BYTES[runtime.dtype]
    return MemoryPlan.make(
        weights={"model": _weight_bytes(weights, itemsize)},
        specs=specs,
        cache=pipeline_config.cache,
        max_batch_size=runtime.max_batch_size,
        max_seq_len=config.get_max_seq_len(),
        activations=activation_bytes(
            max_batch_tokens=runtime.max_batch_tokens,
            widths=_widths(pipeline_config.model.huggingface_config),
            itemsize=itemsize,
            vocab_size=vocab_size,
            max_logit_rows=max(runtime.max_batch_tokens, runtime.max_batch_size),
        ),
        available=available_bytes(runtime.device),
        device=runtime.device,
    )


def _weight_bytes(weights: WeightSource, itemsize: int) -> int:
    """Bytes in memory: packed and float tensors in the run's dtype, whole numbers as they are."""
    total = 0
    for info in weights.infos.values():
        is_whole = info.dtype.startswith(("int", "uint", "bool"))
        total += info.num_bytes if is_whole else math.prod(info.shape) * itemsize
    return total


def _widths(huggingface_config: Any) -> tuple[int, ...]:
    """Widths of what lives at once in the widest layer, from what most configs say."""
    hf = getattr(huggingface_config, "text_config", None) or huggingface_config
    hidden = int(getattr(hf, "hidden_size", 0) or 0)
    inner = int(getattr(hf, "intermediate_size", 0) or 4 * hidden)
    return (hidden,) * 6 + (inner,) * 3
