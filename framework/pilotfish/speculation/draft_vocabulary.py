"""DraftVocabulary: the tokens of a draft that knows only some of its target's.

Axis letters: T rows, V vocabulary of the target.
"""

from __future__ import annotations

import torch

from pilotfish.errors import WeightsError
from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import Layer


def fitted(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """logits: [T, V'] of a draft whose embedding is padded to another size -> [T, V].

    Tokens that only the draft's padding has are dropped; it says -inf of those only the target's.
    """
    short = vocab_size - logits.shape[1]
    if short <= 0:
        return logits[:, :vocab_size]
    return torch.nn.functional.pad(logits, (0, short), value=-torch.inf)


class DraftVocabulary(Layer):
    """Which token of the target each of the draft's own tokens is.

    Parameter: offsets, [draft vocabulary] whole numbers; token i of the draft is i + offsets[i].
    """

    ids: torch.Tensor

    def __init__(self, draft_vocab_size: int, target_vocab_size: int) -> None:
        self.target_vocab_size = target_vocab_size
        self.declare("offsets", (draft_vocab_size,))

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Turns offsets into ids.

        Raises WeightsError for numbers that are not whole, and when two are one or one is no token.
        """
        del backend
        stored = tensors["offsets"]
        if stored.is_floating_point() or stored.dtype == torch.bool:
            kind = str(stored.dtype).removeprefix("torch.")
            raise WeightsError(f"the draft's d2t holds {kind}; wanted offsets, as int64 or int32")
        offsets = stored.long()
        self.ids = torch.arange(offsets.shape[0], device=offsets.device) + offsets
        found = self.ids.tolist()
        if len(set(found)) != len(found) or not (
            min(found) >= 0 and max(found) < self.target_vocab_size
        ):
            raise WeightsError(
                f"the draft's d2t maps {len(found)} tokens to {len(set(found))} different ids from "
                f"{min(found)} to {max(found)}; wanted different ids below "
                f"{self.target_vocab_size}: it holds offsets, id = i + d2t[i]"
            )

    def check_mask(self, mask: torch.Tensor) -> None:
        """mask: the draft's t2d, [V], true for each token that it knows. Raises WeightsError."""
        known = set(mask.flatten().nonzero()[:, 0].tolist())
        odd = sorted(known.symmetric_difference(self.ids.tolist()))
        if odd:
            which = ("t2d and not in d2t", "d2t and not in t2d")[odd[0] not in known]
            raise WeightsError(
                f"the draft's t2d contradicts its d2t: token {odd[0]} is in {which}, and so "
                f"are {len(odd) - 1} more; wanted t2d true exactly for the ids i + d2t[i]"
            )

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [T, draft vocabulary] float32 -> [T, V], -inf where the draft has no token."""
        spread = logits.new_full((logits.shape[0], self.target_vocab_size), float("-inf"))
        return spread.index_copy_(1, self.ids, logits)
