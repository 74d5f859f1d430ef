"""Changes of layout that several checkpoint formats need, as functions and as Transforms.

Knows: how rows and axes move. Does not know: which tensor of which architecture needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pilotfish.weights.rules import Shape, Transform

if TYPE_CHECKING:
    import torch


def unpermute_rope_rows(tensor: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders each head's rows from interleaved rotary pairs to half-split ones.

    tensor: [num_heads * H, ...], a q or k projection (or its bias) whose rows 2j and 2j+1 of a
        head rotate together, as GGUF files have it.
    Returns a tensor of the same shape and dtype whose rows j and j + H/2 of a head rotate
    together, as Hugging Face files have it. Raises ValueError when the rows do not make
    `num_heads` heads of even width.
    """
    _check_heads(tuple(tensor.shape), num_heads)
    head_dim = tensor.shape[0] // num_heads
    pairs = tensor.reshape(num_heads, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def unpermuted_parts(tensor: torch.Tensor, num_heads: int) -> list[torch.Tensor]:
    """`unpermute_rope_rows` as views of every other row of each head, to be read one by one."""
    return [head[side::2] for head in tensor.chunk(num_heads) for side in (0, 1)]


def unpermute_rope(num_heads: int) -> Transform:
    """`unpermute_rope_rows` for a rule's piece."""

    def shape(got: Shape) -> Shape:
        _check_heads(got, num_heads)
        return got

    return Transform(
        lambda tensor: unpermute_rope_rows(tensor, num_heads),
        shape,
        row_parts=lambda tensor: unpermuted_parts(tensor, num_heads),
    )


def drop_axis(axis: int) -> Transform:
    """Removes an axis of size 1, counted from 0: a depthwise convolution's [D, 1, width]."""

    def shape(got: Shape) -> Shape:
        if axis >= len(got) or got[axis] != 1:
            raise ValueError(f"wanted size 1 on axis {axis}")
        return got[:axis] + got[axis + 1 :]

    return Transform(lambda tensor: tensor.squeeze(axis), shape)


def _check_heads(shape: Shape, num_heads: int) -> None:
    if not shape or shape[0] % (2 * num_heads):
        raise ValueError(f"wanted rows for {num_heads} heads of even width")
