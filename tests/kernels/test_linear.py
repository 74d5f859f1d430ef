"""linear in its three forms: error, row invariance, the probe, and that packing frees memory."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.places import placed
from pilotfish.errors import WeightsError
from pilotfish.invariance import linear_probe as probe
from pilotfish.invariance.linear_probe import Product, mirrored, row_multiple
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import LinearWeight, eager, linear, prepare_linear, reference

linear = placed(linear)

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
FASTEST = KernelBackend("torch", invariant=False)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Every torch.empty is filled with NaN; random data are the same in every run."""
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("error")
    yield
    torch.set_deterministic_debug_mode("default")


def draw_layer(
    out: int, width: int, dtype: torch.dtype, bias: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    weight = (torch.randn(out, width) * width**-0.5).to(dtype)
    return weight, torch.randn(out).to(dtype) if bias else None


def check(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, got: torch.Tensor
) -> None:
    """Error against float64 within twice eager's, or the rounding of float32 sums."""
    wanted = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T
    if bias is not None:
        wanted, size = wanted + bias.double(), size + bias.double().abs()
    usual = torch.nn.functional.linear(x, weight, bias)
    twice = 2 * (usual.double() - wanted).abs().max().item()
    # Any order of K float32 additions errs by at most K * 2^-24 of the sum of sizes (Higham 2002,
    # eq. 4.4); the result is then rounded once.
    any_order = x.shape[1] * 2**-24 * size.max().item()
    rounding = torch.finfo(x.dtype).eps * wanted.abs().max().item()
    for result in (got, reference.linear(x, weight, bias)):
        assert result.dtype == x.dtype
        error = (result.double() - wanted).abs().max().item()
        assert error <= max(twice, any_order + rounding)


@given(
    rows=st.integers(1, 40),
    width=st.integers(1, 150),
    out=st.integers(1, 150),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    keep_plain=st.booleans(),
    strided=st.booleans(),
)
def test_error_is_no_worse_than_twice_eagers(
    *,
    rows: int,
    width: int,
    out: int,
    dtype: torch.dtype,
    bias: bool,
    keep_plain: bool,
    strided: bool,
) -> None:
    torch.manual_seed(rows * 100000 + width * 300 + out)
    plain, offset = draw_layer(out, width, dtype, bias)
    x = torch.randn(rows, 2 * width).to(dtype)[:, :width]
    x = x if strided else x.contiguous()
    weight = prepare_linear(plain, offset, backend=TORCH, keep_plain=keep_plain)
    check(x, plain, offset, linear(x, weight, backend=TORCH))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("rows", "width", "out"), [(1, 7, 5), (65, 130, 33), (3, 300, 150)])
def test_triton_error_is_no_worse_than_twice_eagers(
    dtype: torch.dtype, bias: bool, rows: int, width: int, out: int
) -> None:
    plain, offset = draw_layer(out, width, dtype, bias)
    x = torch.randn(rows, width + 3).to(dtype)[:, :width]
    for backend in (TRITON, KernelBackend("triton", invariant=False)):
        weight = prepare_linear(plain, offset, backend=backend)
        assert weight.kind == "triton"
        check(x, plain, offset, linear(x, weight, backend=backend))


def test_triton_in_bfloat16_is_within_a_truncation() -> None:
    """The interpreter truncates to bfloat16; the sum before it is float32's."""
    plain, offset = draw_layer(40, 300, torch.bfloat16, bias=True)
    assert offset is not None
    x = torch.randn(5, 300).bfloat16()
    got = linear(x, prepare_linear(plain, offset, backend=TRITON), backend=TRITON).double()
    wanted = x.double() @ plain.double().T + offset.double()
    size = x.double().abs() @ plain.double().abs().T + offset.double().abs()
    limit = 301 * 2**-24 * size + torch.finfo(torch.bfloat16).eps * wanted.abs()
    assert ((got - wanted).abs() <= limit).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_rows(dtype: torch.dtype) -> None:
    plain, _ = draw_layer(50, 170, dtype)
    weight = prepare_linear(plain, backend=TRITON)
    x = torch.randn(140, 170).to(dtype)
    wanted = linear(x, weight, backend=TRITON)
    for rows in (1, 2, 3, 7, 63, 64, 65, 128):
        for i in (0, 1, 12):
            got = linear(x[i : i + rows], weight, backend=TRITON)
            assert torch.equal(got, wanted[i : i + rows]), (rows, i)


def test_the_triton_tile_depends_on_the_weight_alone() -> None:
    """Small O: narrow tiles, so that a decode step occupies every multiprocessor."""
    from pilotfish.kernels.linear import triton

    widths = (576, 4096, 6144, 28672)
    tiles = {o: triton.invariant_tile(o, torch.bfloat16)["BLOCK_O"] for o in widths}
    assert tiles == {576: 16, 4096: 32, 6144: 32, 28672: 128}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keep_plain", [False, True])
