"""Triton's interpreter with the same results for less: what it works out again and again is kept.

Knows: its private functions, by name; where one is missing, as in another release, nothing changes.
Does not know: any kernel. Looking up dtypes, converting bfloat16, looking for overflow and
replacing the language's functions before each launch are a third of an interpreted kernel's time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np

NEEDED = (
    *("_convert_float", "_get_np_dtype", "_patch_attr", "_patch_builtin"),
    *("interpreter_builder", "tl"),
)
OPTIONS = ("debug", "sanitize_overflow")
EXPONENTS = {"fp32": (np.uint32, 0x7F80_0000), "bf16": (np.uint16, 0x7F80)}


def hasten() -> None:
    """For every launch of this process from now on."""
    if find_spec("triton") is None:
        return
    from triton.runtime import interpreter

    if is_known(interpreter):
        interpreter._convert_float = shifted(interpreter._convert_float)
        interpreter._get_np_dtype = of_scalars(interpreter._get_np_dtype)
        interpreter._patch_builtin = of_names(interpreter, interpreter._patch_builtin)
        options = interpreter.interpreter_builder.options
        if not options.debug:  # it would compute whether an integer overflows, and drop the answer
            interpreter.interpreter_builder.options = replace(options, sanitize_overflow=False)


def is_known(interpreter: Any) -> bool:
    """Whether all is there that is put to use here."""
    return all(hasattr(interpreter, name) for name in NEEDED) and all(
        hasattr(place, name)
        for place, names in (
            (getattr(interpreter.interpreter_builder, "options", None), OPTIONS),
            (interpreter.tl.core, ("is_builtin", "tensor_descriptor_base")),
        )
        for name in names
    )


def shifted(convert: Callable[..., Any]) -> Callable[..., Any]:
    """`convert`, but a float32 that is cut to a bfloat16, and the way back, is a shift of its bits.

    Not where a number is subnormal, nor where it is rounded: `convert` has its own ways with them.
    """

    def converted(data: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        if rounding is None and {given.name, wanted.name} == EXPONENTS.keys():
            kind, exponent = EXPONENTS[given.name]
            bits = np.frombuffer(data.tobytes(), kind)
            if not (bits[bits & kind(exponent) == 0] << 1).any():
                wide = bits >> 16 if given.name == "fp32" else bits.astype(np.uint32) << 16
                return wide.astype(EXPONENTS[wanted.name][0]).reshape(data.shape)
        return convert(data, given, wanted, rounding)

    return converted


def of_scalars(get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """`get`, asked once for each scalar type: a block has the dtype of its elements."""
    kept: dict[tuple[type, str], Any] = {}

    def found(dtype: Any) -> Any:
        scalar = dtype.scalar
        key = type(scalar), scalar.name
        if key not in kept:
            kept[key] = get(scalar)
        return kept[key]

    return found


def of_names(interpreter: Any, patch: Callable[..., None]) -> Callable[..., None]:
    """`patch`, but it looks at what is a builtin of the language now, not at every member."""
    language = interpreter.tl
    places = (language, language.core, language.tensor, language.math)
    is_builtin = language.core.is_builtin
    kept = {
        id(place): [name for name, one in inspect.getmembers(place) if is_builtin(one)]
        for place in (*places, language.core.tensor_descriptor_base)
    }

    def patched(place: Any, *rest: Any) -> None:
        if id(place) not in kept:
            patch(place, *rest)
        for name in kept.get(id(place), ()):
            member = getattr(place, name)
            if is_builtin(member):
                interpreter._patch_attr(place, name, member, *rest)

    return patched
