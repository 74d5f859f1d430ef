"""Plugins that compute a part of a layer by themselves: some keep a row's bits, some do not.

Each is the Llama family with another feed-forward, whose parameters are the library's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch

from pilotfish.invariance.own_operations import OwnOperations
from pilotfish.invariance.whole_pass import TEXT
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.mlp import GatedMLP
from pilotfish.models.decoder import Decoder
from pilotfish.registry import Plugin, Registry
from pilotfish_llama3 import pilotfish_architectures
from pilotfish_llama3.model import Llama3Model

FEW, FEWER = 16, 66
Gate = Callable[[torch.Tensor], torch.Tensor]
"""[T, D] -> [T, 1], which a feed-forward is multiplied with."""


class HandMade(GatedMLP):
    def __call__(self, x: torch.Tensor, run: ForwardPass) -> torch.Tensor:
        return super().__call__(x, run) * self.gate(x).to(x.dtype)

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        """x: [T, D] -> [T, 1]."""
        raise NotImplementedError


class Steady(HandMade):
    """torch's exponential, which an element gets alike wherever it lies."""

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x[:, :1].float() * 0.1)


class Unsteady(HandMade):
    """Sums in another order for few rows, as libraries do, on every machine alike."""

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        terms = x.float() * torch.linspace(-1, 1, x.shape[1])
        if x.shape[0] > FEW:
            return 1 + terms.sum(-1, keepdim=True)
        return 1 + terms.unflatten(1, (2, -1)).sum(-1).sum(-1, keepdim=True)


class Meeting(HandMade):
    """A row sees the others of its pass."""

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + x[:, :1].float().mean(0, keepdim=True).expand(x.shape[0], 1)


class Router(HandMade):
    """A raw product of the run's dtype: what its rows' bits are is a matter of the machine."""

    def gate(self, x: torch.Tensor) -> torch.Tensor:
        return 1 + torch.nn.functional.linear(x, router_weight(x))[:, :1].float()


def router_weight(x: torch.Tensor) -> torch.Tensor:
    """[128, D]."""
    rows = torch.linspace(-1, 1, 128)[:, None] * torch.linspace(1, 2, x.shape[1])
    return rows.to(x.dtype)


class HandMadeModel(Llama3Model):
    feed_forward: ClassVar[type[GatedMLP]]

    def build_network(self) -> Decoder:
        network = super().build_network()
        for block in network.layers:
            block.mlp.__class__ = self.feed_forward  # type: ignore[attr-defined]
        return network


class SteadyModel(HandMadeModel):
    feed_forward = Steady


class UnsteadyModel(HandMadeModel):
    feed_forward = Unsteady


class MeetingModel(HandMadeModel):
    feed_forward = Meeting


class RouterModel(HandMadeModel):
    feed_forward = Router


def tried(calls: Callable[[int], object]) -> OwnOperations:
    """What is found of calls on so many rows, made once for many and once for fewer."""
    own = OwnOperations()
    with own.measuring((FEWER,)):
        calls(FEWER)
    with own.trying((TEXT,)):
        calls(TEXT)
    return own


def registry_of(model: type[HandMadeModel]) -> Registry:
    spec = pilotfish_architectures()[0]
    spec = attrs.evolve(spec, model=f"support.own_arithmetic:{model.__name__}")
    return Registry(plugins=(Plugin(name="handmade", architectures=(spec,)),))


def write_checkpoint(folder: Path, *, width: int = 1024, layers: int = 3) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=200,
        hidden_size=width,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=256,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def gated(gate: Gate, base: type[GatedMLP] = GatedMLP, **attributes: Any) -> type[GatedMLP]:
    def call(self: Any, x: torch.Tensor, run: Any) -> torch.Tensor:
        return GatedMLP.__call__(self, x, run) * gate(x).to(x.dtype)

    return type("Own", (base,), {"__call__": call, **attributes})


def with_feed_forward(kind: type[GatedMLP]) -> type[Llama3Model]:
    def change(network: Any) -> None:
        for block in network.layers:
            block.mlp.__class__ = kind

    return model_with(change)


def model_with(change: Callable[[Any], None]) -> type[Llama3Model]:
    """A model whose network is changed when it is built."""

    class Changed(Llama3Model):
        def build_network(self) -> Any:
            network = super().build_network()
            change(network)
            return network

    return Changed
