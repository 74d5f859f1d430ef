"""KimiK25Config: the validated configuration of Kimi K2.5's text network, which is DeepSeek-V3's.

Knows: Hugging Face options and what they mean. Does not know: tensors; imports no torch.
Letters: D model width, N heads, C width of the latent, L layers, E experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import (
    boolean,
    int_at_least,
    norm_epsilon,
    number,
    optional_int_at_least,
)
from pilotfish.config.hf_options import (
    cache_dtype,
    count,
    option,
    real_number,
    run_dtype,
    text_config,
    want_options,
    want_written,
    whole_number,
)
from pilotfish.errors import ConfigError
from pilotfish.models.transformer_config import SIZES, TransformerConfig
from pilotfish.protocols import ImageMemory, ReturnHiddenStates, ReturnLogits
from pilotfish.state import LatentCacheParams
from pilotfish.state.specs import DTYPE_BYTES
from pilotfish_kimi_k25.options import (
    LATENT_SIZES,
    MAX_SCALE,
    NEEDED_BY_EXPERTS,
    check_quantization,
    is_quantized,
    mtp_layers_of,
    refuse_unread,
    rope_of,
    switch,
)
from pilotfish_kimi_k25.vision.config import VisionConfig
from pilotfish_kimi_k25.vision.processor import KimiImageProcessor

_EXPERT = re.compile(r"\.(\d+)\.mlp\.experts\.\d+\.(\w+)\.(weight|weight_packed)$")

_SECTIONS = ("text_config", "vision_config")
"""Of Kimi K2.5's config; transformers fills in the published sizes where one is missing."""

_positive = number("a number > 0", lambda value: value > 0)