@pytest.mark.parametrize(("width", "out"), [(576, 192), (1536, 96), (37, 65)])
def test_a_rows_bits_do_not_depend_on_its_neighbours(
    dtype: torch.dtype, keep_plain: bool, width: int, out: int
) -> None:
    """Passes of every length; cancelling sums show any change of order."""
    plain, _ = draw_layer(out, width, dtype)
    half = width // 2
    plain[:, half : 2 * half] = plain[:, :half]
    weight = prepare_linear(plain, backend=TORCH, keep_plain=keep_plain)
    assert row_multiple([Product.of(weight)], backend=TORCH) == eager.block_rows(weight)
    x = mirrored((80, weight.in_features), -1).to(dtype)
    wanted = linear(x, weight, backend=TORCH)
    for rows in (*range(1, 20), 31, 32, 33, 48, 64, 70):
        for i in (0, 1, 7):
            got = linear(x[i : i + rows], weight, backend=TORCH)
            assert torch.equal(got, wanted[i : i + rows]), (rows, i)


def test_packing_is_chosen_where_it_can_be_and_says_so() -> None:
    plain, offset = draw_layer(12, 8, torch.float32, bias=True)
    packed = prepare_linear(plain, offset, backend=TORCH)
    assert packed.kind == ("packed" if eager.can_pack(plain) else "plain")
    assert (packed.in_features, packed.out_features, packed.dtype) == (8, 12, torch.float32)
    kept = prepare_linear(plain, backend=TORCH, keep_plain=True)
    assert kept.kind == "plain"
    assert kept.weight is plain


def test_a_build_without_the_operators_stays_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nothing:
        pass

    plain, _ = draw_layer(12, 8, torch.float32)
    monkeypatch.setattr(torch.ops, "mkldnn", Nothing())
    assert prepare_linear(plain, backend=TORCH).kind == "plain"


@pytest.mark.parametrize(
    ("weight", "bias", "told"),
    [
        (torch.zeros(3), None, "[3]"),
        (torch.zeros(3, 2, dtype=torch.int8), None, "int8"),
        (torch.zeros(3, 2), torch.zeros(2), "[2]"),
        (torch.zeros(3, 2), torch.zeros(3).bfloat16(), "bfloat16"),
    ],
)
def test_what_is_no_linear_layer_is_told(
    weight: torch.Tensor, bias: torch.Tensor | None, told: str
) -> None:
    with pytest.raises(WeightsError) as caught:
        prepare_linear(weight, bias, backend=TORCH)
    assert told in str(caught.value)


