"""Passes as native calls: the bits of layers called one by one, and nothing left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library, same_bits
from kernels.planned_passes import both_ways
from kimi_k25.cases import SHAPES, subject, write_kimi, write_shape
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer, Rows
from pilotfish.kernels.native.plan import Plan
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import ReturnLogits
from pilotfish.testing import Subject
from pilotfish_kimi_k25 import mla
from pilotfish_kimi_k25.kernels.head_linear import head_linear
from pilotfish_kimi_k25.kernels.head_linear.native import plan_head_linear
from pilotfish_kimi_k25.kernels.native import LIBRARY

pytestmark = [
    needs_library,
    pytest.mark.skipif(bool(LIBRARY.why_not()), reason=f"no library: {LIBRARY.why_not()}"),
]


PASSES: tuple[tuple[dict[str, int], dict[str, int] | None], ...] = (
    ({"a": 37, "b": 5}, None),
    ({"c": 1}, None),
    ({"b": 4, "a": 3, "c": 2}, {"b": 1, "a": 3, "c": 2}),
    ({"a": 1, "b": 1, "c": 1}, None),
    ({"a": 1}, None),
)
"""Rows of each request, and how many of them are kept."""


@pytest.fixture(scope="module", params=[*SHAPES, "INT4 experts"])
def one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    folder = tmp_path_factory.mktemp("planned")
    is_int4 = request.param not in SHAPES
    path = write_kimi("published", folder) if is_int4 else write_shape(request.param, folder)
    with subject(path) as found:
        yield found


def history(one: Subject, dtype: str, model: DecoderModel) -> list[torch.Tensor]:
    """Logits of passes that mix prefills, chunks, rejected rows and single rows."""
    session = one.session(dtype, model=model, page_size=4, num_pages=128)
    for name, length in (("a", 60), ("b", 33), ("c", 9)):
        session.add(name, one.tokens(length, length))
    found: list[torch.Tensor] = []
    for rows, keep in PASSES:
        found += session.run(dict(rows), keep=keep or dict(rows)).values()
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_planned_passes_have_the_bits_of_single_calls(one: Subject, dtype: str) -> None:
    model = one.load(dtype, ReturnLogits.ALL)
    assert isinstance(model, DecoderModel)
    assert model.backend.name == "native"
    planned, single = both_ways(model, lambda: history(one, dtype, model))
    assert len(planned) == len(single) == 10
    assert all(map(torch.equal, planned, single))


def test_fastest_plans_the_passes_that_are_not_expanded(one: Subject) -> None:
    model = one.load("float32", ReturnLogits.ALL)
    assert isinstance(model, DecoderModel)
    model.backend = KernelBackend("native", invariant=False)
    expanded: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        real = mla.attend_expanded
        patch.setattr(
            mla,
            "attend_expanded",
            lambda q, *args, **options: expanded.append(len(q)) or real(q, *args, **options),
        )
        planned, single = both_ways(model, lambda: history(one, "float32", model))
    assert all(map(torch.equal, planned, single))
    assert len(expanded) < 2 * len(PASSES) * len(model.network.layers)


@pytest.mark.parametrize("widths", [(3, 20, 9, 6), (2, 17, 40, 0), (1, 5, 16, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_behind_the_product_are_copied(
    widths: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    heads, width_k, width_o, copied = widths
    weight = torch.randn(heads, width_o, width_k).to(dtype)
    rows, plan, seen = Rows("T"), Plan(), []  # type: ignore[var-annotated]
    x = Buffer(rows, heads * (width_k + copied), dtype)
    out = plan_head_linear(plan, x, weight)
    plan.torch(lambda found: seen.append(found.clone()), out)
    calls = plan.finish()
    for count in (1, 6, 5):
        values = torch.randn(count, heads, width_k + copied).to(dtype)
        calls.begin({rows: count})
        calls.tensor(x).copy_(values.flatten(1))
        calls.run({}, 2)
        found = seen.pop().view(count, heads, width_o + copied)
        wanted = head_linear(values[..., :width_k], weight, backend=NATIVE)
        assert same_bits(found[..., :width_o], wanted)
        assert same_bits(found[..., width_o:], values[..., width_k:])
