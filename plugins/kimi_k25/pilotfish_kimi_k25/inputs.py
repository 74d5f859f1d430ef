"""KimiK25Inputs: what one pass needs: text, and images where a prompt has them."""

from __future__ import annotations

import attrs

from pilotfish.multimodal.model import ImageInputs


@attrs.frozen(kw_only=True)
class KimiK25Inputs(ImageInputs):
    """tokens, input_row_offsets, return_n_logits, kv_cache_inputs, rope_lengths; of images:
    image_token_indices, and precomputed_image_embeddings or pixel_values with grid_thws.
    """
