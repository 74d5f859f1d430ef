"""Llama3Config: one validated configuration for every family of the plugin.

Knows: Hugging Face options and what they mean. Does not know: tensors; imports no torch.
Letters: D model width, N query heads, K kv heads, H head width, L layers, I feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

import attrs
from attrs.validators import optional

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import boolean, int_at_least, norm_epsilon, number, one_of
from pilotfish.config.hf_options import (
    cache_dtype,
    count,
    option,
    real_number,
    run_dtype,
    want_counts,
    whole_number,
)
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.transformer_config import SIZES, GroupedQueryConfig
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits
from pilotfish.state import KVCacheParams
from pilotfish_llama3.families import Family, family_of, refuse_unread

NormMethod = Literal["rms_norm", "layer_norm"]

LAYER_NORM_EPS = 1e-5
"""OLMo's norms have a fixed epsilon."""

_positive = number("a number > 0", lambda value: value > 0)


@attrs.frozen(kw_only=True)
class Llama3Config(GroupedQueryConfig):
    """Everything the network needs to know.

    no_rope_layers: layers that do without rotary positions.
    windows: per layer, keys a row may see, or None for all.
    qkv_bias, out_bias, mlp_bias: which projections have one. head_norm: q and k heads are normed.
    attention_multiplier scales the scores; embedding_multiplier what enters block 0;
    residual_multiplier each sublayer's output; logits_scaling divides the logits.
    stacked_qkv, stacked_mlp: whether the FILE holds them as one tensor; memory always does.
    interleaved_rope_weights: the file's q and k rows are ordered for neighbouring pairs (GGUF).
    rope_factors_in_file: the file brings divisors of the rotary frequencies as a tensor.
    recompute_length: see config/rope.py; None where nothing is to be done.
    """

    max_seq_len: int = attrs.field(validator=int_at_least(1))
    norm_method: NormMethod = attrs.field(
        default="rms_norm", validator=one_of(("rms_norm", "layer_norm"))
    )
    rms_norm_eps: float | None = attrs.field(default=None, validator=optional(norm_epsilon()))
    norm_elementwise_affine: bool = attrs.field(default=True, validator=boolean())
    attention_multiplier: float = attrs.field(validator=_positive)
    embedding_multiplier: float = attrs.field(default=1.0, validator=_positive)
    residual_multiplier: float = attrs.field(default=1.0, validator=_positive)
    logits_scaling: float = attrs.field(default=1.0, validator=_positive)
    clip_qkv: float | None = attrs.field(default=None, validator=optional(_positive))
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norm: bool = False
    windows: tuple[int | None, ...]
    no_rope_layers: frozenset[int] = frozenset()
    recompute_length: int | None = None
    tie_word_embeddings: bool = False
    stacked_mlp: bool = False
    stacked_qkv: bool = False
    interleaved_rope_weights: bool = False
    rope_factors_in_file: bool = False
    return_logits: ReturnLogits = ReturnLogits.LAST_TOKEN
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.norm_method == "rms_norm" and self.rms_norm_eps is None:
            raise ConfigError("rms_norm_eps is not given; wanted a number > 0")
        if len(self.windows) != self.num_hidden_layers:
            raise ConfigError(
                f"windows has {len(self.windows)} entries; wanted {self.num_hidden_layers}, one "
                "for each layer"
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
        want_counts(hf, NEEDED)
        refuse_unread(hf, model.architecture)
        family = family_of(model.architecture)
        head_dim = cls.get_head_dim_from_config(hf)
        rope = RopeParameters.from_hf(
            hf, head_dim, default_theta=family.default_theta, aliases=family.rope_aliases
        )
        if rope.rotary_dim != head_dim and "partial_rotary_factor" not in family.reads:
            raise ConfigError(
                f"partial_rotary_factor leaves {rope.rotary_dim} of {head_dim} dimensions; "
                f"{model.architecture} turns whole heads"
            )
        bias = bool(getattr(hf, "attention_bias", False)) and "attention_bias" in family.reads
        return cls(
            **{name: getattr(hf, name) for name in SIZES},
            num_key_value_heads=option(hf, "num_key_value_heads", hf.num_attention_heads),
            head_dim=head_dim,
            max_seq_len=_context_length(hf, rope, model.max_length),
            rope=rope,
            dtype=run_dtype(pipeline_config, model),
            cache_dtype=cache_dtype(pipeline_config, model),
            norm_method="layer_norm" if family.layer_norm else "rms_norm",
            rms_norm_eps=None if family.layer_norm else option(hf, "rms_norm_eps", 1e-6),
            norm_elementwise_affine=not family.layer_norm,
            attention_multiplier=cls.calculate_attention_multiplier(hf),
            embedding_multiplier=option(hf, "embedding_multiplier", 1.0),
            residual_multiplier=option(hf, "residual_multiplier", 1.0),
            logits_scaling=option(hf, "logits_scaling", 1.0),
            clip_qkv=getattr(hf, "clip_qkv", None),
            qkv_bias=family.qkv_bias or bias,
            out_bias=bias,
            mlp_bias=bool(getattr(hf, "mlp_bias", False)),
            head_norm=family.head_norm,
            windows=_windows(hf, family),
            no_rope_layers=_no_rope_layers(hf, family),
            recompute_length=(
                rope.original_max_positions
                if family.recomputes and rope.rope_type == "longrope"
                else None
            ),
            tie_word_embeddings=bool(getattr(hf, "tie_word_embeddings", False)),
        )

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        return_logits: ReturnLogits | None = None,
        return_hidden_states: ReturnHiddenStates | None = None,
    ) -> Self:
        """Reads what only the tensors' names can tell.

        state_dict: tensor name -> anything (`WeightSource.infos` will do).
        A head of its own in the file is used even where the config calls it tied. A GGUF file has
        no options for biases and ties: its tensors say which there are.
        """
        del huggingface_config
        names = {name.removeprefix("model.") for name in state_dict}
        is_gguf = "blk.0.attn_q.weight" in names
        has_head = bool(names & {"lm_head.weight", "output.weight"})
        return attrs.evolve(
            self,
            qkv_bias="blk.0.attn_q.bias" in names if is_gguf else self.qkv_bias,
            out_bias="blk.0.attn_output.bias" in names if is_gguf else self.out_bias,
            mlp_bias="blk.0.ffn_down.bias" in names if is_gguf else self.mlp_bias,
            tie_word_embeddings=(is_gguf or self.tie_word_embeddings) and not has_head,
            stacked_qkv="layers.0.self_attn.qkv_proj.weight" in names,
            stacked_mlp="layers.0.mlp.gate_up_proj.weight" in names,
            interleaved_rope_weights=is_gguf,
            rope_factors_in_file="rope_freqs.weight" in names,
            return_logits=return_logits or self.return_logits,
            return_hidden_states=return_hidden_states or self.return_hidden_states,
        )

    @property
    def attention_bias(self) -> bool:
        """Whether q, k, v and o all have a bias."""
        return self.qkv_bias and self.out_bias

    @property
    def longrope_scaling_params(self) -> RopeParameters | None:
        """The rotary parameters where the type is longrope."""
        return self.rope if self.rope.rope_type == "longrope" else None

    @classmethod
    def construct_kv_params(cls, huggingface_config: Any, cache_dtype: str) -> KVCacheParams:
        """The cache's geometry from the Hugging Face config alone."""
        heads = huggingface_config.num_attention_heads
        return KVCacheParams(
            num_layers=cls.get_num_layers(huggingface_config),
            num_kv_heads=option(huggingface_config, "num_key_value_heads", heads),
            head_dim=cls.get_head_dim_from_config(huggingface_config),
            dtype=cache_dtype,
        )

    @staticmethod
    def get_head_dim_from_config(config: Any) -> int:
        """H: `head_dim` where it is given, else D / N."""
        heads = count(config, "num_attention_heads")
        return count(config, "head_dim", count(config, "hidden_size") // heads)

    @staticmethod
    def get_num_layers(huggingface_config: Any) -> int:
        """L."""
        return count(huggingface_config, "num_hidden_layers")

    @staticmethod
    def calculate_attention_multiplier(huggingface_config: Any) -> float:
        """What the scores are multiplied with: the option, or H^-1/2."""
        given = getattr(huggingface_config, "attention_multiplier", None)
        if given is not None:
            return real_number("attention_multiplier", given)
        return float(Llama3Config.get_head_dim_from_config(huggingface_config) ** -0.5)


NEEDED = (*SIZES, "max_position_embeddings")
"""The options that have no default anywhere."""


def _context_length(hf: Any, rope: RopeParameters, max_length: int | None) -> int:
    """The longest context; one that wants attention in two kinds of chunks ends where they begin.

    Raises ConfigError for a limit of the user's past it.
    """
    length = rope.context_length(max_length)
    chunks = getattr(hf, "dual_chunk_attention_config", None)
    if not isinstance(chunks, Mapping):
        return length
    name = "original_max_position_embeddings"
    whole = whole_number(f"dual_chunk_attention_config.{name}", chunks.get(name))
    if max_length is not None and max_length > whole:
        raise ConfigError(
            f"max_length is {max_length}; wanted at most {whole}: from there on the checkpoint "
            "wants attention in chunks (dual_chunk_attention_config), which is not served"
        )
    return min(length, whole)


def _windows(hf: Any, family: Family) -> tuple[int | None, ...]:
    """Each layer's window."""
    num_layers, window = count(hf, "num_hidden_layers"), getattr(hf, "sliding_window", None)
    layers = range(num_layers)
    if family.windows in ("upper", "nope") and not getattr(hf, "use_sliding_window", False):
        window = None
    if family.windows in ("none", "all"):
        kinds = ["sliding_attention" if window is not None else "full_attention"] * num_layers
        given = getattr(hf, "layer_types", None)
        if given is not None and list(given) != kinds:
            raise ConfigError(
                f"the checkpoint's config has layer_types = {list(given)}, which this architecture "
                f"does not read; wanted it absent or {kinds}"
            )
    elif getattr(hf, "layer_types", None) is not None:
        kinds = list(hf.layer_types)
    elif family.windows == "upper":
        first = whole_number("max_window_layers", option(hf, "max_window_layers", 28), least=0)
        kinds = ["sliding_attention" if i >= first else "full_attention" for i in layers]
    else:
        plain = _no_rope_layers(hf, family)
        kinds = ["sliding_attention" if i in plain else "full_attention" for i in layers]
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown or len(kinds) != num_layers:
        raise ConfigError(
            f"layer_types is {kinds}; wanted {num_layers} of 'full_attention', 'sliding_attention'"
        )
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _no_rope_layers(hf: Any, family: Family) -> frozenset[int]:
    """Layers without rotary positions; the option has 1 where a layer has them."""
    if family.windows != "nope":
        return frozenset()
    layers = range(count(hf, "num_hidden_layers"))
    turns = getattr(hf, "no_rope_layers", None)
    if turns is None:
        every = count(hf, "no_rope_layer_interval", 4)
        turns = [(layer + 1) % every for layer in layers]
    if len(turns) < len(layers):
        raise ConfigError(f"no_rope_layers is {list(turns)}; wanted an entry for each layer")
    return frozenset(layer for layer in layers if not turns[layer])
