"""One call of every kernel's public function, at shapes of real models, for `hopper.py`.

Knows: shapes and arguments. Does not know: how they are compiled.
A new kernel is compiled once it has a case here; a test says when one is missing.
Letters: as in each kernel's package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.combine_rows import combine_rows
from pilotfish.kernels.context_kv_write import write_context_kv
from pilotfish.kernels.count_accepted import count_accepted
from pilotfish.kernels.grouped_linear import GroupedWeight, RowGroups, grouped_linear
from pilotfish.kernels.kv_write import write_kv
from pilotfish.kernels.linear import linear, prepare_linear
from pilotfish.kernels.paged_attention import Mode, paged_attention, plan_attention
from pilotfish.kernels.rms_norm import add_rms_norm, rms_norm
from pilotfish.kernels.rope import apply_rope
from pilotfish.kernels.short_conv import ColumnRun, ConvColumns, short_conv
from pilotfish.kernels.swiglu import swiglu
from pilotfish.state import KVCacheInputs
from pilotfish_kimi_k25.kernels.head_linear import head_linear
from pilotfish_kimi_k25.kernels.mla_attention import attend_absorbed

BACKEND = KernelBackend("triton")
FASTEST = KernelBackend("triton", invariant=False)
BF16, FP32 = torch.bfloat16, torch.float32


def product(
    dtype: torch.dtype, width_o: int, num_rows: int = 4, backend: KernelBackend = BACKEND
) -> None:
    weight = prepare_linear(torch.empty(width_o, 4096, dtype=dtype), backend=backend)
    linear(torch.empty(num_rows, 4096, dtype=dtype), weight, backend=backend)


def product_with_bias() -> None:
    weight, bias = torch.empty(6144, 4096, dtype=BF16), torch.empty(6144, dtype=BF16)
    linear(
        torch.empty(4, 4096, dtype=BF16),
        prepare_linear(weight, bias, backend=BACKEND),
        backend=BACKEND,
    )


def attention(
    dtype: torch.dtype,
    heads: tuple[int, int, int],
    *,
    window: int | None = None,
    mode: Mode = "causal",
) -> None:
    """heads: query heads, kv heads, width."""
    num_heads, num_kv_heads, width = heads
    cache = torch.empty(8, 16, 2, num_kv_heads, width, dtype=dtype)
    kv = KVCacheInputs(
        blocks=(cache,),
        lookup_table=torch.zeros(2, 4, dtype=torch.int32),
        cache_lengths=torch.zeros(2, dtype=torch.int32),
        write_slots=torch.arange(3),
        page_size_tokens=16,
        lengths=(0, 40),
        row_counts=(2, 1),
    )
    plan = plan_attention(kv, torch.tensor([0, 2, 3], dtype=torch.int32), backend=BACKEND)
    q = torch.empty(4, num_heads, width, dtype=dtype)
    paged_attention(q, cache, plan, scale=0.1, window=window, mode=mode, backend=BACKEND)


def norm(dtype: torch.dtype, *shape: int) -> None:
    rms_norm(
        torch.empty(shape, dtype=dtype),
        torch.empty(shape[-1], dtype=dtype),
        1e-5,
        cast="before_weight",
        backend=BACKEND,
    )


def norm_with_add(dtype: torch.dtype) -> None:
    x = torch.empty(3, 4096, dtype=dtype)
    add_rms_norm(x, x.clone(), None, 1e-5, multiplier=0.5, cast="after_weight", backend=BACKEND)


def rotation(dtype: torch.dtype, interleaved: bool) -> None:
    x, angles = torch.empty(3, 40, 128, dtype=dtype), torch.empty(3, 128)
    apply_rope(x, angles, angles, interleaved=interleaved, backend=BACKEND)


def gate(dtype: torch.dtype) -> None:
    swiglu(torch.empty(3, 28672, dtype=dtype), backend=BACKEND)


def write(dtype: torch.dtype) -> None:
    write_kv(
        torch.empty(3, 2, 8, 128, dtype=dtype),
        torch.empty(4, 16, 2, 8, 128, dtype=dtype),
        torch.arange(3),
        backend=BACKEND,
    )


def write_of_all_layers(dtype: torch.dtype) -> None:
    angles = torch.empty(3, 128)
    write_context_kv(
        torch.empty(3, 2, 2, 8, 128, dtype=dtype),
        torch.empty(2, 128, dtype=dtype),
        (angles, angles),
        [torch.empty(4, 16, 2, 8, 128, dtype=dtype) for _ in range(2)],
        torch.arange(3),
        eps=1e-5,
        backend=BACKEND,
    )


def count() -> None:
    ids = torch.arange(6)
    count_accepted(ids, ids, torch.tensor([0, 5, 6], dtype=torch.int32), backend=BACKEND)


def convolution(dtype: torch.dtype, width: int, *, bias: bool, run: bool) -> None:
    size = 2048
    memory = torch.empty(64, size, dtype=dtype)
    places = torch.arange(1)
    strip = ColumnRun(memory=(memory,), first_row=1, num_rows=4, start=0)
    columns = ConvColumns(
        memory=(memory,),
        columns=torch.arange(width)[None],
        own=places + width - 1,
        rows=places if run else None,
        places=places,
        runs=(strip,) if run else (),
        row_counts=(1, 4) if run else (1,),
        ring=8,
    )
    short_conv(
        torch.empty(5 if run else 1, 3 * size, dtype=dtype),
        torch.empty(width, size),
        torch.empty(size) if bias else None,
        columns,
        0,
        backend=BACKEND,
    )


def grouped(dtype: torch.dtype, *, is_int4: bool) -> None:
    """384 experts of real widths would take gigabytes; the number of groups is not compiled."""
    num_groups, width_o, width_k = 2, 512, 7168
    packed = torch.empty(num_groups, width_o, width_k // 8, dtype=torch.int32)
    weight = GroupedWeight(
        kind="triton_int4" if is_int4 else "triton",
        num_groups=num_groups,
        in_features=width_k,
        out_features=width_o,
        dtype=dtype,
        stacked=packed if is_int4 else torch.empty(num_groups, width_o, width_k, dtype=dtype),
        scale=torch.empty(num_groups, width_o, width_k // 32, dtype=BF16) if is_int4 else None,
    )
    groups = RowGroups(
        rows=torch.arange(4),
        places=torch.arange(4)[:, None],
        blocks=torch.tensor([[0, 0, 4]], dtype=torch.int32),
    )
    grouped_linear(torch.empty(4, width_k, dtype=dtype), weight, groups, backend=BACKEND)


def combine(dtype: torch.dtype, *, has_last: bool) -> None:
    x = torch.empty(8, 7168, dtype=dtype)
    combine_rows(
        x,
        torch.zeros(2, 4, dtype=torch.int64),
        torch.empty(2, 4),
        x[:2] if has_last else None,
        backend=BACKEND,
    )


def heads_product(dtype: torch.dtype) -> None:
    head_linear(
        torch.empty(4, 64, 128, dtype=dtype),
        torch.empty(64, 512, 128, dtype=dtype),
        backend=BACKEND,
    )


def latent_attention(dtype: torch.dtype) -> None:
    cache = torch.empty(8, 16, 576, dtype=dtype)
    kv = KVCacheInputs(
        blocks=(cache,),
        lookup_table=torch.zeros(2, 4, dtype=torch.int32),
        cache_lengths=torch.zeros(2, dtype=torch.int32),
        write_slots=torch.arange(3),
        page_size_tokens=16,
        lengths=(0, 40),
        row_counts=(2, 1),
    )
    plan = plan_attention(kv, torch.tensor([0, 2, 3], dtype=torch.int32), backend=BACKEND)
    q = torch.empty(4, 64, 576, dtype=dtype)
    attend_absorbed(q, cache, plan, latent_width=512, scale=0.1, backend=BACKEND)


LLAMA_8B, LFM2, WIDE = (32, 8, 128), (32, 8, 64), (64, 1, 576)

CASES: dict[str, Callable[[], None]] = {
    "linear, bfloat16, O 576": partial(product, BF16, 576),
    "linear, bfloat16, O 6144 with bias": product_with_bias,
    "linear, bfloat16, O 28672": partial(product, BF16, 28672),
    "linear, bfloat16, fastest": partial(product, BF16, 4096, 256, FASTEST),
    "linear, float32, O 576": partial(product, FP32, 576),
    "linear, float32, O 28672": partial(product, FP32, 28672),
    "paged_attention, bfloat16, head 128": partial(attention, BF16, LLAMA_8B),
    "paged_attention, bfloat16, head 64, block, window": partial(
        attention, BF16, LFM2, window=512, mode="block"
    ),
    "paged_attention, bfloat16, head 576": partial(attention, BF16, WIDE),
    "paged_attention, bfloat16, head 256": partial(attention, BF16, (8, 4, 256)),
    "paged_attention, float32, head 64": partial(attention, FP32, LFM2),
    "paged_attention, float32, head 128": partial(attention, FP32, LLAMA_8B),
    "paged_attention, float32, head 256": partial(attention, FP32, (8, 4, 256)),
    "paged_attention, float32, head 576": partial(attention, FP32, WIDE),
    "rms_norm, bfloat16": partial(norm, BF16, 3, 4096),
    "rms_norm, float32, heads": partial(norm, FP32, 3, 8, 128),
    "add_rms_norm, bfloat16": partial(norm_with_add, BF16),
    "add_rms_norm, float32": partial(norm_with_add, FP32),
    "rope, bfloat16": partial(rotation, BF16, False),
    "rope, float32, interleaved": partial(rotation, FP32, True),
    "swiglu, bfloat16": partial(gate, BF16),
    "swiglu, float32": partial(gate, FP32),
    "kv_write, bfloat16": partial(write, BF16),
    "context_kv_write, bfloat16": partial(write_of_all_layers, BF16),
    "context_kv_write, float32": partial(write_of_all_layers, FP32),
    "count_accepted": count,
    "short_conv, bfloat16": partial(convolution, BF16, 3, bias=False, run=False),
    "short_conv, bfloat16, run and bias": partial(convolution, BF16, 3, bias=True, run=True),
    "short_conv, float32, one column": partial(convolution, FP32, 1, bias=True, run=False),
    "short_conv, float32, run": partial(convolution, FP32, 3, bias=False, run=True),
    "grouped_linear, bfloat16": partial(grouped, BF16, is_int4=False),
    "grouped_linear, bfloat16, int4": partial(grouped, BF16, is_int4=True),
    "grouped_linear, float32": partial(grouped, FP32, is_int4=False),
    "combine_rows, bfloat16": partial(combine, BF16, has_last=True),
    "combine_rows, float32": partial(combine, FP32, has_last=False),
    "head_linear, bfloat16": partial(heads_product, BF16),
    "head_linear, float32": partial(heads_product, FP32),
    "mla_attention, bfloat16": partial(latent_attention, BF16),
    "mla_attention, float32": partial(latent_attention, FP32),
}
