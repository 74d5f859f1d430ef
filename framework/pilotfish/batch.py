"""Ragged batches: packed tokens with row offsets, and the request contexts they are packed from.

Knows: how rows of several requests lie behind one another. Does not know: caches or sampling.
Axis letters: B requests, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NoReturn

import attrs

from pilotfish.records import TensorRecord

if TYPE_CHECKING:
    import torch

_ABOVE_TOKEN_IDS = 1 << 256


@attrs.frozen(kw_only=True, eq=False)
class ImageFeatures(TensorRecord):
    """One image as a vision tower reads it: made by an ImageProcessor, or before by the caller.

    pixel_values: [P, ...] float, one item a patch, in the architecture's own layout.
    grid_thw: frames, rows and columns of patches; P is their product.
    """

    pixel_values: torch.Tensor
    grid_thw: tuple[int, int, int]


@attrs.frozen(kw_only=True, eq=False)
class PlacedImage:
    """An image in a request's tokens.

    features: what the tower reads. digest: of their content, 32 bytes. start: place of its first
    placeholder among the request's tokens. num_tokens: of its placeholders.
    """

    features: ImageFeatures
    digest: bytes
    start: int
    num_tokens: int

    @property
    def stop(self) -> int:
        """Place after its last placeholder."""
        return self.start + self.num_tokens

    @property
    def key(self) -> int:
        """The prefix key of each of its rows; no token id is as large."""
        return _ABOVE_TOKEN_IDS | int.from_bytes(self.digest, "big")


@attrs.frozen(kw_only=True)
class Proposal:
    """What a drafter proposes to follow a request's tokens.

    tokens: up to `num_draft_tokens` token ids of the target, in order; empty: no proposal.
    probs: [G, V] float32, row i the probabilities that tokens[i] was drawn from, of sum 1; None:
        each token is certain. The engine refuses what cannot be probabilities, or not that token's.
    """

    tokens: Sequence[int] = ()
    probs: torch.Tensor | None = None

    def first(self, count: int) -> Proposal:
        """Its first `count` tokens."""
        if count >= len(self.tokens):
            return self
        probs = None if self.probs is None else self.probs[:count]
        return Proposal(tokens=self.tokens[:count], probs=probs)


NO_DRAFT = Proposal()


@attrs.define(kw_only=True, eq=False)
class RequestContext:
    """What a model must know of one request to run its next rows. The engine's are of a subclass.

    request_id: unique among live requests.
    tokens: prompt and committed answer so far.
    num_computed: tokens whose rows are committed in every cache.
    num_scheduled: rows of this pass: tokens[num_computed : num_computed + num_scheduled].
    num_prompt_tokens: of `tokens`, how many were given; the rest is answer. 0 where not known: only
        models whose rotary angles depend on the length of the prompt read it (config/rope.py).
    draft: proposed to follow `tokens`, to be verified in this pass; its tokens may not count.
    num_restart_tokens: tokens it had when its cache was dropped on purpose, at a model's
        `recompute_length`; 0 for a request that was not.
    images: in the order of their places; all of them lie in the prompt.
    """

    request_id: str
    tokens: list[int]
    num_computed: int = 0
    num_scheduled: int = 0
    num_prompt_tokens: int = 0
    num_restart_tokens: int = 0
    draft: Proposal = NO_DRAFT
    images: tuple[PlacedImage, ...] = ()

    def keys(self, start: int, stop: int) -> list[int]:
        """What decides the content of rows start to stop: token ids, and hashes of images."""
        keys = self.tokens[start:stop]
        for image in self.images:
            first, last = max(start, image.start), min(stop, image.stop)
            if first < last:
                keys[first - start : last - start] = [image.key] * (last - first)
        return keys

    @property
    def scheduled_tokens(self) -> list[int]:
        """The tokens of this pass."""
        known = self.tokens[self.num_computed : self.num_computed + self.num_scheduled]
        known += self.draft.tokens[: self.num_scheduled - len(known)]
        return known

    @property
    def num_started_tokens(self) -> int:
        """Tokens it had when its rows were first computed, or computed anew on purpose."""
        return max(self.num_prompt_tokens, self.num_restart_tokens)


@attrs.frozen(kw_only=True)
class RaggedBatch:
    """tokens: [T] int64 and input_row_offsets: [B+1] int32, on one device."""

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor

    @classmethod
    def pack(cls, rows: Iterable[Sequence[int]], device: torch.device | str) -> RaggedBatch:
        """Packs one list of token ids per request, in order."""
        import torch

        flat: list[int] = []
        offsets = [0]
        for row in rows:
            flat.extend(row)
            offsets.append(len(flat))
        return cls(
            tokens=torch.tensor(flat, dtype=torch.int64, device=device),
            input_row_offsets=torch.tensor(offsets, dtype=torch.int32, device=device),
        )


def check_ragged(
    tokens: torch.Tensor,
    input_row_offsets: torch.Tensor,
    return_n_logits: torch.Tensor,
    *,
    min_requests: int = 1,
) -> None:
    """Raises ValueError when the three tensors do not describe one ragged batch.

    min_requests: the least B.
    The values of the offsets are checked on the host only: on a GPU that would be a
    synchronisation in every step, so there only shapes, dtypes and devices are checked.
    """
    import torch

    num_requests = input_row_offsets.numel() - 1
    if tokens.dtype != torch.int64 or tokens.ndim != 1:
        _refuse("tokens", tokens, "[T] int64")
    is_offsets = input_row_offsets.dtype == torch.int32 and input_row_offsets.ndim == 1
    if not is_offsets or num_requests < min_requests:
        wanted = f"[B+1] int32 with B >= {min_requests}"
        _refuse("input_row_offsets", input_row_offsets, wanted)
    if (
        return_n_logits.dtype != torch.int64
        or return_n_logits.device.type != "cpu"
        or return_n_logits.ndim != 1
        or return_n_logits.numel() not in {1, num_requests}
    ):
        _refuse("return_n_logits", return_n_logits, f"[1] or [{num_requests}] int64 on the host")
    if tokens.device != input_row_offsets.device:
        raise ValueError(
            f"tokens are on {tokens.device} and input_row_offsets on {input_row_offsets.device}; "
            "wanted one device: move them together"
        )
    if input_row_offsets.device.type != "cpu":
        return
    offsets = input_row_offsets.tolist()
    if offsets[0] != 0 or offsets[-1] != tokens.numel() or offsets != sorted(offsets):
        raise ValueError(
            f"input_row_offsets is {offsets}; wanted offsets that start at 0, never fall and end "
            f"at T = {tokens.numel()}"
        )


def _refuse(name: str, tensor: torch.Tensor, wanted: str) -> NoReturn:
    got = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
    raise ValueError(f"{name} is {got}; wanted {wanted}")
