"""LFM2Model: LFM2's network, weight names and convolution cache on the shared decoder model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import attrs

from pilotfish.batch import RequestContext
from pilotfish.layers.layer import KeepsBits
from pilotfish.models.decoder import Decoder
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.inputs import DecoderInputs
from pilotfish.state import KVCacheInputs, SlotStateSpec
from pilotfish.weights import WeightRules
from pilotfish_lfm2.cache import ConvStateCache
from pilotfish_lfm2.config import LFM2Config
from pilotfish_lfm2.inputs import LFM2Inputs
from pilotfish_lfm2.network import build_network
from pilotfish_lfm2.weights import weight_rules


class LFM2Model(DecoderModel):
    """Text generation with LFM2; a target for any drafter."""

    keeps_bits: ClassVar[KeepsBits] = "portable"
    config_class: ClassVar[type[LFM2Config]] = LFM2Config
    inputs_class: ClassVar[type[DecoderInputs]] = LFM2Inputs
    config: LFM2Config

    def build_network(self) -> Decoder:
        """The network of `self.config`."""
        return build_network(self.config)

    def weight_rules(self) -> WeightRules:
        """Hugging Face names."""
        return weight_rules(self.config)

    def make_cache(
        self, spec: SlotStateSpec, *, max_slots: int, num_pages: int, poison: bool = False
    ) -> ConvStateCache:
        """The columns of the convolutions, which passes over the paged cache "kv" read."""
        return ConvStateCache(
            spec.num_layers,
            spec.slot_shape[-1],
            self.config.conv_L_cache,
            self.dtype,
            max_slots,
            self.device,
            cache_name=self.config.kv_params.name,
            rows_in_place=self.config.rows_in_place,
            num_pages=num_pages,
            poison=poison,
        )

    def prepare_initial_token_inputs(
        self,
        replica_batches: Sequence[Sequence[RequestContext]],
        kv_cache_inputs: KVCacheInputs | None = None,
        return_n_logits: int | Sequence[int] = 1,
    ) -> DecoderInputs:
        """As every decoder's, with the names of the requests.

        Raises ValueError when the columns of the convolutions are not in `kv_cache_inputs`.
        """
        inputs = super().prepare_initial_token_inputs(
            replica_batches, kv_cache_inputs, return_n_logits
        )
        assert isinstance(inputs, LFM2Inputs)
        if self.config.conv_layers and kv_cache_inputs is not None and inputs.conv_states is None:
            raise ValueError(
                "kv_cache_inputs has no columns of the convolutions; wanted the cache that "
                "make_cache makes given to the state: StateManager(..., slot_caches=[cache])"
            )
        ids = tuple(context.request_id for context in self.packed_batch(replica_batches).contexts)
        return attrs.evolve(inputs, request_ids=ids)
