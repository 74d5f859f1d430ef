"""RowMultiples: how many rows pad a draft's passes, so that each row's bits are its own.

Knows: which weights are probed together. Does not know: passes, requests or files.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import attrs

from pilotfish.invariance.attention_probe import attention_row_multiple
from pilotfish.invariance.linear_probe import row_multiple
from pilotfish.kernels import KernelBackend
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear


@attrs.frozen(kw_only=True)
class RowMultiples:
    """1 where none holds: a draft's rows are then not padded, which no text depends on.

    body: of the rows of a pass. head: of rows of logits, of a head of its own. attention: of a
    request's rows; None where the kernel needs none, or none holds.
    """

    body: int = 1
    head: int = 1
    attention: int | None = None

    @classmethod
    def probe(
        cls,
        network: Layer,
        head: Linear | None,
        attention: tuple[int, int, int],
        *,
        backend: KernelBackend,
        known: MutableMapping[Any, int | None],
    ) -> RowMultiples:
        """Finds them on this machine; the weights are there.

        network: whose Linear layers run in a pass, all but `head`. attention: query heads, kv
        heads, head width. known: results by shape, read and filled.
        """
        logits = None if head is None else head.packed
        linears = [layer.packed for layer in network.layers_inside() if isinstance(layer, Linear)]
        body = [weight for weight in linears if weight is not logits]
        is_eager = backend.name == "torch" and backend.invariant
        if is_eager and attention not in known:
            known[attention] = attention_row_multiple(*attention)
        return cls(
            body=row_multiple(body, backend=backend, known=known) or 1,
            head=1 if logits is None else row_multiple([logits], backend=backend, known=known) or 1,
            attention=known[attention] if is_eager else None,
        )