def fake_linear(
    breaks: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor, LinearWeight], torch.Tensor]:
    """A linear layer that adds in another order in the rows that `breaks` names: [T] bool."""

    def in_order(x: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(x.shape[0], dense.shape[0])
        for k in range(x.shape[1]):  # one addition after another, whatever the machine
            total += x[:, k, None] * dense[None, :, k]
        return total

    def multiply(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        dense, wide = weight.weight.float(), x.float()
        turned = in_order(wide.flip(1), dense.flip(1))
        return torch.where(breaks(x)[:, None], turned, in_order(wide, dense)).to(weight.dtype)

    return multiply


def by_count(breaks: Callable[[int], bool]) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.full((x.shape[0],), breaks(x.shape[0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("breaks", "holds"),
    [
        (by_count(lambda rows: False), True),
        (by_count(lambda rows: rows == 1), True),
        (by_count(lambda rows: rows != eager.BLOCK_ROWS), True),
        (by_count(lambda rows: rows > 20), True),
        (lambda x: torch.arange(x.shape[0]) == 0, False),
        (lambda x: torch.arange(x.shape[0]) == eager.BLOCK_ROWS - 1, False),
        (lambda x: torch.arange(x.shape[0]) % 4 == 2, False),
        (lambda x: x[-1, 0].gt(0).expand(x.shape[0]), False),  # a neighbour decides
        (lambda x: (x == 0).all(1).any().expand(x.shape[0]), False),  # padding does
    ],
)
def test_the_probe_claims_what_holds_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    breaks: Callable[[torch.Tensor], torch.Tensor],
    holds: bool,
) -> None:
    monkeypatch.setattr(eager, "multiplies_bfloat16", lambda: True)
    plain, _ = draw_layer(20, 32, dtype)
    plain[:, 16:32] = plain[:, :16]  # sums that cancel show any change of order
    weight = prepare_linear(plain, backend=TORCH, keep_plain=True)
    monkeypatch.setattr(eager, "linear", fake_linear(breaks))
    found = row_multiple([Product.of(weight)], backend=TORCH)
    assert found == (eager.BLOCK_ROWS if holds else None)
    x = mirrored((40, weight.in_features), -1).to(dtype)
    wanted = linear(x, weight, backend=TORCH)
    runs = [slice(*run) for run in ((0, 1), (5, 40), (8, 16), (3, 6))]
    kept = [torch.equal(linear(x[run], weight, backend=TORCH), wanted[run]) for run in runs]
    assert all(kept) == holds


def test_every_product_has_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bits matter; without that the library gets all rows at once."""
    rows: list[int] = []
    multiply = eager.linear

    def counted(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        rows.append(x.shape[0])
        return multiply(x, weight)

    monkeypatch.setattr(eager, "linear", counted)
    weight = prepare_linear(torch.randn(5, 3), backend=TORCH)
    for count in (1, 8, 19):
        assert linear(torch.randn(count, 3), weight, backend=TORCH).shape == (count, 5)
    assert rows == [eager.BLOCK_ROWS] * (1 + 1 + 3)
    linear(torch.randn(19, 3), weight, backend=FASTEST)
    assert rows[5:] == [19]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("multiplies", [True, False])
def test_bfloat16_goes_row_by_row_where_the_processor_does_not_multiply_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, multiplies: bool
) -> None:
    monkeypatch.setattr(eager, "multiplies_bfloat16", lambda: multiplies)
    plain, _ = draw_layer(20, 32, dtype)
    plain[:, 16:] = plain[:, :16]
    weight = prepare_linear(plain, backend=TORCH, keep_plain=True)
    rows: list[int] = []
    multiply = eager.linear

    def counted(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        rows.append(x.shape[0])
        return multiply(x, weight)

    monkeypatch.setattr(eager, "linear", counted)
    x = mirrored((11, weight.in_features), -1).to(dtype)
    whole = linear(x, weight, backend=TORCH)
    by_row = dtype == torch.bfloat16 and not multiplies
    size = 1 if by_row else eager.BLOCK_ROWS
    assert set(rows) == {size}
    assert row_multiple([Product.of(weight)], backend=TORCH) == size
    for first, last in ((0, 1), (3, 7), (10, 11)):
        assert torch.equal(linear(x[first:last], weight, backend=TORCH), whole[first:last])


def test_single_rows_are_claimed_only_if_their_places_do_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eager, "multiplies_bfloat16", lambda: False)
    plain, _ = draw_layer(20, 32, torch.bfloat16)
    plain[:, 16:] = plain[:, :16]
    weight = prepare_linear(plain, backend=TORCH, keep_plain=True)
    odd_place = fake_linear(lambda x: torch.tensor([x.storage_offset() % 64 != 0]))
    monkeypatch.setattr(eager, "linear", odd_place)
    assert row_multiple([Product.of(weight)], backend=TORCH) is None


def test_the_probe_tries_each_shape_once_and_takes_the_worst(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried: list[int] = []

    def multiple_of(product: Product) -> int | None:
        tried.append(product.shape[0])
        return {4: 1, 5: 8, 6: None}[product.shape[0]]

    monkeypatch.setattr(probe, "probe", multiple_of)
    layers = [Product.of_floats((out, 3), torch.float32) for out in (4, 5, 4)]
    known = ProbeCache()
    assert row_multiple(layers, backend=TORCH, known=known) == 8
    assert tried == [4, 5]
    assert row_multiple(layers, backend=TORCH, known=known) == 8
    assert tried == [4, 5]
    layers.append(Product.of_floats((6, 3), torch.float32))
    assert row_multiple(layers, backend=TORCH, known=known) is None
    assert row_multiple(layers, backend=FASTEST) == 1
    assert row_multiple(layers, backend=TRITON) == 1


def test_the_probe_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, not timed: a 135M model's body, and a head whose rows take 28 million products."""
    products: list[int] = []
    multiply = eager.linear

    def counted(x: torch.Tensor, weight: LinearWeight) -> torch.Tensor:
        products.append(x.shape[0] * weight.in_features * weight.out_features)
        return multiply(x, weight)

    monkeypatch.setattr(eager, "linear", counted)
    shapes = ((960, 576), (576, 576), (3072, 576), (576, 1536), (49152, 576))
    layers = [Product.of_floats(shape, torch.bfloat16) for shape in shapes]
    row_multiple(layers * 30, backend=TORCH)
    assert len(products) <= 5 * 10
    assert sum(products) <= 5_000_000_000
    assert max(products) <= 500_000_000


PACK_MANY = """
import psutil, torch
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.linear import prepare_linear
plain = [torch.full((2048, 2048), 1.0) for _ in range(12)]
before = psutil.Process().memory_info().rss
packed = []
while plain:
    packed.append(prepare_linear(plain.pop(), backend=KernelBackend("torch")))
print(len(packed), psutil.Process().memory_info().rss - before)
"""


def test_packing_holds_no_second_copy() -> None:
    """Pack and drop many weights, in a process of its own: it may not grow by their size."""
    done = subprocess.run(
        [sys.executable, "-c", PACK_MANY], capture_output=True, text=True, check=True
    )
    count, grown = map(int, done.stdout.split())
    assert count == 12
    assert grown < 4 * 2048 * 2048 * 4  # a second copy would be twelve


@pytest.mark.parametrize("backend", [TORCH, TRITON], ids=("torch", "triton"))
def test_no_rows(backend: KernelBackend) -> None:
    weight = prepare_linear(torch.randn(5, 8), backend=backend)
    assert linear(torch.randn(0, 8), weight, backend=backend).shape == (0, 5)