@attrs.frozen(kw_only=True)
class ExpertsConfig:
    """The mixture of experts of the layers that have one.

    num_experts, intermediate_size: E, and the width of each. num_shared: experts' widths that every
    row goes through. top_k: experts of a row. num_groups, top_groups: experts are chosen inside the
    best groups only. normalize: a row's weights sum to 1, before `scale` is multiplied in.
    """

    num_experts: int = attrs.field(validator=int_at_least(1))
    intermediate_size: int = attrs.field(validator=int_at_least(1))
    num_shared: int = attrs.field(default=0, validator=int_at_least(0))
    top_k: int = attrs.field(validator=int_at_least(1))
    num_groups: int = attrs.field(default=1, validator=int_at_least(1))
    top_groups: int = attrs.field(default=1, validator=int_at_least(1))
    normalize: bool = attrs.field(default=True, validator=boolean())
    scale: float = attrs.field(default=1.0, validator=_positive)

    def __attrs_post_init__(self) -> None:
        if self.num_experts % self.num_groups or self.top_groups > self.num_groups:
            raise ConfigError(
                f"n_routed_experts is {self.num_experts}, n_group {self.num_groups} and topk_group "
                f"{self.top_groups}; wanted groups of equal size, and at most all of them"
            )
        if self.num_experts // self.num_groups < 2:
            raise ConfigError(
                f"n_routed_experts is {self.num_experts} and n_group {self.num_groups}; wanted at "
                "least 2 experts in a group, whose best two are its score"
            )
        if self.top_k > self.top_groups * (self.num_experts // self.num_groups):
            raise ConfigError(
                f"num_experts_per_tok is {self.top_k}; wanted at most the experts in "
                f"{self.top_groups} of {self.num_groups} groups of {self.num_experts} experts"
            )

    @classmethod
    def from_hf(cls, text: Any) -> Self:
        """Reads the options of the text network; an absent one has no meaning and is refused.

        transformers' class for the text network fills them in, its class for any other does not.
        """
        want_options(text, NEEDED_BY_EXPERTS)
        return cls(
            num_experts=count(text, "n_routed_experts"),
            intermediate_size=count(text, "moe_intermediate_size"),
            num_shared=whole_number("n_shared_experts", text.n_shared_experts, least=0),
            top_k=count(text, "num_experts_per_tok"),
            num_groups=count(text, "n_group"),
            top_groups=count(text, "topk_group"),
            normalize=switch(text, "norm_topk_prob", True),
            scale=real_number(
                "routed_scaling_factor", text.routed_scaling_factor, above=0, most=MAX_SCALE
            ),
        )


@attrs.frozen(kw_only=True)
class KimiK25Config(TransformerConfig):
    """Everything the text network needs to know.

    q_lora_rank: width of the latent that queries are made of; None where they are made of the row.
    kv_lora_rank: C, of the latent that is cached. qk_nope_head_dim, qk_rope_head_dim, v_head_dim:
        a head's dimensions that do not turn, that turn, and of its values.
    rope_interleave: rotary pairs are neighbours. attention_bias: of the projections from and to D.
    intermediate_size: of the dense layers. experts: of the others; None where all are dense.
    dense_layers: which layers are dense.
    num_mtp_layers: layers after the last that predict further tokens; not built, their tensors are
        left out.
    packed_gate_up, packed_down: layers whose experts' weights are INT4, as the tensors say.
    image_processor: how images become patches, with the vision tower's config; None without one.
    unserved_token_ids: placeholders, by kind, where the file has no tower for them.
    """

    max_seq_len: int = attrs.field(validator=int_at_least(1))
    q_lora_rank: int | None = attrs.field(default=None, validator=optional_int_at_least(1))
    kv_lora_rank: int = attrs.field(validator=int_at_least(1))
    qk_nope_head_dim: int = attrs.field(validator=int_at_least(1))
    qk_rope_head_dim: int = attrs.field(validator=int_at_least(2))
    v_head_dim: int = attrs.field(validator=int_at_least(1))
    rope_interleave: bool = attrs.field(default=True, validator=boolean())
    attention_bias: bool = attrs.field(default=False, validator=boolean())
    norm_eps: float = attrs.field(default=1e-6, validator=norm_epsilon())
    experts: ExpertsConfig | None = None
    dense_layers: frozenset[int]
    num_mtp_layers: int = attrs.field(default=0, validator=int_at_least(0))
    packed_gate_up: frozenset[int] = frozenset()
    packed_down: frozenset[int] = frozenset()
    tie_word_embeddings: bool = attrs.field(default=False, validator=boolean())
    image_processor: KimiImageProcessor | None = None
    unserved_token_ids: Mapping[str, int] = attrs.field(factory=dict, hash=False)
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        """Reads the Hugging Face config and the user's options; needs no weights.

        Raises ConfigError naming any option that changes the maths and is not understood.
        """
        model = model_config or pipeline_config.model
        hf = model.huggingface_config
        want_written(model, [name for name in _SECTIONS if getattr(hf, name, None) is not None])
        text = text_config(hf)
        refuse_unread(text)
        check_quantization(model.huggingface_config)
        rope = rope_of(text)
        dense = dense_layers_of(text)
        return cls(
            **{name: getattr(text, name) for name in (*SIZES, *LATENT_SIZES)},
            max_seq_len=rope.context_length(model.max_length),
            q_lora_rank=None if option(text, "q_lora_rank") is None else count(text, "q_lora_rank"),
            rope=rope,
            rope_interleave=switch(text, "rope_interleave", True),
            attention_bias=switch(text, "attention_bias", False),
            norm_eps=real_number(
                "rms_norm_eps", option(text, "rms_norm_eps", 1e-6), above=0, most=1
            ),
            experts=None if len(dense) == text.num_hidden_layers else ExpertsConfig.from_hf(text),
            dense_layers=dense,
            num_mtp_layers=mtp_layers_of(text),
            dtype=run_dtype(pipeline_config, model),
            cache_dtype=cache_dtype(pipeline_config, model),
            tie_word_embeddings=switch(text, "tie_word_embeddings", False),
            image_processor=KimiImageProcessor.of_model(model),
        )

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        return_logits: ReturnLogits | None = None,
        return_hidden_states: ReturnHiddenStates | None = None,
    ) -> Self:
        """Reads what only the tensors' names can tell.

        state_dict: tensor name -> anything (`WeightSource.infos` will do). Is the head a tensor of
        its own (the outer config of Kimi K2.5 calls it tied by default, though the published one is
        not); which experts are packed; is there a vision tower (a checkpoint of the text alone has
        the same config, and serves text). Of a config alone, without tensors, all experts are
        packed where it says how.
        """
        packed_gate_up = _packed_layers(state_dict, "gate_proj", "up_proj")
        packed_down = _packed_layers(state_dict, "down_proj")
        if not state_dict and is_quantized(huggingface_config):
            packed_gate_up = packed_down = (
                frozenset(range(self.num_hidden_layers)) - self.dense_layers
            )
        seeing = self.image_processor if _has_tower(state_dict) else None
        heads = {"lm_head.weight", "language_model.lm_head.weight"}
        return attrs.evolve(
            self,
            tie_word_embeddings=self.tie_word_embeddings and not heads & set(state_dict),
            image_processor=seeing,
            unserved_token_ids=(
                self.unserved_token_ids
                if seeing is not None or self.image_processor is None
                else self.image_processor.placeholders
            ),
            packed_gate_up=packed_gate_up,
            packed_down=packed_down,
            return_logits=return_logits or self.return_logits,
            return_hidden_states=return_hidden_states or self.return_hidden_states,
        )

    @property
    def qk_head_dim(self) -> int:
        """Width of a head's queries and keys."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_width(self) -> int:
        """Numbers that a token's row of the cache has in a layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def kv_params(self) -> LatentCacheParams:
        """The geometry of the paged cache: one latent row a token and layer, for all heads."""
        return LatentCacheParams(
            num_layers=self.num_hidden_layers,
            row_width=self.latent_width,
            dtype=self.cache_dtype or self.dtype,
        )

    @property
    def vision(self) -> VisionConfig | None:
        """Of the vision tower; None for a network of text only."""
        return None if self.image_processor is None else self.image_processor.vision

    def get_image_memory(self) -> ImageMemory | None:
        """What images take; None for a network of text only."""
        if self.image_processor is None:
            return None
        return self.image_processor.memory(DTYPE_BYTES[self.dtype])


