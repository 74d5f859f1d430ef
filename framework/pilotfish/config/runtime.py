"""RuntimeConfig: where and how the arithmetic runs, and how large a pass may be."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from pilotfish.config.checks import int_at_least, one_of

Arithmetic = Literal["invariant", "portable", "fastest"]
BackendName = Literal["auto", "torch", "triton", "native"]
ARITHMETICS = ("invariant", "portable", "fastest")
BACKENDS = ("auto", "torch", "triton", "native")

DTYPES = ("auto", "float32", "bfloat16", "float16")
_OTHER_NAMES = {
    **dict.fromkeys(("float", "fp32", "f32"), "float32"),
    **dict.fromkeys(("half", "fp16", "f16"), "float16"),
    "bf16": "bfloat16",
}
"""What other programs call a dtype."""


def _as_dtype(value: Any) -> Any:
    """A torch.dtype by its name, and other names of a dtype by ours."""
    if not isinstance(value, str) and not str(value).startswith("torch."):
        return value
    name = str(value).removeprefix("torch.")
    return _OTHER_NAMES.get(name, name)


@attrs.frozen(kw_only=True)
class RuntimeConfig:
    """How to run.

    dtype: of weights and activations; "auto" takes the checkpoint's. "half", "bf16" and the like
        are taken too.
    device: "auto" takes a GPU where there is one; else a torch device such as "cpu" or "cuda:0".
    backend: kernels; "auto" is triton on a GPU, and on a CPU native, or torch where the native
        library is missing.
    arithmetic: "invariant" gives each row the same bits on one machine, whatever is computed
        beside it; "portable" the same bits on every CPU (native only); "fastest" promises nothing.
    max_batch_size: requests that run at once.
    max_batch_tokens: rows of one pass; longer prompts are cut into chunks.
    """

    dtype: str = attrs.field(default="auto", converter=_as_dtype, validator=one_of(DTYPES))
    device: str = attrs.field(default="auto", converter=str)
    backend: BackendName = attrs.field(default="auto", validator=one_of(BACKENDS))
    arithmetic: Arithmetic = attrs.field(default="invariant", validator=one_of(ARITHMETICS))
    max_batch_size: int = attrs.field(default=16, validator=int_at_least(1))
    max_batch_tokens: int = attrs.field(default=512, validator=int_at_least(1))
