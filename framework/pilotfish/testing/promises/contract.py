"""The promise about names: what a plugin may leave out it has not merely misspelt.

Knows: the classes of a checkpoint's plugin, and what the contracts call things. Does not know: what
any member does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pilotfish.contracts import attributes_of, methods_of, misspelt
from pilotfish.layers.layer import Layer
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import ArchConfig, PipelineModel, SpeculativeTarget
from pilotfish.protocols.optional import OptionalOfConfig, OptionalOfModel
from pilotfish.speculation.proposer import Proposer, SpeculatorConfig
from pilotfish.state import SlotCache, SlotStateSpec
from pilotfish.testing.outcome import want
from pilotfish.testing.subject import Subject

OF_CONFIGS = ("vocab_size", "dtype", "num_hidden_layers", "hidden_size")
OF_LAYERS = ("keeps_bits", "plan", "plan_add", "complete")
OF_DRAFTERS_CONFIGS = ("num_repeated_weights", "learns_across_requests", "get_max_seq_len")
"""What is looked for and may be missing."""


def optional_members_are_spelt_right(subject: Subject) -> None:
    """No member of a plugin's classes is an optional one of the contract with its name misspelt."""
    prepared = subject.prepared(subject.dtype)
    of_models = _all_of(PipelineModel, SpeculativeTarget, OptionalOfModel)
    kinds: list[tuple[Any, Iterable[str]]] = [
        (type(prepared.model.config), (*_all_of(ArchConfig, OptionalOfConfig), *OF_CONFIGS)),
        (type(prepared.model), (*of_models, *vars(DecoderModel))),
    ]
    if isinstance(prepared.model, DecoderModel):
        layers = {type(layer) for layer in prepared.model.network.layers_inside()}
        kinds += ((layer, (*vars(Layer), *OF_LAYERS)) for layer in layers)
    for spec in prepared.model.state:
        if isinstance(spec, SlotStateSpec):
            cache = prepared.model.make_cache(spec, max_slots=2, num_pages=2)
            kinds.append((type(cache), _all_of(SlotCache)))
    if subject.speculative is not None:
        drafted = subject.prepared(
            subject.dtype, draft=subject.draft, speculative=subject.speculative
        )
        assert drafted.draft is not None
        of_configs = (*_all_of(SpeculatorConfig), *OF_DRAFTERS_CONFIGS)
        kinds.append((type(drafted.draft.config), of_configs))
        kinds.append((drafted.draft.model_class, _all_of(Proposer)))
    for kind, members in kinds:
        for written, meant in misspelt(kind, members):
            want(
                False,
                f"{kind.__module__}.{kind.__qualname__} has `{written}`, which nobody reads",
                f"`{meant}`, or a name that is less like it",
            )


def _all_of(*contracts: type) -> list[str]:
    return [name for one in contracts for name in (*methods_of(one), *attributes_of(one))]
