"""LFM2Config: the validated configuration of a dense LFM2.

Knows: Hugging Face options and what they mean. Does not know: tensors; imports no torch.
Letters: D model width, N query heads, K kv heads, H head width, L layers, I feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import boolean, int_at_least, norm_epsilon
from pilotfish.config.hf_options import cache_dtype, count, run_dtype
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.transformer_config import GroupedQueryConfig
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits
from pilotfish.state import KVCacheParams, SlotStateSpec, StateSpec
from pilotfish_lfm2.options import (
    READ_AS_IT_IS,
    intermediate_size_of,
    layer_types_of,
    refuse_unread,
)

DEFAULT_THETA = 1000000.0
CONV_STATE = "conv"


@attrs.frozen(kw_only=True)
class LFM2Config(GroupedQueryConfig):
    """Everything the network needs to know.

    layer_types: per layer "conv" or "full_attention"; only the latter has keys and values.
    conv_L_cache: columns that a short convolution sums, the row's own included.
    conv_bias: whether the convolution and the projections around it have a bias.
    intermediate_size: I as it is built, after the checkpoint's rule for it.
    norm_eps: of every RMSNorm.
    rows_in_place: rows of a pass whose columns lie in the request's slot, as a decoded row's do and
        those of a verify; passes of more rows take memory of their own.
    """

    max_seq_len: int = attrs.field(validator=int_at_least(1))
    layer_types: tuple[str, ...]
    conv_L_cache: int = attrs.field(default=3, validator=int_at_least(1))
    conv_bias: bool = attrs.field(default=False, validator=boolean())
    norm_eps: float = attrs.field(default=1e-5, validator=norm_epsilon())
    tie_word_embeddings: bool = attrs.field(default=True, validator=boolean())
    rows_in_place: int = attrs.field(default=32, validator=int_at_least(1))
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        unknown = set(self.layer_types) - {"conv", "full_attention"}
        if unknown or len(self.layer_types) != self.num_hidden_layers:
            raise ConfigError(
                f"layer_types is {list(self.layer_types)}; wanted {self.num_hidden_layers} of "
                "'conv', 'full_attention'"
            )

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        """Reads the Hugging Face config and the user's options; needs no weights.

        Raises ConfigError naming any option that changes the maths and is not understood.
        """
        model = model_config or pipeline_config.model
        hf = model.huggingface_config
        refuse_unread(hf)
        head_dim = count(hf, "head_dim", hf.hidden_size // hf.num_attention_heads)
        rope = RopeParameters.from_hf(hf, head_dim, default_theta=DEFAULT_THETA)
        if rope.rotary_dim != head_dim:
            raise ConfigError(
                f"partial_rotary_factor leaves {rope.rotary_dim} of {head_dim} dimensions; "
                "wanted heads that turn whole"
            )
        tied = getattr(hf, "tie_embedding", None)
        return cls(
            **{name: getattr(hf, name) for name in READ_AS_IT_IS},
            num_key_value_heads=getattr(hf, "num_key_value_heads", None) or hf.num_attention_heads,
            head_dim=head_dim,
            intermediate_size=intermediate_size_of(hf),
            max_seq_len=rope.context_length(model.max_length),
            rope=rope,
            dtype=run_dtype(pipeline_config, model),
            cache_dtype=cache_dtype(pipeline_config, model),
            layer_types=layer_types_of(hf),
            conv_L_cache=getattr(hf, "conv_L_cache", 3),
            conv_bias=getattr(hf, "conv_bias", False),
            norm_eps=getattr(hf, "norm_eps", 1e-5),
            tie_word_embeddings=bool(
                getattr(hf, "tie_word_embeddings", True) if tied is None else tied
            ),
        )

    @classmethod
    def initialize_from_config(
        cls,
        pipeline_config: PipelineConfig,
        huggingface_config: Any,
        model_config: ModelConfig | None = None,
    ) -> Self:
        """As `initialize`, with another Hugging Face config than the model's own."""
        model = model_config or pipeline_config.model
        return cls.initialize(
            pipeline_config, attrs.evolve(model, huggingface_config=huggingface_config)
        )

    def finalize(  # noqa: PLR0917
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        return_logits: ReturnLogits | None = None,
        return_hidden_states: ReturnHiddenStates | None = None,
        norm_method: Literal["rms_norm"] = "rms_norm",
        attention_bias: bool = False,
    ) -> Self:
        """Reads what only the tensors' names can tell: whether the head is a tensor of its own.

        state_dict: tensor name -> anything (`WeightSource.infos` will do).
        norm_method, attention_bias: what every LFM2 has. Raises ConfigError for anything else.
        """
        del huggingface_config
        if norm_method != "rms_norm" or attention_bias:
            raise ConfigError(
                f"norm_method is {norm_method!r} and attention_bias {attention_bias!r}; wanted "
                "'rms_norm' and False, which LFM2 always has"
            )
        names = {name.removeprefix("model.") for name in state_dict}
        return attrs.evolve(
            self,
            tie_word_embeddings=self.tie_word_embeddings and "lm_head.weight" not in names,
            return_logits=return_logits or self.return_logits,
            return_hidden_states=return_hidden_states or self.return_hidden_states,
        )

    @property
    def conv_layers(self) -> tuple[int, ...]:
        """Layers that are short convolutions, in order."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "conv")

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """Layers that are attention, in order."""
        return tuple(i for i, kind in enumerate(self.layer_types) if kind == "full_attention")

    @property
    def kv_params(self) -> KVCacheParams:
        """The geometry of the paged cache: attention layers only."""
        return attrs.evolve(super().kv_params, num_layers=len(self.attention_layers))

    @property
    def conv_spec(self) -> SlotStateSpec:
        """The columns of the short convolutions: a ring of them per request and layer."""
        width = self.conv_L_cache
        return SlotStateSpec(
            name=CONV_STATE,
            num_layers=len(self.conv_layers),
            slot_shape=(width + self.rows_in_place, self.hidden_size),
            boundary_shape=(width - 1, self.hidden_size),
            row_shape=(self.hidden_size,),
            dtype=self.dtype,
            has_channels=True,
        )

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """The paged cache "kv", and the slots "conv" where there are convolutions."""
        if not self.conv_layers:
            return (self.kv_params.spec,)
        return (self.kv_params.spec, self.conv_spec)
