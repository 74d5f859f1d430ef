"""Llama3Inputs: what one pass of the Llama family needs; nothing beyond any decoder's inputs."""

from __future__ import annotations

import attrs

from pilotfish.models.inputs import DecoderInputs


@attrs.frozen(kw_only=True)
class Llama3Inputs(DecoderInputs):
    """tokens, input_row_offsets, return_n_logits, kv_cache_inputs, rope_lengths."""
