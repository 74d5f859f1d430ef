"""The promise about names: what a plugin may leave out it has not merely misspelt.

Knows: the classes of a checkpoint's plugin, and what the contracts call things. Does not know: what
any member does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pilotfish.contracts import attributes_of, methods_of
from pilotfish.layers.layer import Layer
from pilotfish.layers.model import DecoderModel
from pilotfish.protocols import ArchConfig, PipelineModel, SpeculativeTarget
from pilotfish.speculation.proposer import Proposer, SpeculatorConfig
from pilotfish.state import AttachedCache, SlotStateSpec
from pilotfish.testing.promise import want
from pilotfish.testing.subject import Subject

ALIKE = 0.85
"""How alike two names are, at least, of which one is the other misspelt."""
SHORTEST = 5
"""Letters of the shortest names that are taken to be misspelt where one letter differs."""
OF_CONFIGS = (
    *("prefix_salt", "recompute_length", "get_image_memory", "unserved_token_ids", "vocab_size"),
    *("dtype", "num_hidden_layers", "hidden_size"),
)
OF_MODELS = ("keeps_bits", "is_invariant", "why_not_invariant", "without_ignored", "staying")
OF_LAYERS = ("keeps_bits", "plan", "plan_add", "complete")
OF_DRAFTERS_CONFIGS = ("num_repeated_weights", "learns_across_requests", "get_max_seq_len")
"""What is looked for and may be missing."""


def optional_members_are_spelt_right(subject: Subject) -> None:
    """No member of a plugin's classes is an optional one of the contract with its name misspelt."""
    prepared = subject.prepared(subject.dtype)
    kinds: list[tuple[Any, Iterable[str]]] = [
        (type(prepared.model.config), (*_all_of(ArchConfig), *OF_CONFIGS)),
        (
            type(prepared.model),
            (*_all_of(PipelineModel), *_all_of(SpeculativeTarget), *vars(DecoderModel), *OF_MODELS),
        ),
    ]
    if isinstance(prepared.model, DecoderModel):
        layers = {type(layer) for layer in prepared.model.network.layers_inside()}
        kinds += ((layer, (*vars(Layer), *OF_LAYERS)) for layer in layers)
    for spec in prepared.model.state:
        if isinstance(spec, SlotStateSpec):
            cache = prepared.model.make_cache(spec, max_slots=2, num_pages=2)
            kinds.append((type(cache), _all_of(AttachedCache)))
    if subject.speculative is not None:
        drafted = subject.prepared(
            subject.dtype, draft=subject.draft, speculative=subject.speculative
        )
        assert drafted.draft is not None
        known = (*_all_of(SpeculatorConfig), *OF_DRAFTERS_CONFIGS)
        kinds += (
            (type(drafted.draft.config), known),
            (drafted.draft.model_class, _all_of(Proposer)),
        )
    for kind, members in kinds:
        for written, meant in _misspelt(kind, set(members)):
            want(
                False,
                f"{kind.__module__}.{kind.__qualname__} has `{written}`, which nobody reads",
                f"`{meant}`, or a name that is less like it",
            )


def _all_of(contract: type) -> tuple[str, ...]:
    return (*methods_of(contract), *attributes_of(contract))


def _misspelt(kind: type, known: set[str]) -> Iterator[tuple[str, str]]:
    """(what a plugin's class has, what it looks like), for public names that nobody knows."""
    own = set[str]()
    for one in kind.__mro__:
        if one is not object and not one.__module__.startswith("pilotfish."):
            own |= {*vars(one), *getattr(one, "__annotations__", {})}
            own |= {field.name for field in getattr(one, "__attrs_attrs__", ())}
    inherited = set(dir(kind)) - own
    for name in sorted(own - known - inherited):
        public = sorted(other for other in known - own if not other.startswith("_"))
        near = [] if name.startswith("_") else difflib.get_close_matches(name, public, 1, ALIKE)
        near += [other for other in public if _is_one_letter_off(name, other)]
        if near:
            yield name, near[0]


def _is_one_letter_off(name: str, other: str) -> bool:
    """Whether one letter is another, or two neighbours have changed places."""
    if len(name) != len(other) or len(name) < SHORTEST or name.startswith("_"):
        return False
    off = [place for place, (a, b) in enumerate(zip(name, other, strict=True)) if a != b]
    first, last = off[0], off[-1] + 1
    swapped = last - first == 2 and name[first:last] == other[first:last][::-1]
    return len(off) == 1 or swapped
