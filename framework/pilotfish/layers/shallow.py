"""shallow: a decoder with one layer of each kind, at its real widths, to be tried at little cost.

Knows: which layers are alike, and numbers to fill those with whose weights were not read. Does not
know: what is tried.
Axis letters: D model width, V vocabulary.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from pilotfish.layers.embedding import Embedding
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits

if TYPE_CHECKING:
    from pilotfish.layers.model import DecoderModel

LIBRARY = "pilotfish."
FEW_TOKENS = 64
"""A vocabulary for the tries: the embedding and the head of the library answer for themselves."""
LARGEST = 2 << 30
"""Bytes that numbers in the place of unread weights may take."""
_DISTINCT_ROWS = 64
_METHODS = ("execute", "embed", "embed_inputs", "lm_head")


def own_layers(model: DecoderModel) -> list[str]:
    """The layers of a model that are not the library's, by name.

    The library's compute with its kernels only, whose rows are proved or probed one by one.
    """
    own = filter(_is_own, model.network.layers_inside())
    return list(dict.fromkeys(type(layer).__qualname__ for layer in own))


def own_methods(model: DecoderModel) -> list[str]:
    """The methods of a model that compute and are not the library's, by name."""
    written = [getattr(type(model), name) for name in _METHODS]
    return [one.__qualname__ for one in written if not one.__module__.startswith(LIBRARY)]


def _is_own(layer: Layer) -> bool:
    if not type(layer).__module__.startswith(LIBRARY):
        return True
    return any(not one.__module__.startswith(LIBRARY) for one in _callables(layer))


def _callables(layer: Layer) -> Iterator[Any]:
    """Functions that a layer was given: scorings, and what was put in the place of a method."""
    for value in vars(layer).values():
        for one in (value, getattr(value, "scoring", None)):
            if callable(one) and not isinstance(one, Layer) and hasattr(one, "__module__"):
                yield one


def shallow(model: DecoderModel, *, is_loaded: bool) -> tuple[DecoderModel, int] | None:
    """The model with one layer of each kind, and how many token ids it knows.

    is_loaded: its weights are there, and shared; else they are random. None where those would take
    more than LARGEST bytes.
    """
    few = copy.copy(model)
    few.network = network = copy.copy(model.network) if is_loaded else model.build_network()
    few.return_logits = ReturnLogits.VARIABLE
    few.return_hidden_states, few.hidden_state_boundaries = ReturnHiddenStates.NONE, ()
    few._native_passes = {}
    kinds = {_kind(layer): layer for layer in reversed(network.layers)}
    network.layers = tuple(layer for layer in network.layers if layer in kinds.values())
    vocab_size, fresh = _shrink_vocabulary(network)
    filled = fresh if is_loaded else [("", network)]
    shapes = {
        prefix + name: shape
        for prefix, layer in filled
        for name, shape in layer.parameter_shapes().items()
    }
    size = sum(map(math.prod, shapes.values())) * model.dtype.itemsize
    if not is_loaded and size > LARGEST:
        return None
    for name, shape in shapes.items():
        network.assign(name, _numbers(name, shape, model), model.backend)
    network.rotary.to(model.device)
    return few, vocab_size


def _kind(layer: Layer) -> Any:
    """What two layers share that compute alike: classes, shapes and switches; not their numbers."""
    switches = tuple(
        (name, value if not callable(value) else id(value))
        for name, value in vars(layer).items()
        if isinstance(value, bool | str | float | None) or callable(value)
        if not isinstance(value, Layer)
    )
    own = tuple(layer._declared().items())
    children = tuple((name, _kind(child)) for name, child in layer._children())
    return type(layer), own, switches, children


def _shrink_vocabulary(network: Any) -> tuple[int, list[tuple[str, Layer]]]:
    """Puts a small embedding and head in place; returns their vocabulary, and what to fill."""
    fresh: list[tuple[str, Layer]] = []
    (vocab_size, width), _ = (*network.embed_tokens._declared().values(), None)[:2]
    if type(network.embed_tokens) is Embedding and type(network.lm_head) is Linear:
        vocab_size, multiplier = FEW_TOKENS, network.embed_tokens.multiplier
        network.embed_tokens = Embedding(vocab_size, width, multiplier=multiplier)
        network.lm_head = Linear(network.lm_head._declared()["weight"][1], vocab_size)
        fresh = [("embed_tokens.", network.embed_tokens), ("lm_head.", network.lm_head)]
    return vocab_size, fresh


def _numbers(name: str, shape: tuple[int, ...], model: DecoderModel) -> torch.Tensor:
    """Random numbers of a size that keeps streams from fading; few different rows, drawn fast."""
    generator = torch.Generator().manual_seed(0)
    if name.endswith("_shape"):
        return torch.zeros(shape, dtype=torch.int64)
    rows = shape[0] if len(shape) > 1 else 1
    some = torch.randn(min(rows, _DISTINCT_ROWS), *shape[1:] or shape, generator=generator)
    if name.endswith("_packed"):
        some = (some * 2**29).to(torch.int32)
    elif name.endswith("_scale"):
        some = some.abs().mul_(0.05).to(torch.bfloat16)
    elif len(shape) > 1:
        some = (some * shape[-1] ** -0.5).to(model.dtype)
    else:
        some = (1 + 0.2 * some).to(model.dtype)
    count = -(-rows // some.shape[0])
    whole = some.repeat(count, *(1,) * (some.ndim - 1))[:rows]
    return whole.view(shape).contiguous().to(model.device)
