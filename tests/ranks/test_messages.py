"""Messages: what is sent comes out as it went in, and nothing else can be sent."""

from __future__ import annotations

import math
from enum import Enum, StrEnum
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.protocols import ReturnLogits
from pilotfish.ranks.messages import decode, encode

DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64),
)


class Colour(Enum):
    RED = 1


class Word(StrEnum):
    ONE = "one"


@attrs.frozen(kw_only=True)
class Inner:
    number: int = attrs.field(validator=attrs.validators.instance_of(int))
    _private: str = ""
    made: dict[str, int] = attrs.field(factory=dict, init=False)


@attrs.frozen(kw_only=True)
class Outer:
    inner: Inner | None
    rows: tuple[torch.Tensor, ...] = ()


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    size = dtype.itemsize * math.prod(shape)
    data = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))), dtype=torch.uint8)
    made = (data.clamp(max=1) if dtype is torch.bool else data).view(dtype).view(shape)
    return made.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else made


PLAIN = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(max_size=9)
)
RECORDS = st.builds(Inner, number=st.integers(), private=st.text(max_size=3))
VALUES = st.recursive(
    st.one_of(PLAIN, tensors(), RECORDS, st.sampled_from([Colour.RED, Word.ONE])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4),
        st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3),
        st.builds(
            Outer, inner=st.none() | RECORDS, rows=st.lists(tensors(), max_size=3).map(tuple)
        ),
    ),
    max_leaves=8,
)


def nothing(key: Any) -> Any:
    raise AssertionError(key)


def received(message: bytes, known: Any = nothing) -> list[tuple[str, tuple[Any, ...]]]:
    return [(name, arguments()) for name, arguments in decode(bytearray(message), known)]


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        flat = [x.reshape(-1).view(torch.uint8) if x.numel() else x for x in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*flat)
    if isinstance(a, dict):
        a, b = [*a.items()], [*b.items()]
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if attrs.has(type(a)):
        names = [field.name for field in attrs.fields(type(a))]
        return all(same(getattr(a, name), getattr(b, name)) for name in names)
    if isinstance(a, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


@given(st.lists(st.tuples(st.text(), st.lists(VALUES, max_size=3).map(tuple)), max_size=3))
def test_calls_come_out_as_they_went_in(calls: list[tuple[str, tuple[Any, ...]]]) -> None:
    found = received(encode(calls))
    assert [name for name, _ in found] == [name for name, _ in calls]
    for (_, got), (_, wanted) in zip(found, calls, strict=True):
        assert same(got, wanted)


@given(st.lists(tensors(), min_size=1, max_size=5))
def test_tensors_lie_at_multiples_of_8_and_can_be_written(rows: list[torch.Tensor]) -> None:
    [(_, got)] = received(encode([("f", tuple(rows))]))
    for row in got:
        assert row.data_ptr() % 8 == 0
        row.zero_()


def test_an_enum_that_is_a_text_stays_an_enum() -> None:
    [(_, (got,))] = received(encode([("f", (ReturnLogits.VARIABLE,))]))
    assert type(got) is ReturnLogits


def test_what_both_ends_know_is_not_sent_and_later_calls_see_what_earlier_ones_made() -> None:
    mine, theirs = (torch.zeros(1000),), (torch.ones(2),)
    message = encode([("make", ()), ("use", (Outer(inner=None, rows=mine),))], {id(mine): "kv"})
    assert len(message) < 500
    known: dict[Any, Any] = {}
    (_, first), (_, second) = decode(bytearray(message), known.__getitem__)
    assert first() == ()
    known["kv"] = theirs
    assert second()[0].rows is theirs


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (object(), "object"),
        ([{1}], "set"),
        ({"a": {1}}, "set"),
        (Colour, "EnumType"),
        (1j, "complex"),
    ],
)
def test_what_cannot_be_sent_is_named(value: object, kind: str) -> None:
    with pytest.raises(TypeError, match=f"{kind}; wanted what can be sent"):
        encode([("f", ((1, value),))])


def test_a_class_that_other_ranks_cannot_find_is_named() -> None:
    @attrs.frozen
    class Local:
        pass

    with pytest.raises(TypeError, match=r"Local.*wanted a class at the top of a module"):
        encode([("f", (Local(),))])
