"""No address is taken of what nothing holds: native code would read memory that is free again.

Knows: how addresses are taken, by the text of the sources. Does not know: any function.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METHODS = ("data_ptr", "buffer_info")
FUNCTIONS = {"address": 0, "address_of": 1, "addressof": 0}
"""Each with the place of the argument whose address it takes."""


def is_held(value: ast.expr) -> bool:
    """A name, or what one leads to; what a call returns is nobody's once its address is taken."""
    while isinstance(value, ast.Attribute | ast.Subscript):
        value = value.value
    if isinstance(value, ast.Call) and ast.unparse(value.func).endswith(".from_buffer"):
        return is_held(value.args[0])  # whose memory it is
    return isinstance(value, ast.Name)


def taken(node: ast.AST) -> ast.expr | None:
    """What an expression takes the address of."""
    if isinstance(node, ast.Attribute):  # an array's: x.ctypes.data
        inner = node.value
        is_array = isinstance(inner, ast.Attribute) and (inner.attr, node.attr) == (
            "ctypes",
            "data",
        )
        return inner if is_array else None
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    if isinstance(function, ast.Attribute):
        if function.attr in METHODS:
            return function.value
        is_ctypes = isinstance(function.value, ast.Name) and function.value.id == "ctypes"
        return node.args[0] if is_ctypes and function.attr == "addressof" else None
    place = FUNCTIONS.get(function.id) if isinstance(function, ast.Name) else None
    return None if place is None else node.args[place]


def of_temporaries(text: str) -> list[str]:
    """The expressions of a source that take the address of what nothing holds."""
    return [
        f"line {getattr(node, 'lineno', 0)}: {ast.unparse(node)}"
        for node in ast.walk(ast.parse(text))
        if (value := taken(node)) is not None and not is_held(value)
    ]


@pytest.mark.parametrize(
    "text",
    [
        "x.contiguous().data_ptr()",
        "x.float()[0].data_ptr()",
        "(x + 1).data_ptr()",
        "(x if y else z).data_ptr()",
        "address(x.contiguous())",
        "address_of('x', x.contiguous(), dtype, 3)",
        "addressof(Record(1))",
        "ctypes.addressof(Record(1))",
        "numpy.array(x).ctypes.data",
        "array('f', x).buffer_info()",
    ],
)
def test_the_address_of_a_temporary_is_seen(text: str) -> None:
    assert of_temporaries(f"def f(x):\n    return g({text})") == [f"line 2: {text}"]


@pytest.mark.parametrize(
    "text",
    [
        "x.data_ptr()",
        "xs[0].data_ptr()",
        "self.x[1].y.data_ptr()",
        "address(x)",
        "address_of('x', x, dtype, 3)",
        "ctypes.addressof(x)",
        "addressof(c_char.from_buffer(x))",
        "native.address('name')",
        "x.ctypes.data",
    ],
)
def test_that_of_what_is_held_is_none(text: str) -> None:
    assert of_temporaries(f"def f(x):\n    return g({text})") == []


@pytest.mark.parametrize("folder", ["framework", "plugins"])
def test_no_address_is_taken_of_a_temporary(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    found = {path: of_temporaries(path.read_text()) for path in paths}
    assert {path: lines for path, lines in found.items() if lines} == {}
