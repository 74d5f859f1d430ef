"""ImageDecoderModel: a decoder whose prompts may hold images.

Knows: which rows of a pass are an image's, and when an image is encoded. Does not know: towers.
Axis letters: T packed tokens, I rows of images in a pass, D model width, P patches of all images,
n placeholder tokens of one image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import attrs
import torch

from pilotfish.batch import PlacedImage, RequestContext
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.inputs import DecoderInputs
from pilotfish.multimodal.embedding_cache import EmbeddingCache
from pilotfish.protocols import ImageFeatures, ModelInputs
from pilotfish.state import KVCacheInputs

IMAGE_FIELDS = (
    *("image_token_indices", "precomputed_image_embeddings"),
    *("pixel_values", "grid_thws"),
)
"""What `ImageInputs` has beside a decoder's inputs."""


@attrs.frozen(kw_only=True)
class ImageInputs(DecoderInputs):
    """A decoder's inputs and the images in its rows; all None where a pass has none.

    image_token_indices: [I] int64, the rows of the pass that are an image's.
    precomputed_image_embeddings: [I, D], what enters block 0 in those rows.
    pixel_values: [P, ...] float and grid_thws: [images, 3] int64 on the host: instead of the
        embeddings, whole images to be encoded in this pass, all their rows in order.

    Raises ValueError when the fields do not fit one another.
    """

    image_token_indices: torch.Tensor | None = None
    precomputed_image_embeddings: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    grid_thws: torch.Tensor | None = None

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        rows, embeddings = self.image_token_indices, self.precomputed_image_embeddings
        if (self.pixel_values is None) != (self.grid_thws is None):
            raise ValueError("wanted pixel_values and grid_thws together, or neither")
        if (rows is not None) != ((embeddings is not None) or (self.pixel_values is not None)):
            raise ValueError(
                "wanted image_token_indices with precomputed_image_embeddings or pixel_values, or "
                "none of them"
            )
        if rows is None or embeddings is None:
            return
        if self.pixel_values is not None or embeddings.shape[0] != rows.shape[0]:
            raise ValueError(
                f"precomputed_image_embeddings is {list(embeddings.shape)}; wanted one row for "
                "each of image_token_indices, and no pixel_values beside it"
            )


