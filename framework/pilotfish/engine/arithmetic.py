"""Whether batch-invariant arithmetic holds on this machine, found before weights are read.

Knows: how to probe a model's shapes with stand-in weights. Does not know: the probes' insides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from pilotfish.engine.loading import Prepared


@attrs.frozen(kw_only=True)
class ArithmeticFacts:
    """row_multiple: rows that passes are padded to; None when no multiple makes bits independent.

    linear_kinds: forms that linear weights take. described: one phrase for people.
    """

    row_multiple: int | None
    linear_kinds: list[str]
    described: str


def probe_arithmetic(prepared: Prepared) -> ArithmeticFacts:
    """Probes one stand-in weight for every distinct shape of the model."""
    import torch

    from pilotfish.kernels.linear import prepare_linear, row_multiple

    dtype = getattr(torch, prepared.dtype)
    shapes = {shape for shape in prepared.model.parameter_shapes().values() if len(shape) == 2}
    weights = (
        prepare_linear(
            torch.zeros(shape, dtype=dtype, device=prepared.device), None, backend=prepared.backend
        )
        for shape in sorted(shapes)
    )
    kinds: set[str] = set()
    multiples: list[int | None] = []
    for weight in weights:
        kinds.add(weight.kind)
        multiples.append(row_multiple([weight], backend=prepared.backend))
    found = None if None in multiples else max((m for m in multiples if m), default=1)
    probe_attention = getattr(prepared.model, "probe_attention", None)
    if prepared.backend.name == "torch" and probe_attention and probe_attention({}) is None:
        found = None
    if not prepared.backend.invariant:
        described = "fastest: a row's bits may depend on what is computed beside it"
    elif found is None:
        described = "NOT invariant: no row multiple keeps a row's bits on this machine"
    else:
        described = "invariant: a row's bits are its own"
    return ArithmeticFacts(row_multiple=found, linear_kinds=sorted(kinds), described=described)