def dense_layers_of(text: Any) -> frozenset[int]:
    """Layers without experts: the first ones, and those between every `moe_layer_freq`-th."""
    layers = range(int(text.num_hidden_layers))
    if not option(text, "n_routed_experts", 0):
        return frozenset(layers)
    want_options(text, ["first_k_dense_replace"])
    first = whole_number("first_k_dense_replace", text.first_k_dense_replace, least=0)
    every = whole_number("moe_layer_freq", option(text, "moe_layer_freq", 1))
    return frozenset(layer for layer in layers if layer < first or layer % every)


def _has_tower(names: Iterable[str]) -> bool:
    return any(name.removeprefix("model.").startswith("vision_tower.") for name in names)


def _packed_layers(names: Iterable[str], *parts: str) -> frozenset[int]:
    """Layers whose experts have packed tensors of these parts. Raises ConfigError for a mixture."""
    layers: dict[str, dict[int, str]] = {"weight": {}, "weight_packed": {}}
    for name in names:
        match = _EXPERT.search(name)
        if match and match[2] in parts:
            layers[match[3]][int(match[1])] = name
    packed, plain = layers["weight_packed"], layers["weight"]
    for layer in sorted(set(packed) & set(plain)):
        raise ConfigError(
            f"layer {layer} mixes packed and plain experts: {packed[layer]} beside {plain[layer]}; "
            f"wanted every {' and '.join(parts)} of a layer's experts packed, or none"
        )
    return frozenset(packed)