class ImageDecoderModel(DecoderModel):
    """Base of decoders that serve images; a subclass adds `encode_images`.

    An image is encoded when the first of its rows is to be computed, and its embeddings are kept
    by content within `CacheConfig.image_bytes`: for its later chunks, after a preemption, and for
    other requests. Where they do not fit they are computed again.
    """

    inputs_class: ClassVar[type[DecoderInputs]] = ImageInputs

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.image_embeddings = EmbeddingCache(self.pipeline_config.cache.image_bytes)

    # What a plugin writes.

    def encode_images(self, images: Sequence[ImageFeatures]) -> list[torch.Tensor]:
        """Runs the tower: one [n, D] tensor an image, in the run's dtype, in memory of its own.

        An image's embeddings must not depend on the others in the call.
        """
        raise NotImplementedError

    # What the engine and DecoderModel call.

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> DecoderInputs:
        """As DecoderModel; encodes the images that have rows in this pass and are not kept."""
        inputs = super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits
        )
        uses = list(_image_uses(self.packed_batch(replica_batches).contexts))
        if not uses:
            return inputs
        assert isinstance(inputs, ImageInputs)
        indices = [row for use in uses for row in range(use.row, use.row + use.stop - use.start)]
        return attrs.evolve(
            inputs,
            image_token_indices=torch.tensor(indices, device=self.device),
            precomputed_image_embeddings=self._rows_of(uses),
        )

    def prepare_next_token_inputs(
        self, next_tokens: torch.Tensor, prev_model_inputs: ModelInputs
    ) -> DecoderInputs:
        """As DecoderModel: the next rows are text, since images lie in prompts."""
        previous = self._own(prev_model_inputs)
        assert isinstance(previous, ImageInputs)
        no_images: dict[str, Any] = dict.fromkeys(IMAGE_FIELDS)
        return super().prepare_next_token_inputs(next_tokens, attrs.evolve(previous, **no_images))

    def embed_inputs(self, inputs: DecoderInputs, tokens: torch.Tensor) -> torch.Tensor:
        """As DecoderModel, with the images' embeddings in their rows."""
        embedded = super().embed_inputs(inputs, tokens)
        assert isinstance(inputs, ImageInputs)
        if inputs.image_token_indices is None:
            return embedded
        rows = inputs.precomputed_image_embeddings
        if rows is None:
            rows = torch.cat(self.encode_images(_features_of(inputs)))
            if rows.shape[0] != inputs.image_token_indices.shape[0]:
                raise ValueError(
                    f"image_token_indices has {inputs.image_token_indices.shape[0]} rows and the "
                    f"images have {rows.shape[0]} tokens; wanted the rows of whole images"
                )
        return embedded.index_copy_(0, inputs.image_token_indices, rows.to(embedded.dtype))

    def _rows_of(self, uses: Sequence[_Use]) -> torch.Tensor:
        """[I, D], the rows of all uses in order; each content is encoded once at most.

        At no time are there more whole images in memory than the cache keeps and one pass of the
        tower made.
        """
        pieces: dict[_Use, torch.Tensor] = {}
        missing: dict[bytes, ImageFeatures] = {}
        by_content: dict[bytes, list[_Use]] = {}
        for use in uses:
            by_content.setdefault(use.image.digest, []).append(use)
        for digest, own in by_content.items():
            kept = self.image_embeddings.get(digest)
            if kept is None:
                missing[digest] = own[0].image.features
            else:
                # Copies: a view would hold a whole image that the cache has since dropped.
                pieces |= {use: kept[use.start : use.stop].clone() for use in own}
        for group in _tower_passes(missing, self.config.get_image_memory().max_patches):
            encoded = self.encode_images([missing[digest] for digest in group])
            for digest, embeddings in zip(group, encoded, strict=True):
                self.image_embeddings.put(digest, embeddings)
                own = by_content[digest]
                pieces |= {use: embeddings[use.start : use.stop].clone() for use in own}
        return torch.cat([pieces[use] for use in uses])


@attrs.frozen(eq=False)
class _Use:
    """Rows start to stop of an image, in the pass from row `row` on."""

    row: int
    image: PlacedImage
    start: int
    stop: int


def _image_uses(contexts: Sequence[RequestContext]) -> Iterator[_Use]:
    """Which rows of which images a pass computes, in the order of its rows."""
    offset = 0
    for context in contexts:
        start = context.num_computed
        for image in context.images:
            first = max(start, image.start)
            stop = min(start + context.num_scheduled, image.stop)
            if first < stop:
                row = offset + first - start
                yield _Use(row, image, first - image.start, stop - image.start)
        offset += context.num_scheduled


def _tower_passes(images: Mapping[bytes, ImageFeatures], max_patches: int) -> Iterator[list[bytes]]:
    """Digests in groups of at most max_patches; an image that is larger stands alone."""
    group: list[bytes] = []
    room = max_patches
    for digest, features in images.items():
        size = math.prod(features.grid_thw)
        if group and size > room:
            yield group
            group, room = [], max_patches
        group.append(digest)
        room -= size
    if group:
        yield group


def _features_of(inputs: ImageInputs) -> list[ImageFeatures]:
    assert inputs.pixel_values is not None
    assert inputs.grid_thws is not None
    grids = [(int(t), int(h), int(w)) for t, h, w in inputs.grid_thws.tolist()]
    parts = torch.split(inputs.pixel_values, [t * h * w for t, h, w in grids])
    return [
        ImageFeatures(pixel_values=part, grid_thw=grid)
        for part, grid in zip(parts, grids, strict=True)
    ]
