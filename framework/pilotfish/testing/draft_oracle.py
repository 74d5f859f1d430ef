"""DraftOracle: what a drafter should draft after a text, from an implementation that is not it.

Knows: what the kit asks, and how a target is read by transformers. Does not know: any one format of
drafts. Axis letters: T tokens, V vocabulary of the target, D its width, G drafted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch

from pilotfish.testing.outcome import NotKnown
from pilotfish.testing.transformers_oracle import TransformersOracle


class DraftOracle:
    """The greedy drafts of another implementation; an author writes `drafts` or `scores`.

    `SpeculatorSpec.draft_oracle` names what makes one: (folder of the target, folder of the draft
    or None) -> DraftOracle. It may raise NotKnown for a pair of which it knows nothing.
    """

    def drafts(self, tokens: Sequence[int], width: int) -> Sequence[int]:
        """What is drafted where `width` tokens are asked for.

        tokens: all that count, the newest included. By default the likeliest one by one.
        """
        drafted: list[int] = []
        for _ in range(width):
            scores = self.scores(tokens, [*drafted, 0], torch.float64)
            if scores is None:
                raise NotImplementedError(f"{type(self).__name__} has no `drafts` and no `scores`")
            drafted.append(int(scores[-1].argmax()))
        return drafted

    def scores(
        self, tokens: Sequence[int], drafted: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor | None:
        """[G, V]: the logits that each of `drafted` is chosen by, those before it drafted already.

        Up to a factor above 0. dtype: float64, or float32 for the error that rounding makes: by
        these two a near-tie is told from a mistake. None where tokens are all that is known.
        """
        del tokens, drafted, dtype
        return None


class Definition(Protocol):
    """A draft as its definition reads, in one dtype."""

    def scores(self, tokens: Sequence[int], drafted: Sequence[int]) -> torch.Tensor:
        """As `DraftOracle.scores`."""
        ...


class DefinedOracle(DraftOracle):
    """An oracle by a definition that is made anew for each dtype, when that is asked for first."""

    def __init__(self, make: Callable[[torch.dtype], Definition]) -> None:
        self._make = cache(make)

    def scores(
        self, tokens: Sequence[int], drafted: Sequence[int], dtype: torch.dtype
    ) -> torch.Tensor:
        """As `DraftOracle`."""
        return self._make(dtype).scores(tokens, drafted)


class DraftTarget:
    """transformers' model of a target in one dtype, with what drafts read of it.

    dtype: float32 or float64. ignored: as of TransformersOracle. Raises NotKnown where transformers
    cannot load the folder whole, and for rotary positions that depend on the length of the text.
    """

    def __init__(self, folder: Path, dtype: torch.dtype, ignored: Collection[str] = ()) -> None:
        self._oracle = TransformersOracle(folder, ignored)
        self.model: Any = self._oracle.load("float32").to(dtype)
        rope = str(getattr(self.model.config.get_text_config(decoder=True), "rope_parameters", ""))
        if "'dynamic'" in rope or "'longrope'" in rope:
            raise NotKnown(
                "the target's rotary positions depend on the length that a text began at"
            )
        self.dtype = dtype
        self._newest: tuple[list[int], Any] = ([], None)

    @property
    def embedding(self) -> torch.Tensor:
        """[V, D], as in the file; `embed` gives what the model makes of it."""
        weight: torch.Tensor = self.model.get_input_embeddings().weight.detach()
        return weight

    @property
    def head(self) -> torch.Tensor:
        """[V, D]."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight.detach()
        return weight

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """[T, D], with the model's own factor: boundary 0 of the stream."""
        embedded = self._oracle.embedded(self.model, tokens)
        return self.read(tokens)[0][0] if embedded is None else embedded

    def read(self, tokens: Sequence[int]) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Boundaries 0 to L of the stream, the last before the final norm; the normed output.

        Each [T, D].
        """
        if self._newest[0] != list(tokens):
            self._newest = list(tokens), self._oracle.streams(self.model, tokens)
        states, normed = self._newest[1]
        if not states or normed is None:
            raise NotKnown("the stream of transformers' class of the target is not found")
        return states, normed


class Turn:
    """Rotary positions, half-split; angles in float32, as models are trained.

    layer: options of the draft's layers, with their rope. head_dim: numbers of a head. share: of
    those that are turned.
    """

    def __init__(self, layer: Mapping[str, Any], head_dim: int, share: float = 1.0) -> None:
        import transformers
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        fields = {name: value for name, value in layer.items() if name != "model_type"}
        config = transformers.Qwen3Config(**{**fields, "head_dim": head_dim})
        rope: Any = config.rope_parameters
        kind, self._scale = rope["rope_type"], 1.0
        self._width = int(head_dim * share)
        exponents = torch.arange(0, self._width, 2, dtype=torch.float32) / self._width
        self._frequencies = 1.0 / (rope["rope_theta"] ** exponents)
        if kind in ("dynamic", "longrope"):
            raise NotKnown("the draft's rotary positions depend on the length that a text began at")
        if kind == "linear":
            self._frequencies /= rope["factor"]
        elif kind != "default":
            if kind not in ROPE_INIT_FUNCTIONS:
                raise NotKnown(f"transformers has no rotary positions of type {kind!r}")
            found = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
            self._frequencies, self._scale = found

    def __call__(self, heads: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """heads: [T, N, H]; positions: [T] -> [T, N, H]."""
        angles = positions.to(torch.float32)[:, None] * self._frequencies
        cos, sin = (
            (part * self._scale).to(heads.dtype)[:, None] for part in (angles.cos(), angles.sin())
        )
        a, b = heads[..., : self._width // 2], heads[..., self._width // 2 : self._width]
        rest = heads[..., self._width :]
        return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x over its root mean square, times weight."""
    return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


def spread(own: torch.Tensor, offsets: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """[G, V] over the target's ids: token i of the draft is i + offsets[i]; the rest never comes.

    offsets: a file's d2t; None where the draft's ids are the target's, but for padding.
    """
    count = own.shape[1] if offsets is not None else min(own.shape[1], vocab_size)
    ids = torch.arange(count) if offsets is None else torch.arange(count) + offsets
    found = own.new_full((own.shape[0], vocab_size), -torch.inf)
    found[:, ids] = own[:, :count]
    return found


def tensors_of(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """All tensors of a draft's file, floating ones in `dtype`; names without a leading `model.`."""
    from safetensors.torch import load_file

    stored = list[tuple[str, torch.Tensor]]()
    for file in sorted(folder.glob("*.safetensors")):
        stored += load_file(file).items()
    for file in sorted(folder.glob("pytorch_model*.bin")):
        stored += torch.load(file, weights_only=True).items()
    return {
        name.removeprefix("model."): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in stored
    }
