"""Models with parts of their own, as a plugin may have them; and registries that serve them."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from pilotfish.layers.attention import Attention
from pilotfish.layers.experts import Experts
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.models.decoder import Decoder
from pilotfish.plugin_specs import ArchitectureSpec, Plugin
from pilotfish.plugins import load_registry
from pilotfish.registry import Registry
from pilotfish_kimi_k25.model import KimiK25Model
from pilotfish_lfm2.model import LFM2Model
from pilotfish_llama3.model import Llama3Model

CONFIGS = {
    "LlamaForCausalLM": "pilotfish_llama3.config:Llama3Config",
    "Lfm2ForCausalLM": "pilotfish_lfm2.config:LFM2Config",
    "DeepseekV3ForCausalLM": "pilotfish_kimi_k25.config:KimiK25Config",
}


class DoubledMLP(GatedMLP):
    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        return super().__call__(x, run) * 2


class DoubledLinear(Linear):
    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        return super().__call__(*args, **options) * 2


class OwnAttention(Layer):
    """The library's in a class of which nothing is known."""

    def __init__(self, of: Attention) -> None:
        vars(self).update(vars(of))

    __call__ = Attention.__call__
    plan = Attention.plan


class WithOwnMLP(Llama3Model):
    def build_network(self) -> Decoder:
        network = super().build_network()
        for block in network.layers:
            vars(block)["mlp"].__class__ = DoubledMLP
        return network


class WithOwnAttention(Llama3Model):
    num_own: ClassVar[int] = 2

    def build_network(self) -> Decoder:
        network = super().build_network()
        for block in network.layers[: self.num_own]:
            vars(block)["attention"] = OwnAttention(vars(block)["attention"])
        return network


class WithOneOwnAttention(WithOwnAttention):
    num_own = 1


class ReadsTheTable(Llama3Model):
    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        table = self.network.embed_tokens.weight
        assert table is not None
        return table.index_select(0, tokens)


class WithOwnConvOut(LFM2Model):
    def build_network(self) -> Decoder:
        network = super().build_network()
        for block in network.layers:
            part = vars(block)["attention"]
            if hasattr(part, "out_proj"):
                part.out_proj.__class__ = DoubledLinear
        return network


class WithOwnLatentOut(KimiK25Model):
    def build_network(self) -> Any:
        network = super().build_network()
        for block in network.layers:
            vars(block)["attention"].out.__class__ = DoubledLinear
        return network


class DoubledMixture(MixtureOfExperts):
    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        return super().__call__(x, run) * 2


class DoubledExperts(Experts):
    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:
        return super().__call__(*args, **options) * 2


class WithOwnMixture(KimiK25Model):
    def build_network(self) -> Any:
        network = super().build_network()
        for mixture in mixtures_of(network):
            mixture.__class__ = DoubledMixture
        return network


class WithOwnExperts(KimiK25Model):
    def build_network(self) -> Any:
        network = super().build_network()
        for mixture in mixtures_of(network):
            mixture.experts.__class__ = DoubledExperts
        return network


def mixtures_of(network: Decoder) -> list[Any]:
    return [one for one in network.layers_inside() if isinstance(one, MixtureOfExperts)]


class KeepsByRequest(Llama3Model):
    released: ClassVar[list[tuple[int, str]]] = []

    def release(self, request_id: str) -> None:
        self.released.append((self.groups.tensor.rank, request_id))


def registry(architecture: str, model: type[Any]) -> Registry:
    """The installed plugins, and one in the place of the architecture's."""
    spec = ArchitectureSpec(
        names=(architecture,),
        config=CONFIGS[architecture],
        model=f"{__name__}:{model.__name__}",
        capabilities=frozenset({"verify", "embed", "lm_head"}),
    )
    others = [
        one
        for one in load_registry().plugins
        if all(architecture not in found.names for found in one.architectures)
    ]
    return Registry(plugins=(*others, Plugin(name="own", architectures=(spec,))))
