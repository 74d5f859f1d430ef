"""Whether batch-invariant arithmetic holds on this machine, found before weights are read.

Knows: how to probe a model's shapes with stand-in weights. Does not know: the probes' insides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pilotfish.weights.int4 import COLUMNS_PER_WORD, GROUP_SIZE

if TYPE_CHECKING:
    import torch

    from pilotfish.engine.loading import Prepared
    from pilotfish.kernels.linear import LinearWeight


@attrs.frozen(kw_only=True)
class ArithmeticFacts:
    """row_multiple: rows that passes are padded to; None when no multiple makes bits independent.

    linear_kinds: forms that linear weights take. described: one phrase for people.
    """

    row_multiple: int | None
    linear_kinds: list[str]
    described: str


def _stand_in(
    shape: tuple[int, ...], is_packed: bool, dtype: torch.dtype, prepared: Prepared
) -> LinearWeight:
    """A weight of zeros in the form that a loaded one would have; packed: of four bits."""
    import torch

    from pilotfish.kernels.linear import prepare_int4, prepare_linear

    if is_packed and prepared.backend.name == "torch":
        rows, words = shape
        scale = torch.ones(rows, words * COLUMNS_PER_WORD // GROUP_SIZE, dtype=torch.bfloat16)
        return prepare_int4(torch.zeros(shape, dtype=torch.int32), scale, dtype=dtype)
    zeros = torch.zeros(shape, dtype=dtype, device=prepared.device)
    return prepare_linear(zeros, None, backend=prepared.backend)


def probe_arithmetic(prepared: Prepared) -> ArithmeticFacts:
    """Probes one stand-in weight for every distinct shape of the model."""
    import torch

    from pilotfish.kernels.linear import row_multiple

    dtype = getattr(torch, prepared.dtype)
    shapes = {
        (shape, name.endswith("_packed"))
        for name, shape in prepared.model.parameter_shapes().items()
        if len(shape) == 2 and not name.endswith(("_scale", "_shape"))
    }
    weights = (_stand_in(shape, is_packed, dtype, prepared) for shape, is_packed in sorted(shapes))
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
