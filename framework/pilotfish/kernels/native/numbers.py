"""What arguments of native functions say of tensors: addresses and dtypes.

Knows: what native code takes for granted of an operand, and says so where it is not. Does not
know: any function.
"""

from __future__ import annotations

from ctypes import c_double, c_float, c_int64, c_void_p
from typing import Any

import torch

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FEW = 64
"""Indices that Python looks at one by one in less time than a call of torch takes."""


def dtype_code(dtype: torch.dtype) -> int:
    """The `pf_dtype` of a float dtype; ValueError for another."""
    code = _CODES.get(dtype)
    if code is None:
        raise ValueError(
            f"native code was given {dtype}; wanted one of {', '.join(map(str, _CODES))}"
        )
    return code


def has_code(*dtypes: torch.dtype) -> bool:
    """Whether native functions know all these dtypes."""
    return _CODES.keys() >= {*dtypes}


def address_of(
    what: str,
    tensor: torch.Tensor,
    dtype: torch.dtype,
    *shape: int,
    exact: bool = False,
    apart: bool = False,
) -> int:
    """Where a tensor begins, for native code that takes the rest for granted.

    shape: at least so many rows, of exactly that shape; exact: just so many. apart: only the last
    axis is contiguous, the others' strides are passed on. The tensor must outlive the call: no
    temporary. Raises ValueError with its name where it is another, or not in a CPU's memory.
    """
    if tensor.dtype == dtype and tensor.shape == shape and tensor.is_contiguous() and tensor.is_cpu:
        return tensor.data_ptr()  # as usual; what follows costs a microsecond more
    found = tuple(tensor.shape)
    fits = found == shape if exact else found[:1] >= shape[:1] and found[1:] == shape[1:]
    is_dense = (
        tensor.stride()[-1:] == (1,) or found[-1:] <= (1,) if apart else tensor.is_contiguous()
    )
    if tensor.dtype != dtype or not fits or not is_dense or not tensor.is_cpu:
        how = "contiguous in its last axis" if apart else "contiguous"
        more = "" if exact else " or more rows of that shape"
        raise ValueError(
            f"{what} is {list(found)} {tensor.dtype} on {tensor.device} with strides "
            f"{list(tensor.stride())}; wanted {dtype}, {how}, {list(shape)}{more}"
        )
    return tensor.data_ptr()


def in_rows(x: torch.Tensor) -> torch.Tensor:
    """x with a contiguous last axis: a copy where it has none."""
    return x if x.stride(-1) == 1 else x.contiguous()


def want_indices(what: str, index: torch.Tensor, limit: int) -> None:
    """Raises ValueError where one of some int64 indices is not from 0 to limit - 1."""
    if index.numel() <= _FEW:
        values = index.flatten().tolist()
        least, most = min(values, default=0), max(values, default=-1)
    else:
        least, most = (int(end) for end in index.aminmax())
    if least < 0 or most >= limit:
        raise ValueError(f"{what} goes from {least} to {most}; wanted 0 to {limit - 1}")


def parameter(what: str, tensor: torch.Tensor | None, width: int) -> torch.Tensor | None:
    """A gain or a bias, contiguous; ValueError where it is no [width] float32. None for None."""
    if tensor is None:
        return None
    tensor = tensor.contiguous()
    address_of(what, tensor, torch.float32, width, exact=True)
    return tensor


def address(tensor: torch.Tensor | None) -> int | None:
    """Of a tensor's first element; None for None."""
    return None if tensor is None else tensor.data_ptr()


def record_fields(
    *, pointers: str = "", ints: str = "", floats: str = "", doubles: str = ""
) -> list[tuple[str, type[Any]]]:
    """The `_fields_` of a record: names of its pointers, then its int64s, floats and doubles."""
    kinds = ((pointers, c_void_p), (ints, c_int64), (floats, c_float), (doubles, c_double))
    return [(name, kind) for names, kind in kinds for name in names.split()]
