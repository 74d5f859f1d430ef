"""Whether batch-invariant arithmetic holds on this machine, found before weights are read.

Knows: how to probe a model's shapes with stand-in weights, where kernels are not invariant by
construction. Does not know: the probes' insides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pilotfish.weights.int4 import COLUMNS_PER_WORD, GROUP_SIZE

if TYPE_CHECKING:
    import torch

    from pilotfish.engine.loading import Prepared
    from pilotfish.kernels import KernelBackend
    from pilotfish.kernels.linear import LinearWeight


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
    backend, model = prepared.backend, prepared.model
    multiples: list[int | None]
    if backend.name == "native":
        by_model = prepared.memory_plan.weight_kinds.values()
        multiples, kinds = [1], {kind for of_model in by_model for kind in of_model}
    else:
        multiples, kinds = _probe_products(prepared)
        probe_attention = getattr(model, "probe_attention", None)
        if backend.name == "torch" and probe_attention and probe_attention({}) is None:
            multiples.append(None)
    probe_own = getattr(model, "probe_own_rows", None)
    if probe_own is not None:
        multiples.append(probe_own({}))
    held = [multiple for multiple in multiples if multiple is not None]
    found = max(held, default=1) if len(held) == len(multiples) else None
    return ArithmeticFacts(
        row_multiple=found, linear_kinds=sorted(kinds), described=_described(backend, found)
    )


def _described(backend: KernelBackend, row_multiple: int | None) -> str:
    if not backend.invariant:
        return "fastest: a row's bits may depend on what is computed beside it"
    if row_multiple is None:
        return "NOT invariant: this machine's kernels do not keep a row's bits"
    if backend.portable and row_multiple == 1:  # else torch computes some products
        return "portable: a row's bits are its own, and the same on every processor"
    return "invariant: a row's bits are its own"


def _probe_products(prepared: Prepared) -> tuple[list[int | None], set[str]]:
    """Row multiple and form of one stand-in weight for every distinct shape of the model."""
    import torch

    from pilotfish.kernels.linear import prepare_linear, row_multiple

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
        multiples.append(row_multiple([weight], backend=prepared.backend))
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
