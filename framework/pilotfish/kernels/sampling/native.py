"""Sampling on a CPU, by the native library. Knows: the records in native.h, and their addresses.

Does not know: requests; `sampling/native.py` turns those into records.
"""

from __future__ import annotations

from ctypes import Array, Structure, addressof, c_uint64

import torch
from torch import Tensor

from pilotfish.kernels.native import library, run
from pilotfish.kernels.native.numbers import address_of, in_rows, record_fields, want_indices

ONE_LOOK, SHORT_LIST, WHOLE_ROW, LOGPROBS = 1, 2, 8, 6
"""What a row costs, in looks at all its logits: greedy; with top_k; without; log probabilities."""

_LOOKS = 16
"""So many looks take about as long as other functions need for the elements of a row."""

BAD_LOGITS, BAD_EDITED, BAD_ID = 1, 2, 3
"""What `Row.status` says of a row that failed: a `pf_sampling_status`."""


class Row(Structure):
    """A `pf_sampling_row`."""

    _fields_ = (
        *record_fields(pointers="bias_ids bias", ints="num_bias"),
        *record_fields(pointers="seen_ids seen_counts", ints="num_seen"),
        *record_fields(pointers="banned_ids", ints="num_banned"),
        *record_fields(floats="repetition_penalty frequency_penalty presence_penalty temperature"),
        *record_fields(ints="top_k", doubles="top_p min_p"),
        ("seed", c_uint64),
        ("position", c_uint64),
        *record_fields(ints="wants_logprobs num_top"),
        *record_fields(pointers="top_ids top_logprobs", ints="status num_kept rank"),
        *record_fields(doubles="logprob"),
        *record_fields(floats="last_value largest"),
    )


class SampleRows(Structure):
    """A `pf_sample_rows`."""

    _fields_ = record_fields(
        pointers="rows logits processed tokens", ints="num_rows vocab_size row_stride draws failed"
    )


class GumbelNoise(Structure):
    """A `pf_gumbel_noise`."""

    _fields_ = record_fields(pointers="seeds positions out", ints="num_rows vocab_size")


class GumbelOfCounters(Structure):
    """A `pf_gumbel_of_counters`."""

    _fields_ = record_fields(pointers="counters out", ints="count")


class ApplyBitmask(Structure):
    """A `pf_apply_bitmask`."""

    _fields_ = record_fields(pointers="logits masks out", ints="num_rows vocab_size row_stride")


def serves(device: torch.device) -> bool:
    """Whether sampling on this device is done here: the one place where that is decided.

    It is one answer for a whole run, since noise has other bits here than elsewhere.
    """
    return device.type == "cpu" and library() is not None


def serves_logits(logits: Tensor) -> bool:
    """Whether these logits are sampled here; of another shape or dtype no one samples them."""
    is_usual = logits.ndim == 2 and logits.dtype == torch.float32 and logits.shape[1] > 0
    return is_usual and serves(logits.device)


def new_rows(count: int) -> Array[Row]:
    """Records for some rows: the likeliest token of each, until more is written into them."""
    return (Row * count)()


def sample_rows(
    logits: Tensor,
    rows: Array[Row],
    *,
    tokens: Tensor | None = None,
    draws: bool = False,
    processed: Tensor | None = None,
    looks: int = 0,
) -> bool:
    """Does what the records ask of each row; whether it could be done for all.

    logits: [R, V] float32, V above 0; not changed, unless it is `processed` too.
    tokens: [R] int64, written if `draws`, else read; None where neither is asked for.
    processed: [R, V] float32, contiguous; written. It may be `logits`, but only where neither
    tokens nor log probabilities are asked. looks: at a whole row, which this takes
    about; the threads are chosen by it.
    """
    num_rows, vocab = logits.shape
    logits = in_rows(logits)
    args = SampleRows(
        addressof(rows),
        address_of("logits", logits, torch.float32, len(rows), vocab, exact=True, apart=True),
    )
    if processed is not None:
        args.processed = address_of("processed", processed, torch.float32, num_rows, vocab)
        if tokens is not None and processed.data_ptr() == logits.data_ptr():
            raise ValueError("processed is logits; wanted memory of its own where tokens are asked")
    if tokens is not None:
        args.tokens = address_of("tokens", tokens, torch.int64, num_rows)
        if not draws:
            want_indices("tokens", tokens, vocab)
    args.num_rows, args.vocab_size, args.row_stride = num_rows, vocab, logits.stride(0)
    args.draws = draws
    run("sample_rows", args, looks * vocab // _LOOKS if num_rows > 1 else 0)
    return not args.failed


def gumbel(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """seeds, positions: [R] int64 on the CPU. Returns [R, V] float32."""
    seeds, positions = seeds.contiguous(), positions.contiguous()
    count = seeds.numel()
    out = torch.empty(count, vocab_size, dtype=torch.float32)
    args = GumbelNoise(
        address_of("seeds", seeds, torch.int64, count),
        address_of("positions", positions, torch.int64, count),
        out.data_ptr(),
        count,
        vocab_size,
    )
    run("gumbel_noise", args, out.numel())
    return out


def gumbel_of_counters(counters: Tensor, out: Tensor) -> None:
    """counters: int64. out: float32 of its shape, contiguous; written."""
    counters = counters.contiguous()
    args = GumbelOfCounters(
        address_of("counters", counters, torch.int64, *counters.shape),
        address_of("out", out, torch.float32, *counters.shape),
        counters.numel(),
    )
    run("gumbel_of_counters", args, counters.numel())


def apply_bitmask(logits: Tensor, masks: Tensor) -> Tensor:
    """logits: [R, V] float32. masks: [R, ceil(V / 32)] int32. Returns [R, V], a new tensor."""
    logits, masks = in_rows(logits), masks.contiguous()
    num_rows, vocab = logits.shape
    out = torch.empty(logits.shape, dtype=torch.float32)
    args = ApplyBitmask(
        address_of("logits", logits, torch.float32, num_rows, vocab, apart=True),
        address_of("masks", masks, torch.int32, num_rows, -(-vocab // 32)),
        out.data_ptr(),
        num_rows,
        vocab,
        logits.stride(0),
    )
    run("apply_bitmask", args, logits.numel())
    return out
