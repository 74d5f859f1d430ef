"""What arguments of native functions say of tensors: addresses and dtypes."""

from __future__ import annotations

import torch

_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def dtype_code(dtype: torch.dtype) -> int:
    """The `pf_dtype` of a float dtype."""
    return _CODES[dtype]


def has_code(*dtypes: torch.dtype) -> bool:
    """Whether native functions know all these dtypes."""
    return all(dtype in _CODES for dtype in dtypes)


def address_of(what: str, tensor: torch.Tensor, dtype: torch.dtype, *shape: int) -> int:
    """Where a tensor begins, for native code that takes the rest for granted.

    shape: at least so many rows, of exactly that shape. Raises ValueError with the tensor's name
    where it has another dtype or shape, or is not contiguous.
    """
    least, *row = shape
    rows, *found = tensor.shape
    if tensor.dtype != dtype or rows < least or found != row or not tensor.is_contiguous():
        raise ValueError(
            f"{what} is {list(tensor.shape)} {tensor.dtype} with strides {list(tensor.stride())}; "
            f"wanted {dtype}, contiguous, {[least, *row]} or more rows of that shape"
        )
    return tensor.data_ptr()


def address(tensor: torch.Tensor | None) -> int | None:
    """Of a tensor's first element; None for None."""
    return None if tensor is None else tensor.data_ptr()
