"""Loading: from a user's MODEL and options to a `Prepared` run.

Knows: the order of the steps, so that what can be refused is refused before weights are read.
Does not know: any architecture, or how requests are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.config import (
    CacheConfig,
    ModelConfig,
    ParallelConfig,
    PipelineConfig,
    RuntimeConfig,
    SpeculativeConfig,
)
from pilotfish.errors import ConfigError
from pilotfish.kernels import KernelBackend
from pilotfish.loading.draft import PreparedDraft, prepare_draft
from pilotfish.loading.hardware import check_cache_dtype, choose_backend, choose_device
from pilotfish.loading.planning import plan_memory
from pilotfish.loading.prepared import Prepared
from pilotfish.loading.rank_plan import saying_what_fits
from pilotfish.loading.routing import read_draft, read_speculative, route_of
from pilotfish.loading.share import Share
from pilotfish.loading.thinking import with_thinking_tokens
from pilotfish.parallel.group import Groups
from pilotfish.plugins import load_registry
from pilotfish.protocols import ArchConfig, ImageProcessor, PipelineModel, ReturnLogits
from pilotfish.protocols.checks import check_target
from pilotfish.protocols.optional import of_model
from pilotfish.registry import Registry, Route
from pilotfish.speculation import ProposerSetup
from pilotfish.weights import Checkpoint, WeightSource, open_checkpoint
from pilotfish.weights.absent import AbsentWeights, NoWeightsError

if TYPE_CHECKING:
    import torch


def prepare_from_options(
    model: str,
    *,
    registry: Registry | None = None,
    draft: str | None = None,
    speculative: str | SpeculativeConfig | Mapping[str, Any] | None = None,
    cache: CacheConfig | None = None,
    max_length: int | None = None,
    max_batch_size: int | None = None,
    must_fit: bool = True,
    parallel: ParallelConfig | None = None,
    groups: Groups | None = None,
    **runtime: Any,
) -> Prepared:
    """As `prepare`, with the arguments of `LLM`. runtime: other fields of RuntimeConfig."""
    if max_batch_size is not None:
        runtime["max_batch_size"] = max_batch_size
    return prepare(
        model,
        registry=registry if registry is not None else load_registry(),
        draft=draft,
        speculative=speculative,
        runtime=RuntimeConfig(**runtime),
        cache=cache,
        max_length=max_length,
        lowers_batch=max_batch_size is None,
        must_fit=must_fit,
        parallel=parallel,
        groups=groups,
    )


def prepare(
    model: str,
    *,
    registry: Registry,
    draft: str | None = None,
    speculative: str | SpeculativeConfig | Mapping[str, Any] | None = None,
    runtime: RuntimeConfig | None = None,
    cache: CacheConfig | None = None,
    max_length: int | None = None,
    lowers_batch: bool = False,
    must_fit: bool = True,
    parallel: ParallelConfig | None = None,
    groups: Groups | None = None,
) -> Prepared:
    """Opens the checkpoint, routes it, plans load and memory and makes the model; reads no weights.

    lowers_batch: nobody asked for `runtime.max_batch_size`: fewer requests may run at once, so that
    the model fits. must_fit: False makes a plan that cannot be, to be shown: of more memory than
    there is, or of a config whose weights are not there (`Prepared.absent` says why).
    parallel: on how many ranks. groups: this process's place among them; None: the first rank's,
    not connected.
    Raises CheckpointError, RouteError, ConfigError, WeightsError for tensors that do not fit the
    architecture, or CapacityError when there is too little memory.
    """
    if not isinstance(registry, Registry):
        raise ConfigError(f"registry is {registry!r}; wanted what load_registry() returns")
    options = read_speculative(speculative)
    draft_path = read_draft(draft)
    checkpoint = open_checkpoint(model, registry)
    model_config = checkpoint.model_config(max_length)
    draft_checkpoint = None if draft_path is None else open_checkpoint(draft_path, registry)
    route = route_of(registry, model_config, options, draft_checkpoint)
    checkpoint = attrs.evolve(checkpoint, tiktoken=route.architecture.tiktoken)
    if options is not None:
        options = with_thinking_tokens(options, checkpoint)
    weights = _weights(checkpoint)
    runtime = runtime or RuntimeConfig()
    parallel = parallel or ParallelConfig()
    device = choose_device(runtime)
    if parallel.num_ranks > 1 and device.type != "cpu":
        raise ConfigError(
            f"tensor_parallel is {parallel.num_ranks} on {device}; wanted device='cpu': ranks run "
            "on processors, and on a GPU there is one"
        )
    if parallel.num_replicas > 1 and device.type != "cpu":
        raise ConfigError(
            f"data_parallel is {parallel.num_replicas} on {device}; wanted device='cpu': replicas "
            "run on processors"
        )
    backend = choose_backend(runtime, device)
    cache = cache or CacheConfig()
    dtype = runtime.dtype
    if dtype == "auto":
        dtype, cache = _dtypes(checkpoint, weights, backend, cache)
    check_cache_dtype(cache, dtype, backend)
    pipeline_config = PipelineConfig(
        model=model_config,
        draft_model=None if draft_checkpoint is None else draft_checkpoint.model_config(),
        cache=cache,
        runtime=attrs.evolve(runtime, dtype=dtype, device=str(device), backend=backend.name),
        speculative=options,
        parallel=parallel,
    )
    maker = _Maker(
        checkpoint=checkpoint,
        weights=weights,
        draft_checkpoint=draft_checkpoint,
        route=route,
        registry=registry,
        backend=backend,
        device=device,
        must_fit=must_fit,
        groups=groups or Groups.of_rank(0, parallel),
    )
    prepared = maker.make(pipeline_config, lowers_batch=lowers_batch)
    plan = prepared.memory_plan
    if must_fit:
        plan.refuse_unfit()
    if not plan.note:
        return prepared
    smaller = attrs.evolve(
        pipeline_config,
        model=attrs.evolve(model_config, max_length=plan.max_seq_len),
        runtime=attrs.evolve(pipeline_config.runtime, max_batch_size=plan.max_batch_size),
    )
    return attrs.evolve(maker.make(smaller), memory_plan=plan)


@attrs.frozen(kw_only=True)
class _Maker:
    """What one checkpoint's runs have in common, whatever their sizes."""

    checkpoint: Checkpoint
    weights: WeightSource
    draft_checkpoint: Checkpoint | None
    route: Route
    registry: Registry
    backend: KernelBackend
    device: torch.device
    must_fit: bool
    groups: Groups

    def make(self, pipeline_config: PipelineConfig, *, lowers_batch: bool = False) -> Prepared:
        """The configs, the model without weights, and both plans; the memory need not suffice."""
        model_config, route = pipeline_config.model, self.route
        check_target(route.hf_architecture, route.config_class(), route.model_class())
        config = route.config_class().initialize(pipeline_config)
        vocab_size = _vocab_size(config, model_config)
        draft = None
        if pipeline_config.speculative is not None:
            draft = prepare_draft(
                route,
                pipeline_config,
                pipeline_config.speculative,
                self.draft_checkpoint,
                registry=self.registry,
                vocab_size=vocab_size,
            )
        weights, absent = self.weights, self._why_absent()
        infos = {} if absent is not None else weights.infos
        config = config.finalize(self.checkpoint.huggingface_config, infos)
        hidden: dict[str, Any] = {}
        if draft is not None:
            hidden = {
                "return_hidden_states": draft.config.return_hidden_states,
                "aux_hidden_state_layers": draft.config.aux_hidden_state_layers,
            }
        model = route.model_class()(
            pipeline_config,
            config,
            self.backend,
            device=self.device,
            return_logits=ReturnLogits.VARIABLE,
            **hidden,
        )
        more = of_model(model)
        dtype = pipeline_config.runtime.dtype
        plan: object
        with saying_what_fits(model, infos, pipeline_config.parallel):
            if not self.groups.is_trivial:
                more.shard(self.groups)
            if absent is not None:
                weights = AbsentWeights(absent, model.parameter_shapes(), dtype)
                infos, plan = weights.infos, weights.plan
            else:
                plan = more.plan_load(infos)
                infos = more.without_ignored(infos)
        share = Share.of(
            model,
            self.groups,
            specs=model.state,
            plan=plan,
            infos=infos,
            staying=() if absent else more.staying(infos),
            dtype=dtype,
        )
        if draft is not None:
            draft = draft.planned(self._setup(pipeline_config, draft, model), self.groups)
        return Prepared(
            checkpoint=self.checkpoint,
            route=route,
            pipeline_config=pipeline_config,
            model=model,
            share=share,
            backend=self.backend,
            device=self.device,
            weights=weights,
            draft=draft,
            vocab_size=vocab_size,
            memory_plan=plan_memory(
                pipeline_config,
                config,
                share,
                vocab_size,
                draft,
                lowers_batch=lowers_batch,
            ),
            image_processor=self._image_processor(config, vocab_size),
        )

    def _setup(
        self, pipeline_config: PipelineConfig, draft: PreparedDraft, target: PipelineModel
    ) -> ProposerSetup:
        return ProposerSetup(
            pipeline_config=pipeline_config,
            config=draft.config,
            backend=self.backend,
            device=self.device,
            target=target,
            registry=self.registry,
        )

    def _why_absent(self) -> NoWeightsError | None:
        """Why there are no weights, where that may be; None where there are some."""
        try:
            dict(self.weights.infos)
        except NoWeightsError as error:
            if self.must_fit:
                raise
            return error
        return None

    def _image_processor(self, config: ArchConfig, vocab_size: int) -> ImageProcessor | None:
        kind = self.route.image_processor_class()
        processor = None if kind is None else kind.from_checkpoint(config, self.checkpoint.path)
        if processor is not None and not 0 <= processor.placeholder_token_id < vocab_size:
            raise ConfigError(
                f"{self.checkpoint.model}: the placeholder of images is token id "
                f"{processor.placeholder_token_id} and the vocabulary has {vocab_size} ids; wanted "
                "one of them, or no image could ever be given: check the placeholder's id in "
                "config.json"
            )
        return processor


def _weights(checkpoint: Checkpoint) -> WeightSource:
    """The checkpoint's; where there are none it is said once the config was found good."""
    try:
        return checkpoint.weights()
    except NoWeightsError as error:
        return AbsentWeights(error)


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
