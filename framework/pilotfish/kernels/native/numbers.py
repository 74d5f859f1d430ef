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


def address(tensor: torch.Tensor | None) -> int | None:
    """Of a tensor's first element; None for None."""
    return None if tensor is None else tensor.data_ptr()
