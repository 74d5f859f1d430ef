"""ImageProcessor: what an architecture that serves images must offer, and what images take.

Knows: pixels, grids and placeholders. Does not know: any vision tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

import attrs

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from pilotfish.batch import ImageFeatures


@attrs.frozen(kw_only=True)
class ImageMemory:
    """What images take, for the memory plan.

    bytes_per_token: of the embeddings of one placeholder token. max_tokens: of the largest image.
    max_patches: of the largest image, and of the vision tower's fullest pass.
    pass_bytes: of that pass.
    """

    bytes_per_token: int
    max_tokens: int
    max_patches: int
    pass_bytes: int

    def parts(self, kept_bytes: int, max_batch_tokens: int) -> dict[str, int]:
        """Bytes by part: embeddings kept, and the tower with an image and the rows of a pass."""
        rows = self.max_tokens + min(max_batch_tokens, self.max_tokens)
        return {
            "embeddings kept": kept_bytes,
            "tower": self.pass_bytes + rows * self.bytes_per_token,
        }


class ImageProcessor(Protocol):
    """Turns images into features, and says how many placeholder tokens each becomes.

    A prompt has one placeholder for each of its images; the engine puts `num_tokens` in its place.
    placeholder_token_id: that token, in the model's vocabulary.
    unserved_token_ids: ids that stand for another kind of input, e.g. "video" -> its id; a prompt
        that has one is refused by that name.
    """

    placeholder_token_id: int
    unserved_token_ids: Mapping[str, int]

    @classmethod
    def from_checkpoint(cls, config: Any, directory: Path) -> Self | None:
        """config: the architecture's, complete. directory: of the checkpoint; may hold options.

        None for a checkpoint of text only, of an architecture that may serve images.

        Raises ConfigError naming an option that changes the pixels and is not understood.
        """
        ...

    def preprocess(self, pixels: torch.Tensor) -> ImageFeatures:
        """pixels: [3, H, W] uint8 on the host, RGB, not empty -> what the tower reads."""
        ...

    def grid_of(self, height: int, width: int) -> tuple[int, int, int]:
        """The grid of an image of so many pixels, as `preprocess` makes it."""
        ...

    def check(self, features: ImageFeatures) -> None:
        """Raises RequestError when features from elsewhere do not fit the tower."""
        ...

    def num_tokens(self, grid_thw: tuple[int, int, int]) -> int:
        """Placeholder tokens that an image of this grid becomes."""
        ...
