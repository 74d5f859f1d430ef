"""Token bitmasks: which tokens a grammar lets come, a bit a token.

Knows: the packing that grammar libraries share. Does not know: grammars.
Axis letters: R rows of logits, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pilotfish.kernels.sampling import native

_WORD_BITS = 32


def apply_bitmask(logits: Tensor, masks: Tensor) -> Tensor:
    """Returns logits [R, V] with -inf for every token whose bit is 0.

    logits: [R, V] float32; left as they are. masks: [R, ceil(V / 32)] int32, token t is bit t % 32
    (the lowest first) of word t // 32. Raises ValueError when the shapes do not fit.
    """
    rows, vocab = logits.shape
    words = -(-vocab // _WORD_BITS)
    if masks.shape != (rows, words) or masks.dtype != torch.int32:
        raise ValueError(
            f"the token bitmasks are {list(masks.shape)} {masks.dtype}; wanted [{rows}, {words}] "
            "torch.int32, a row for each row of logits"
        )
    if native.serves_logits(logits):
        return native.apply_bitmask(logits.detach(), masks)
    bits = torch.arange(_WORD_BITS, dtype=torch.int32, device=masks.device)
    allowed = (masks.unsqueeze(-1) >> bits) & 1
    return logits.masked_fill(allowed.flatten(1)[:, :vocab] == 0, float("-inf"))
