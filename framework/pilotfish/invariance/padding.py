"""RowPadding: to how many rows parts of a pass are padded, so that each row's bits are its own.

Knows: what of a network is probed, by the shapes that it declares. Does not know: passes, requests
or files.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Self

import attrs
import torch

from pilotfish.invariance.attention_probe import CANDIDATES, attention_row_multiple
from pilotfish.invariance.linear_probe import Product, is_probed, largest, row_multiple
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.int4 import COLUMNS_PER_WORD
from pilotfish.layers.attention import PagedAttentionLayer
from pilotfish.layers.column_parallel import ColumnParallelLinear
from pilotfish.layers.experts import Experts
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.router import Router
from pilotfish.layers.row_parallel import RowParallelLinear


@attrs.frozen(kw_only=True)
class RowPadding:
    """body: of the rows of a pass. head: of rows of logits. attention: of a request's rows; None
    where the kernel needs none.

    failed: what keeps a row's bits in no number of rows, in words; rows of it are not padded.
    """

    body: int = 1
    head: int = 1
    attention: int | None = None
    failed: str = ""

    @classmethod
    def probe(
        cls,
        network: Layer,
        head: Layer | None,
        *,
        backend: KernelBackend,
        dtype: torch.dtype,
        known: ProbeCache,
        own: int | None = 1,
    ) -> Self:
        """Finds them on this machine, with weights of its own: those of the network may be unread.

        head: which of its layers makes logits; None for another's. dtype: of the run. own: what was
        found of products that are no `Linear`s. Native and Triton kernels keep every row's bits by
        construction, and without invariance no padding is wanted.
        """
        if not is_probed(backend):
            return cls(body=own or 1, failed="" if own else _told(known))
        layers = list(network.layers_inside())
        multiple = partial(row_multiple, backend=backend, known=known)
        in_body = (one for one in layers if one is not head)
        body = largest([own, multiple(p for one in in_body for p in products_of(one, dtype))])
        of_logits = multiple(() if head is None else products_of(head, dtype))
        heads = {one.head_shape[1:] for one in layers if isinstance(one, PagedAttentionLayer)}
        attention = largest(_attention_multiple(*shape, known) for shape in heads)
        failed = _told(known) if None in (body, of_logits, attention) else ""
        return cls(body=body or 1, head=of_logits or 1, attention=attention, failed=failed)


def products_of(layer: Layer, dtype: torch.dtype) -> Iterator[Product]:
    """What one layer multiplies with on torch, as it is packed, or will be. dtype: of the run."""
    if isinstance(layer, Experts):
        if hasattr(layer, "down"):
            yield from map(Product.of, layer.linear_weights())
        else:
            yield from _products_of_experts(layer)
    elif isinstance(layer, RowParallelLinear):
        if hasattr(layer, "partials"):
            yield from map(Product.of, layer.partials)
        else:
            yield Product.of_floats((layer.out_features, layer.slice_width), dtype)
    elif isinstance(layer, ColumnParallelLinear) and hasattr(layer, "part"):
        yield Product.of(layer.part)
    elif isinstance(layer, Linear):
        shapes = {name: layer.held_shape(name) for name in layer.parameter_shapes()}
        if "packed" in vars(layer):
            yield Product.of(layer.packed)
        elif "weight" not in shapes:  # of another form, which is seen when it is loaded
            return
        elif isinstance(layer, Router):  # in float32 always, its bias is no part of the product
            yield Product.of_floats(shapes["weight"], torch.float32)
        else:
            yield Product.of_floats(shapes["weight"], dtype, "bias" in shapes, layer.keep_plain)


def _products_of_experts(layer: Experts) -> Iterator[Product]:
    """Those of the first expert; all are alike."""
    shapes = layer.parameter_shapes()
    for name in ("0.gate_up", "0.down"):
        if name in shapes:
            yield Product.of_floats(shapes[name], layer.dtype)
        else:
            (rows, words), (_, groups) = shapes[f"{name}_packed"], shapes[f"{name}_scale"]
            columns = words * COLUMNS_PER_WORD
            yield Product.of_int4((rows, columns), layer.dtype, columns // groups)


def _attention_multiple(num_kv_heads: int, head_dim: int, known: ProbeCache) -> int | None:
    tried = f"attention of {num_kv_heads} kv heads, width {head_dim}"
    return known.find(tried, CANDIDATES, lambda: attention_row_multiple(num_kv_heads, head_dim))


def _told(known: ProbeCache) -> str:
    """What no number of rows keeps, in words."""
    failed = sorted(tried for tried, found in known.found.items() if found is None)
    failed = failed or ["products that are no Linear's"]
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    told = f"no number of rows keeps their bits in {', '.join(failed[:3])}{more}"
    hint = "; if torch multiplied before the LLM was made, set MKL_CBWR=AUTO,STRICT"
    return told + hint if "products" in told else told
