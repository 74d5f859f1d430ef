"""What a run may claim of its arithmetic: before weights are read, and with them.

Knows: how to probe a model's shapes with stand-in weights, where kernels are not invariant by
construction, and in which words claims are said. Does not know: the probes' insides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pilotfish.protocols.optional import of_model
from pilotfish.warn import warn_caller

if TYPE_CHECKING:
    from pilotfish.loading.prepared import Prepared
    from pilotfish.protocols import PipelineModel
_THE_MODEL_SAYS_SO = "the architecture's model says so"


@attrs.frozen(kw_only=True)
class ArithmeticFacts:
    """row_multiple: rows that passes are padded to; None when no multiple makes bits independent.

    linear_kinds: forms that weights take. described: one phrase for people.
    """

    row_multiple: int | None
    linear_kinds: list[str]
    described: str


def probe_arithmetic(prepared: Prepared) -> ArithmeticFacts:
    """What holds for the model's rows, found without its weights."""
    from pilotfish.invariance.padding import products_of
    from pilotfish.models.claims import Claims

    backend, model = prepared.backend, prepared.model
    row_multiple: int | None = model.row_multiple
    kinds: set[str] = {backend.name}
    why_not = backend.why_not_invariant
    if backend.name == "native":
        by_model = prepared.memory_plan.weight_kinds.values()
        kinds = {kind for of_model in by_model for kind in of_model}
    if isinstance(model, Claims):
        if backend.name == "torch":
            layers = model.network.layers_inside()
            kinds = {one.kind for layer in layers for one in products_of(layer, model.dtype)}
        padding = model.probe_padding()
        rows = (padding.body, padding.head, padding.attention or 1)
        row_multiple = None if padding.failed else max(rows)
        why_not = why_not or model.why_not_invariant
    elif of_model(model).is_invariant is False:
        why_not = why_not or _THE_MODEL_SAYS_SO
    return ArithmeticFacts(
        row_multiple=row_multiple,
        linear_kinds=sorted(kinds),
        described=_described(prepared, why_not),
    )


def _described(prepared: Prepared, why_not: str) -> str:
    from pilotfish.models.claims import Claims

    if prepared.pipeline_config.runtime.arithmetic == "fastest":
        return "fastest: a row's bits may depend on what is computed beside it"
    if why_not:
        return f"NOT invariant: {why_not}"
    model = prepared.model
    known = of_model(model).is_invariant
    if not isinstance(model, Claims) and known is None:
        return f"not known before weights are read: {type(model).__name__} is tried whole"
    if not prepared.backend.portable:
        return "invariant: a row's bits are its own"
    why_not = why_not_portable(prepared)
    if why_not:
        return f"NOT portable: {why_not}; a row's bits are its own on this processor"
    return "portable: a row's bits are its own, and the same on every processor"


def why_not_invariant(model: PipelineModel, vocab_size: int) -> str:
    """What gives a row of a loaded model other bits beside other rows; "" where nothing was found.

    A model that cannot say it is tried with whole passes: see `invariance.whole_pass`.
    """
    from pilotfish.invariance.whole_pass import probe_passes
    from pilotfish.models.claims import Claims

    if isinstance(model, Claims):
        return model.why_not_invariant
    more = of_model(model)
    if more.is_invariant is False:
        return _THE_MODEL_SAYS_SO
    try:
        found = probe_passes(model, vocab_size, believed=bool(more.keeps_bits))
        return found.why_not_invariant
    except Exception as error:  # a plugin's pass may raise anything; the run will, too
        return f"the passes that try it raised {type(error).__name__}: {error}"


def why_not_portable(prepared: Prepared) -> str:
    """What has other bits on another processor though its kernels are portable; "" for nothing."""
    from pilotfish.models.claims import Claims

    model = prepared.model
    if isinstance(model, Claims):
        return model.why_not_portable
    if of_model(model).keeps_bits == "portable":
        return ""
    name = type(model).__name__
    return f'{name} computes in ways of its own and does not say `keeps_bits = "portable"`'


def warn_of(prepared: Prepared) -> None:
    """Says of a model that was loaded what was asked of its arithmetic and does not hold here."""
    why_not = why_not_invariant(prepared.model, prepared.vocab_size)
    if why_not:
        warn_caller(
            f"arithmetic is not invariant here: {why_not}; with one seed a text may differ "
            "between batches; arithmetic='fastest' says so on purpose"
        )
    elif prepared.backend.portable and (why_not := why_not_portable(prepared)):
        warn_caller(
            f"arithmetic is not portable here: {why_not}; with one seed a text may differ "
            "between processors; arithmetic='invariant' promises this one alone"
        )
