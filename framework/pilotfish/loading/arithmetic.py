"""What a run may claim of its arithmetic: before weights are read, and with them.

Knows: how to probe a model's shapes with stand-in weights, where kernels are not invariant by
construction, and in which words claims are said. Does not know: the probes' insides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.warn import warn_caller
from pilotfish.weights.int4 import COLUMNS_PER_WORD, GROUP_SIZE

if TYPE_CHECKING:
    import torch

    from pilotfish.kernels.linear import LinearWeight
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
    """What holds for the model's rows; native products need no probe, each row has its own."""
    from pilotfish.models.claims import Claims, told_failures

    backend, model = prepared.backend, prepared.model
    known: dict[Any, int | None] = {}
    multiples: list[int | None]
    if backend.name == "native":
        by_model = prepared.memory_plan.weight_kinds.values()
        multiples, kinds = [1], {kind for of_model in by_model for kind in of_model}
    else:
        multiples, kinds = _probe_products(prepared, known)
    why_not = backend.why_not_invariant
    if isinstance(model, Claims):
        if backend.name == "torch" and backend.invariant:
            multiples.append(model.probe_attention(known))
        multiples.append(model.probe_own_rows(known))
        why_not = why_not or model.probe_own_parts().why_not_invariant
    elif not getattr(model, "is_invariant", True):
        why_not = why_not or _THE_MODEL_SAYS_SO
    held = [multiple for multiple in multiples if multiple is not None]
    found = max(held, default=1) if len(held) == len(multiples) else None
    if found is None and not why_not:
        why_not = told_failures(known)
    return ArithmeticFacts(
        row_multiple=found, linear_kinds=sorted(kinds), described=_described(prepared, why_not)
    )


def _described(prepared: Prepared, why_not: str) -> str:
    from pilotfish.models.claims import Claims

    if prepared.pipeline_config.runtime.arithmetic == "fastest":
        return "fastest: a row's bits may depend on what is computed beside it"
    if why_not:
        return f"NOT invariant: {why_not}"
    model: Any = prepared.model
    if not isinstance(model, Claims) and not hasattr(model, "is_invariant"):
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
    if not getattr(model, "is_invariant", True):
        return _THE_MODEL_SAYS_SO
    believed = bool(getattr(model, "keeps_bits", False))
    try:
        return probe_passes(model, vocab_size, believed=believed).why_not_invariant
    except Exception as error:  # a plugin's pass may raise anything; the run will, too
        return f"the passes that try it raised {type(error).__name__}: {error}"


def why_not_portable(prepared: Prepared) -> str:
    """What has other bits on another processor though its kernels are portable; "" for nothing."""
    from pilotfish.models.claims import Claims

    model: Any = prepared.model
    if isinstance(model, Claims):
        return model.why_not_portable
    if getattr(model, "keeps_bits", False) == "portable":
        return ""
    name = type(model).__name__
    return f'{name} computes in ways of its own and does not say `keeps_bits = "portable"`'


def _probe_products(
    prepared: Prepared, known: dict[Any, int | None]
) -> tuple[list[int | None], set[str]]:
    """Row multiple and form of one stand-in weight for every distinct shape of the model."""
    import torch

    from pilotfish.invariance.linear_probe import row_multiple
    from pilotfish.kernels.linear import prepare_linear

    dtype = getattr(torch, prepared.dtype)
    shapes = prepared.model.parameter_shapes()
    rules = getattr(prepared.model, "weight_rules", None)
    tied = set(rules().ties.values()) if rules else set()
    forms = {
        (
            shape,
            name.endswith("_packed"),
            name in tied,
            f"{name.removesuffix('weight')}bias" in shapes,
        )
        for name, shape in shapes.items()
        if len(shape) == 2 and not name.endswith(("_scale", "_shape"))
    }
    kinds: set[str] = set()
    multiples: list[int | None] = []
    for shape, is_packed, is_tied, has_bias in sorted(forms):
        if is_packed and prepared.backend.name == "torch":
            weight = _packed_stand_in(shape, dtype)
        else:
            numbers = _noise(shape).to(prepared.device, dtype)
            bias = numbers.new_zeros(shape[0]) if has_bias else None
            weight = prepare_linear(numbers, bias, backend=prepared.backend, keep_plain=is_tied)
        kinds.add(weight.kind)
        multiples.append(row_multiple([weight], backend=prepared.backend, known=known))
    return multiples, kinds


def _packed_stand_in(shape: tuple[int, ...], dtype: torch.dtype) -> LinearWeight:
    """A weight of four bits in the form that a loaded one would have."""
    import torch

    from pilotfish.kernels.linear import prepare_int4

    rows, words = shape
    scale = torch.ones(rows, words * COLUMNS_PER_WORD // GROUP_SIZE, dtype=torch.bfloat16)
    numbers = (_noise(shape) * 2**29).to(torch.int32)
    return prepare_int4(numbers, scale, dtype=dtype)


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    """[O, K] float32 whose rows repeat and whose two halves of K are equal.

    Large weights are probed as they are: zeros would agree whatever the order of additions.
    """
    import torch

    rows, columns = shape
    half = torch.randn(min(rows, 64), -(-columns // 2), generator=torch.Generator().manual_seed(0))
    block = torch.cat((half, half), dim=1)[:, :columns]
    return block.repeat(-(-rows // block.shape[0]), 1)[:rows].clone()


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
