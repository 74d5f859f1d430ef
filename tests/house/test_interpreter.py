"""Triton's interpreter as tests hasten it gives what it gives without that."""

from __future__ import annotations

import sys
from importlib import util
from typing import Any

import numpy as np
import pytest

from support import interpreter as hastened

triton = pytest.importorskip("triton")


@pytest.fixture(scope="module")
def plain() -> Any:
    """Another copy of the interpreter's module, as it comes."""
    from triton.runtime import interpreter

    spec = util.spec_from_file_location("triton.runtime.plain_interpreter", interpreter.__file__)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[spec.name] = util.module_from_spec(spec)
    spec.loader.exec_module(made)
    del sys.modules[spec.name]
    if not hastened.is_known(made):
        pytest.skip("nothing is hastened in this release")
    return made


@pytest.mark.parametrize("are_subnormal", [False, True])
def test_floats_become_what_they_become(plain: Any, are_subnormal: bool) -> None:
    """All bfloat16, and float32 of any bits; zeros, infinities and what is no number too."""
    tl, convert = plain.tl, hastened.shifted(plain._convert_float)
    words = np.random.default_rng(0).integers(0, 1 << 32, (64, 1024), np.uint32)
    words[0, :4] = (0, 1 << 31, 0x7F80_0000, 0xFF80_0001)
    halves = np.arange(1 << 16, dtype=np.uint16)
    if not are_subnormal:
        words[(words & 0x7F80_0000) == 0] = 0
        halves = halves[((halves & 0x7F80) != 0) | (halves << 1 == 0)]
    floats = words.view(np.float32)
    for data, given, wanted in (
        (halves, tl.bfloat16, tl.float32),
        (floats, tl.float32, tl.bfloat16),
        (floats.T, tl.float32, tl.bfloat16),
        (floats, tl.float32, tl.float16),
    ):
        for rounding in (None, plain._ir.ROUNDING_MODE.RTNE):
            expected = plain._convert_float(data, given, wanted, rounding)
            found = convert(data, given, wanted, rounding)
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert np.array_equal(found, expected)


def test_dtypes_are_those_that_were_looked_up(plain: Any) -> None:
    tl, found = plain.tl, hastened.of_scalars(plain._get_np_dtype)
    for scalar in (tl.int1, tl.int8, tl.uint64, tl.float16, tl.bfloat16, tl.float32):
        for dtype in (scalar, tl.pointer_type(scalar)):
            for one in (dtype, tl.core.block_type(dtype, [2, 4])):
                assert found(one) == found(one) == plain._get_np_dtype(one)


def test_the_same_functions_are_replaced_and_given_back(plain: Any) -> None:
    language = plain.tl
    patch = hastened.of_names(plain, plain._patch_builtin)
    for place in (language, language.core, language.tensor, language.math, np):
        changed = []
        for way in (plain._patch_builtin, patch):
            scope = plain._LangPatchScope()
            way(place, plain.interpreter_builder, scope)
            way(place, plain.interpreter_builder, scope)  # as a kernel's function does inside
            changed.append([name for _, name, _ in scope._changes])
            scope.restore()
        assert changed[0] == changed[1]
        assert bool(changed[0]) == (place is not np)
