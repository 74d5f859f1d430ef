"""StableLmConfig: what is read from a checkpoint's config, and what is refused."""

from collections.abc import Mapping
from typing import Any, Self

import attrs

from pilotfish import ModelConfig, PipelineConfig
from pilotfish.config.hf_options import want_values
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.decoder_config import DecoderConfig
from pilotfish.state import KVCacheParams

# Options that would change the maths and are not read: the values that are served.
SERVED = {"hidden_act": (None, "silu"), "qk_layernorm": (None, False)}
SERVED |= {"use_parallel_residual": (None, False), "quantization_config": (None,)}


@attrs.frozen(kw_only=True)
class StableLmConfig(DecoderConfig):
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_heads: int
    norm_eps: float
    qkv_bias: bool
    rope: RopeParameters
    kv_params: KVCacheParams
    max_seq_len: int
    dtype: str
    tied: bool = False

    @classmethod
    def initialize(
        cls, pipeline_config: PipelineConfig, model_config: ModelConfig | None = None
    ) -> Self:
        model = model_config or pipeline_config.model
        hf, dtype = model.huggingface_config, pipeline_config.runtime.dtype
        want_values(hf, SERVED)
        head_dim = hf.hidden_size // hf.num_attention_heads
        rope = RopeParameters.from_hf(hf, head_dim)
        if rope.depends_on_length:
            raise ConfigError(f"rope_type is {rope.rope_type!r}; wanted 'default'")
        return cls(
            vocab_size=hf.vocab_size,
            hidden_size=hf.hidden_size,
            intermediate_size=hf.intermediate_size,
            num_hidden_layers=hf.num_hidden_layers,
            num_heads=hf.num_attention_heads,
            norm_eps=hf.layer_norm_eps,
            qkv_bias=hf.use_qkv_bias,
            rope=rope,
            kv_params=KVCacheParams(
                num_layers=hf.num_hidden_layers,
                num_kv_heads=hf.num_key_value_heads,
                head_dim=head_dim,
                dtype=dtype,
            ),
            max_seq_len=rope.context_length(model.max_length),
            dtype=dtype,
            tied=hf.tie_word_embeddings,
        )

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        return attrs.evolve(self, tied=self.tied and "lm_head.weight" not in state_dict)
