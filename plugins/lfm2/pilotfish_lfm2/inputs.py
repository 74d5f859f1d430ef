"""LFM2Inputs: what one pass needs; a decoder's inputs and the columns of the convolutions."""

from __future__ import annotations

import attrs

from pilotfish.kernels.short_conv import ConvColumns
from pilotfish.models.inputs import DecoderInputs


@attrs.frozen(kw_only=True)
class LFM2Inputs(DecoderInputs):
    """tokens, input_row_offsets, return_n_logits, kv_cache_inputs, rope_lengths, and:

    request_ids: [B], in the order of the batch.
    """

    request_ids: tuple[str, ...] = ()

    @property
    def conv_states(self) -> ConvColumns | None:
        """The pass's view of the convolutions' columns; None for a model without any.

        It travels in `kv_cache_inputs.slots`, and its tensors are among the `buffers`.
        """
        slots = () if self.kv_cache_inputs is None else self.kv_cache_inputs.slots
        return next((view for view in slots if isinstance(view, ConvColumns)), None)
