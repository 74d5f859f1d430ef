"""shallow: a decoder with one layer of each kind, at its real widths, to be tried at little cost.

Knows: which layers are alike, and numbers to fill those with whose weights were not read. Does not
know: what is tried.
Axis letters: D model width, V vocabulary.
"""

from __future__ import annotations

import copy
import enum
import math
from typing import Any

import torch

from pilotfish.invariance.own_parts import own_part
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.parallel.group import Groups
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits

FEW_TOKENS = 64
"""A vocabulary for the tries: the embedding and the head of the library answer for themselves."""
LARGEST = 2 << 30
"""Bytes that numbers in the place of unread weights may take."""
_DISTINCT_ROWS = 64


def shallow(model: Any, *, is_loaded: bool) -> tuple[Any, int] | None:
    """The model with one layer of each kind, and how many token ids it knows.

    model: a DecoderModel. is_loaded: its weights are there, and shared; else they are random.
    None where those would take more than LARGEST bytes.
    """
    few = copy.copy(model)
    few.network = network = copy.copy(model.network) if is_loaded else model.build_network()
    if not is_loaded:  # a whole one, whatever ranks have of the model's
        few.groups, few.lockstep = Groups(), None
    few.return_logits = ReturnLogits.VARIABLE
    few.return_hidden_states, few.aux_hidden_state_layers = ReturnHiddenStates.NONE, ()
    few._native_passes = {}
    kinds = {_kind(layer): layer for layer in reversed(network.layers)}
    network.layers = tuple(layer for layer in network.layers if layer in kinds.values())
    fresh = _shrink_vocabulary(network)
    vocab_size = next(iter(network.lm_head.parameter_shapes().values()))[0]
    filled = fresh if is_loaded else [("", network)]
    shapes = {
        prefix + name: shape
        for prefix, layer in filled
        for name, shape in layer.parameter_shapes().items()
    }
    size = sum(math.prod(shape) * _dtype(name, model).itemsize for name, shape in shapes.items())
    if not is_loaded and size > LARGEST:
        return None
    for name, shape in shapes.items():
        network.assign(name, _numbers(name, shape, model), model.backend)
    if network.rotary is not None:
        network.rotary.to(model.device)
    return few, vocab_size


def _kind(layer: Layer) -> Any:
    """What two layers share that compute alike: classes, shapes and switches.

    Of the library's layers, and of those whose author says that they keep bits, a number is no
    switch; of others everything is one but tensors.
    """
    part = own_part(layer)
    is_known = part is None or part.keeps_bits
    switches = tuple(
        (name, _switch(value))
        for name, value in vars(layer).items()
        if not is_known or isinstance(value, bool | str | float | None) or callable(value)
    )
    own = tuple(layer._declared().items())
    children = tuple((name, _kind(child)) for name, child in layer._children())
    return type(layer), own, switches, children


def _switch(value: Any) -> Any:
    """Equal for values that a layer cannot tell apart; of objects only for one and the same."""
    if isinstance(value, Layer | torch.Tensor):
        return Layer
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_switch, value))
    if isinstance(value, dict):
        return type(value), tuple((_switch(key), _switch(one)) for key, one in value.items())
    is_plain = isinstance(value, bool | int | float | str | bytes | enum.Enum | None)
    return type(value), value if is_plain else id(value)


def _shrink_vocabulary(network: Any) -> list[tuple[str, Layer]]:
    """Puts a small embedding and head in the place of the library's; returns what to fill."""
    embedding, head = network.embed_tokens, network.lm_head
    if type(embedding) is not Embedding or type(head) is not Linear:
        return []
    if own_part(embedding) is not None or own_part(head) is not None:
        return []
    width = head.parameter_shapes()["weight"][1]
    network.embed_tokens = Embedding(
        FEW_TOKENS,
        embedding.width,
        multiplier=embedding.multiplier,
        rounds_multiplier=embedding.rounds_multiplier,
    )
    network.lm_head = Linear(width, FEW_TOKENS)
    return [("embed_tokens.", network.embed_tokens), ("lm_head.", network.lm_head)]


def _dtype(name: str, model: Any) -> torch.dtype:
    """As checkpoints have it."""
    kinds = {"_shape": torch.int64, "_packed": torch.int32, "_scale": torch.bfloat16}
    own: torch.dtype = model.dtype
    return next((kind for end, kind in kinds.items() if name.endswith(end)), own)


def _numbers(name: str, shape: tuple[int, ...], model: Any) -> torch.Tensor:
    """Random numbers of a size that keeps streams from fading; few different rows, drawn fast."""
    generator = torch.Generator().manual_seed(0)
    if name.endswith("_shape"):
        return torch.zeros(shape, dtype=torch.int64)
    rows = shape[0] if len(shape) > 1 else 1
    some = torch.randn(min(rows, _DISTINCT_ROWS), *shape[1:] or shape, generator=generator)
    if name.endswith("_packed"):
        some = some * 2**29
    elif name.endswith("_scale"):
        some = some.abs().mul_(0.05)
    elif len(shape) > 1:
        some = some * shape[-1] ** -0.5
    else:
        some = 1 + 0.2 * some
    some = some.to(_dtype(name, model))
    count = -(-rows // some.shape[0])
    whole = some.repeat(count, *(1,) * (some.ndim - 1))[:rows]
    return whole.view(shape).contiguous().to(model.device)
