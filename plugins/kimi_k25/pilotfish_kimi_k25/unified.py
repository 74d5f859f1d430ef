"""Kimi K2.5 and its DFlash draft as one model: names and image inputs over the shared step.

Knows: the fields that this pair adds. Does not know: the draft's network, or how a step goes on
(`pilotfish.speculation.unified`); `LLM(model, draft=..., speculative="dflash")` does without it.
Axis letters: B requests, T packed tokens, I rows of images, D model width, P patches, G drafted
tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import attrs
import torch

from pilotfish.batch import RequestContext
from pilotfish.errors import ConfigError
from pilotfish.multimodal.model import IMAGE_FIELDS, ImageInputs
from pilotfish.protocols import ModelInputs
from pilotfish.speculation.unified import UnifiedConfig, UnifiedInputs, UnifiedModel
from pilotfish.state import KVCacheInputs


@attrs.frozen(kw_only=True)
class UnifiedDflashKimiK25Config(UnifiedConfig):
    """target: the Kimi's own configuration. draft: the DFlash draft's."""

    method: ClassVar[str] = "dflash"
    target_architectures: ClassVar[tuple[str, ...]] = (
        "KimiK25ForConditionalGeneration",
        "Kimi_K25ForConditionalGeneration",
    )

    @property
    def target_layer_ids(self) -> tuple[int, ...]:
        """Blocks of the target after which the draft reads, in its order; -1 is the embedding."""
        return tuple(tap - 1 for tap in self.draft.aux_hidden_state_layers)

    @property
    def mask_token_id(self) -> int:
        """Read by the rows of a block after the first."""
        return int(self.draft.mask_token_id)

    @property
    def block_size(self) -> int:
        """Rows of a block, the first included."""
        return int(self.draft.block_size)

    def finalize(
        self,
        huggingface_config: Any,
        state_dict: Mapping[str, Any],
        draft_huggingface_config: Any,
        draft_state_dict: Mapping[str, Any],
    ) -> Self:
        """As the base, and checked by `validate_dflash_fields`."""
        made = super().finalize(
            huggingface_config, state_dict, draft_huggingface_config, draft_state_dict
        )
        made.validate_dflash_fields()
        return made

    def validate_dflash_fields(self) -> None:
        """Raises ConfigError naming a field of the draft that does not fit this target."""
        target: Any = self.target
        last, vocab = target.num_hidden_layers - 1, target.vocab_size
        if self.block_size < 2:
            raise ConfigError(
                f"block_size is {self.block_size}; wanted at least 2: one known token and a mask"
            )
        if not 0 <= self.mask_token_id < vocab:
            raise ConfigError(
                f"mask_token_id is {self.mask_token_id}; wanted an id from 0 to {vocab - 1}"
            )
        ids = self.target_layer_ids
        if not ids or any(not -1 <= one <= last for one in ids):
            raise ConfigError(
                f"target_layer_ids is {list(ids)}; wanted one or more from -1, the embedding, to "
                f"{last}, the last block"
            )
        if self.draft.target_hidden_size != target.hidden_size:
            raise ConfigError(
                f"the draft was made for a target of width {self.draft.target_hidden_size}; this "
                f"one is {target.hidden_size} wide"
            )

    def resolve_block_size(self, *, default: int | None = None) -> int:
        """The block size. default: not needed here, since the draft's config is always read."""
        del default
        return self.block_size


@attrs.frozen(kw_only=True)
class UnifiedDflashKimiK25Inputs(UnifiedInputs):
    """One step of B requests: the base's fields, and images as `ImageInputs` has them.

    image_token_indices: [I] int64, the rows of `tokens` that are an image's.
    precomputed_image_embeddings: [I, D]; or pixel_values [P, ...] with grid_thws [images, 3].
    """

    image_token_indices: torch.Tensor | None = None
    precomputed_image_embeddings: torch.Tensor | None = None
    pixel_values: torch.Tensor | None = None
    grid_thws: torch.Tensor | None = None

    @property
    def host_input_row_offsets(self) -> tuple[int, ...]:
        """input_row_offsets on the host."""
        return tuple(self.input_row_offsets.tolist())

    @property
    def batch_context_lengths(self) -> tuple[int, ...]:
        """[B] on the host: rows committed before this step. Raises ValueError without pages."""
        if self.kv_cache_inputs is None:
            raise ValueError("kv_cache_inputs is None; wanted the pages of every request")
        return self.kv_cache_inputs.lengths


class UnifiedDflashKimiK25Model(UnifiedModel):
    """See the base. Images come in the contexts, or as fields of the inputs."""

    config_class: ClassVar[type[UnifiedDflashKimiK25Config]] = UnifiedDflashKimiK25Config
    inputs_class: ClassVar[type[UnifiedDflashKimiK25Inputs]] = UnifiedDflashKimiK25Inputs

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
        **fields: Any,
    ) -> UnifiedInputs:
        """As the base; encodes the images that have rows in this step."""
        if any(context.images for batch in replica_batches for context in batch):
            images = self.target.prepare_initial_token_inputs(replica_batches)
            fields = {**{name: getattr(images, name) for name in IMAGE_FIELDS}, **fields}
        return super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits, **fields
        )

    def prepare_next_token_inputs(
        self,
        next_tokens: torch.Tensor,
        prev_model_inputs: UnifiedInputs,
        kv_cache_inputs: KVCacheInputs | None = None,
        draft_tokens: torch.Tensor | None = None,
    ) -> UnifiedInputs:
        """As the base: what follows a prompt is text."""
        assert isinstance(prev_model_inputs, UnifiedDflashKimiK25Inputs)
        no_images: dict[str, Any] = dict.fromkeys(IMAGE_FIELDS)
        text = attrs.evolve(prev_model_inputs, **no_images)
        return super().prepare_next_token_inputs(next_tokens, text, kv_cache_inputs, draft_tokens)

    def target_inputs(
        self,
        contexts: Sequence[RequestContext],
        kv_cache_inputs: KVCacheInputs,
        return_n_logits: Sequence[int],
        model_inputs: UnifiedInputs,
    ) -> ModelInputs:
        """As the base, with the images in their rows of the verify pass."""
        made = super().target_inputs(contexts, kv_cache_inputs, return_n_logits, model_inputs)
        assert isinstance(made, ImageInputs)
        assert isinstance(model_inputs, UnifiedDflashKimiK25Inputs)
        rows = model_inputs.image_token_indices
        if rows is None:
            return made
        fields = {name: getattr(model_inputs, name) for name in IMAGE_FIELDS}
        return attrs.evolve(made, **{**fields, "image_token_indices": _shifted(rows, model_inputs)})


def _shifted(rows: torch.Tensor, inputs: UnifiedInputs) -> torch.Tensor:
    """Rows of `tokens` as rows of the verify pass, where each request's drafts stand between.

    rows: [I] int64 -> [I].
    """
    ends = inputs.input_row_offsets[1:-1].long()
    before = torch.searchsorted(ends, rows, right=True)
    return rows + before * inputs.num_drafted
