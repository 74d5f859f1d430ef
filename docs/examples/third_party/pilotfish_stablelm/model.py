"""StableLM's network, put together from shared layers, and the names of its tensors."""

from pilotfish.layers.attention import Attention
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import LayerNorm
from pilotfish.layers.rope import Rotary
from pilotfish.models.decoder import Decoder
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.weights import Rule, WeightRules
from pilotfish_stablelm.config import StableLmConfig

# Parts of a layer -> the file's tensors, laid under one another.
NAMES = {
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
    "attention_norm": ("input_layernorm",),
    "mlp_norm": ("post_attention_layernorm",),
}


class StableLmModel(DecoderModel):
    config_class = StableLmConfig

    def build_network(self) -> Decoder:
        c = self.config
        return Decoder(
            embed_tokens=Embedding(c.vocab_size, c.hidden_size),
            layers=[self._block(layer) for layer in range(c.num_hidden_layers)],
            norm=LayerNorm(c.hidden_size, c.norm_eps, bias=True),
            lm_head=Linear(c.hidden_size, c.vocab_size, keep_plain=c.tied),
            rotary=Rotary(c.rope),
        )

    def _block(self, layer: int) -> PreNormBlock:
        c, kv = self.config, self.config.kv_params
        heads = (c.num_heads, kv.num_kv_heads, kv.head_dim)
        return PreNormBlock(
            attention_norm=LayerNorm(c.hidden_size, c.norm_eps, bias=True),
            attention=Attention(layer, c.hidden_size, *heads, qkv_bias=c.qkv_bias),
            mlp_norm=LayerNorm(c.hidden_size, c.norm_eps, bias=True),
            mlp=GatedMLP(c.hidden_size, c.intermediate_size),
        )

    def weight_rules(self) -> WeightRules:
        rules = [Rule(n, n) for n in ("embed_tokens.weight", "lm_head.weight")]
        for kind in ("weight", "bias"):
            rules.append(Rule(f"norm.{kind}", f"norm.{kind}"))
            for ours, theirs in NAMES.items():
                pieces = [f"layers.{{layer}}.{name}.{kind}" for name in theirs]
                rules.append(Rule(f"layers.{{layer}}.{ours}.{kind}", pieces))
        ties = {"lm_head.weight": "embed_tokens.weight"} if self.config.tied else {}
        return WeightRules(rules=rules, ties=ties)
