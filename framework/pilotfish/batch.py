"""Ragged batches: packed tokens with row offsets, and the request contexts they are packed from.

Knows: how rows of several requests lie behind one another. Does not know: caches or sampling.
Axis letters: B requests, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

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


@attrs.define(kw_only=True)
class RequestContext:
    """What a model must know of one request to run its next rows.

    request_id: unique among live requests.
    tokens: prompt and committed answer so far.
    num_computed: tokens whose rows are committed in every cache.
    num_scheduled: rows of this pass: tokens[num_computed : num_computed + num_scheduled].
    num_prompt_tokens: of `tokens`, how many were given; the rest is answer. 0 where not known: only
        models whose rotary angles depend on the length of the prompt read it (config/rope.py).
    draft_tokens: proposed to follow `tokens`, to be verified in this pass; they may not count.
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
    draft_tokens: tuple[int, ...] = ()
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
        end = self.num_computed + self.num_scheduled
        known = self.tokens[self.num_computed : end]
        return known + list(self.draft_tokens[: self.num_scheduled - len(known)])


@attrs.frozen(kw_only=True)
class RaggedBatch:
    """tokens: [T] int64 and input_row_offsets: [B+1] int32, on one device."""

    tokens: torch.Tensor
    input_row_offsets: torch.Tensor

    @classmethod
    def pack(cls, rows: Sequence[Sequence[int]], device: torch.device | str) -> RaggedBatch:
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
    tokens: torch.Tensor, input_row_offsets: torch.Tensor, return_n_logits: torch.Tensor
) -> None:
    """Raises ValueError when the three tensors do not describe one ragged batch.

    The values of the offsets are checked on the host only: on a GPU that would be a
    synchronisation in every step, so there only shapes, dtypes and devices are checked.
    """
    import torch

    _want(tokens.dtype == torch.int64 and tokens.ndim == 1, "tokens", tokens, "[T] int64")
    _want(
        input_row_offsets.dtype == torch.int32
        and input_row_offsets.ndim == 1
        and input_row_offsets.numel() >= 2,
        "input_row_offsets",
        input_row_offsets,
        "[B+1] int32 with B >= 1",
    )
    num_requests = input_row_offsets.numel() - 1
    _want(
        return_n_logits.dtype == torch.int64
        and return_n_logits.device.type == "cpu"
        and tuple(return_n_logits.shape) in {(1,), (num_requests,)},
        "return_n_logits",
        return_n_logits,
        f"[1] or [{num_requests}] int64 on the host",
    )
    if tokens.device != input_row_offsets.device:
        raise ValueError(
            f"tokens are on {tokens.device} and input_row_offsets on {input_row_offsets.device}; "
            "wanted one device: move them together"
        )
    if input_row_offsets.device.type != "cpu":
        return
    offsets = input_row_offsets.tolist()
    falls = any(b < a for a, b in pairwise(offsets))
    if offsets[0] != 0 or offsets[-1] != tokens.numel() or falls:
        raise ValueError(
            f"input_row_offsets is {offsets}; wanted offsets that start at 0, never fall and end "
            f"at T = {tokens.numel()}"
        )


def _want(holds: bool, name: str, tensor: torch.Tensor, wanted: str) -> None:
    if not holds:
        got = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        raise ValueError(f"{name} is {got}; wanted {wanted}")
