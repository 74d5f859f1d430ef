"""Loading: from a user's MODEL and options to a model with weights and state.

Knows: the order of the steps, so that what can be refused is refused before weights are read.
Does not know: any architecture, or how requests are run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.config import (
    CacheConfig,
    ModelConfig,
    PipelineConfig,
    RuntimeConfig,
    SpeculativeConfig,
)
from pilotfish.engine.drafting import PreparedDraft, prepare_draft
from pilotfish.engine.planning import plan_memory
from pilotfish.engine.thinking import with_thinking_tokens
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.plugins import load_registry
from pilotfish.protocols import ArchConfig, ImageProcessor, PipelineModel, ReturnLogits
from pilotfish.registry import Registry, Route
from pilotfish.speculation import Proposer, ProposerSetup
from pilotfish.state import (
    MemoryPlan,
    PagedStateSpec,
    SlotStateSpec,
    StateManager,
    StateSpec,
)
from pilotfish.weights import Checkpoint, WeightSource, open_checkpoint
from pilotfish.weights.int4 import num_parameters

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True)
class Prepared:
    """Everything that is decided before weights are read. Made by `prepare`.

    pipeline_config: the options with every "auto" resolved. model: without weights; its config is
    complete. weights: the checkpoint's tensors, unread. vocab_size: ids that the model knows.
    image_processor: None for text only.
    """

    checkpoint: Checkpoint
    route: Route
    pipeline_config: PipelineConfig
    model: PipelineModel
    backend: KernelBackend
    device: torch.device
    weights: WeightSource
    draft: PreparedDraft | None = None
    vocab_size: int
    memory_plan: MemoryPlan
    image_processor: ImageProcessor | None = None

    @property
    def dtype(self) -> str:
        """Of weights and activations."""
        return self.pipeline_config.runtime.dtype

    @property
    def modalities(self) -> frozenset[str]:
        """Kinds of input that this checkpoint serves, of those of its architecture."""
        served = self.route.architecture.modalities
        return served if self.image_processor is not None else served - {"image"}

    @property
    def unserved_token_ids(self) -> Mapping[str, int]:
        """Placeholders, by kind, of inputs that the checkpoint has no part for."""
        return getattr(self.model.config, "unserved_token_ids", {})

    @property
    def num_parameters(self) -> int:
        """Numbers in the checkpoint's tensors; those that are packed, each by itself."""
        return num_parameters(self.weights.infos)

    @property
    def state_specs(self) -> tuple[StateSpec, ...]:
        """The caches of the model and of its drafter."""
        drafter = () if self.draft is None else self.draft.config.get_state_specs()
        return (*self.model.state, *drafter)

    def load_proposer(self, registry: Registry) -> Proposer | None:
        """The drafter with its weights, after `load`; None without one. Raises WeightsError."""
        if self.draft is None:
            return None
        proposer = self.draft.model_class(
            ProposerSetup(
                pipeline_config=self.pipeline_config,
                config=self.draft.config,
                backend=self.backend,
                device=self.device,
                target=self.model,
                registry=registry,
            )
        )
        from pilotfish.kernels.device import current_device

        with current_device(self.device):
            proposer.load_model(self.draft.weights)
        return proposer

    def load(self) -> StateManager:
        """Reads the weights into `model` and allocates its state.

        Raises WeightsError naming tensors that do not fit.
        """
        from pilotfish.kernels.device import current_device

        with current_device(self.device):
            self.model.load_model(self.weights)
            return self.allocate()

    def allocate(self, *, poison: bool = False) -> StateManager:
        """Allocates the state that `model` declares. poison: see StateManager; for tests."""
        plan, prefix_caching = self.memory_plan, self.pipeline_config.cache.prefix_caching
        attached = [
            self.model.make_cache(
                spec,
                max_slots=plan.max_batch_size,
                num_pages=plan.num_pages if prefix_caching else 0,
                poison=poison,
            )
            for spec in self.model.state
            if isinstance(spec, SlotStateSpec)
        ]
        return StateManager(
            [spec for spec in self.state_specs if isinstance(spec, PagedStateSpec)],
            num_pages=plan.num_pages,
            page_size_tokens=plan.page_size_tokens,
            device=self.device,
            prefix_caching=prefix_caching,
            attached=attached,
            lookahead=0 if self.draft is None else self.draft.config.lookahead,
            poison=poison,
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
    if not isinstance(registry, Registry):
        raise ConfigError(f"registry is {registry!r}; wanted what load_registry() returns")
    options = _speculative(speculative)
    draft_path = _draft_path(draft)
    checkpoint = open_checkpoint(model, registry)
    model_config = checkpoint.model_config(max_length)
    draft_checkpoint = None if draft_path is None else open_checkpoint(draft_path, registry)
    route = _route(registry, model_config, options, draft_checkpoint)
    checkpoint = attrs.evolve(checkpoint, tiktoken=route.architecture.tiktoken)
    if options is not None:
        options = with_thinking_tokens(options, checkpoint)
    weights = checkpoint.weights()
    runtime = runtime or RuntimeConfig()
    device = _device(_device_name(runtime))
    backend = _backend(runtime, device)
    cache = cache or CacheConfig()
    dtype = runtime.dtype
    if dtype == "auto":
        dtype, cache = _dtypes(checkpoint, weights, backend, cache)
    _check_cache_dtype(cache, dtype, backend)
    pipeline_config = PipelineConfig(
        model=model_config,
        draft_model=None if draft_checkpoint is None else draft_checkpoint.model_config(),
        cache=cache,
        runtime=attrs.evolve(runtime, dtype=dtype, device=str(device), backend=backend.name),
        speculative=options,
    )
    config = route.config_class().initialize(pipeline_config)
    vocab_size = _vocab_size(config, model_config)
    prepared_draft = None
    if options is not None:
        prepared_draft = prepare_draft(
            route,
            pipeline_config,
            options,
            draft_checkpoint,
            registry=registry,
            vocab_size=vocab_size,
        )
    config = config.finalize(checkpoint.huggingface_config, weights.infos)
    processor_class = route.image_processor_class()
    processor = None
    if processor_class is not None:
        processor = processor_class.from_checkpoint(config, checkpoint.path)
        if processor is not None and not 0 <= processor.placeholder_token_id < vocab_size:
            raise ConfigError(
                f"{model}: the placeholder of images is token id {processor.placeholder_token_id} "
                f"and the vocabulary has {vocab_size} ids; wanted one of them, or no image could "
                "ever be given: check the placeholder's id in config.json"
            )
    hidden: dict[str, Any] = {}
    if prepared_draft is not None:
        hidden = {
            "return_hidden_states": prepared_draft.config.return_hidden_states,
            "hidden_state_boundaries": prepared_draft.config.taps,
        }
    prepared_model = route.model_class()(
        pipeline_config,
        config,
        backend,
        device=device,
        return_logits=ReturnLogits.VARIABLE,
        **hidden,
    )
    infos = getattr(prepared_model, "without_ignored", dict)(weights.infos)
    staying = getattr(prepared_model, "staying", lambda _: ())(infos)
    memory_plan = plan_memory(
        pipeline_config, config, infos, vocab_size, prepared_draft, staying=staying
    )
    return Prepared(
        checkpoint=checkpoint,
        route=route,
        pipeline_config=pipeline_config,
        model=prepared_model,
        backend=backend,
        device=device,
        weights=weights,
        draft=prepared_draft,
        vocab_size=vocab_size,
        memory_plan=memory_plan,
        image_processor=processor,
    )


def _speculative(given: object) -> SpeculativeConfig | None:
    if isinstance(given, str):
        return SpeculativeConfig(method=given)
    if given is None or isinstance(given, SpeculativeConfig):
        return given
    raise ConfigError(
        f"speculative is {given!r}; wanted None, the name of a method, or a SpeculativeConfig"
    )


def _draft_path(given: object) -> str | None:
    if given is None:
        return None
    path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
    if isinstance(path, str) and path.strip():
        return path
    raise ConfigError(
        f"draft is {given!r}; wanted a checkpoint: a directory, a .gguf file or a hub id"
    )


def _route(
    registry: Registry,
    model: ModelConfig,
    options: SpeculativeConfig | None,
    draft: Checkpoint | None,
) -> Route:
    method = None if options is None else options.method
    draft_architecture = None if draft is None else draft.model_config().architecture
    route = registry.route(model.architecture, method, draft_architecture)
    if route.needs_draft and draft is None:
        raise ConfigError(
            f"the method {method!r} needs a draft and none was given; wanted a checkpoint of "
            f"{_named(route.draft_architectures)}: give one: --draft, or draft= in Python"
        )
    return route


def _named(architectures: Sequence[str]) -> str:
    return "any architecture" if "*" in architectures else " or ".join(architectures)


def _dtypes(
    checkpoint: Checkpoint, weights: WeightSource, backend: KernelBackend, cache: CacheConfig
) -> tuple[str, CacheConfig]:
    """The dtype of a run that nobody gave one, and the cache's: a matter of the file alone.

    Native products take float32 rows over weights of any kind, so a quantized file is run in
    float32, which rounds least; its pages stay in 16 bits.
    """
    if backend.name == "native" and checkpoint.model_config().weight_format == "gguf":
        return "float32", attrs.evolve(cache, dtype=cache.dtype or "float16")
    return checkpoint.dtype(weights), cache


def _check_cache_dtype(cache: CacheConfig, dtype: str, backend: KernelBackend) -> None:
    if cache.dtype not in (None, dtype) and backend.name != "native":
        raise ConfigError(
            f"the cache's dtype is {cache.dtype} and the run's {dtype}; wanted one dtype with the "
            f"backend {backend.name!r}: only native kernels read pages of another"
        )


def _device_name(runtime: RuntimeConfig) -> str:
    import torch

    if runtime.device != "auto":
        return runtime.device
    return "cuda" if torch.cuda.is_available() else "cpu"


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
    if backend.name == "native":
        _check_native(device)
    elif runtime.arithmetic == "portable":
        raise ConfigError(
            "arithmetic is 'portable' and the kernels would be "
            f"{backend.name!r}; wanted native ones on a CPU, whose bits are the same on every "
            f"processor{_no_native()}: use 'invariant', the same bits on one machine"
        )
    if backend.name == "triton" and device.type == "cpu" and not _interprets_triton():
        raise ConfigError(
            "backend is 'triton' on a CPU; wanted 'torch' or 'auto' there (TRITON_INTERPRET=1 runs "
            "triton kernels on a CPU, slowly, for tests)"
        )
    if backend.name == "triton" and importlib.util.find_spec("triton") is None:
        raise ConfigError(
            "backend is 'triton' and the package triton is not installed; wanted it (torch's CUDA "
            "builds for Linux bring it; else: pip install triton), or backend 'torch'"
        )
    return backend


def _check_native(device: torch.device) -> None:
    if device.type != "cpu":
        raise ConfigError(f"backend is 'native' on {device}; wanted device cpu, or backend 'auto'")
    if _no_native():
        raise ConfigError(f"backend is 'native'{_no_native()}; wanted 'torch' or 'auto' here")


def _no_native() -> str:
    """Why there are no native kernels, to be put behind a phrase; "" where there are."""
    from pilotfish.kernels.native import why_not

    return f" (there are none here: {why_not()})" if why_not() else ""


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
