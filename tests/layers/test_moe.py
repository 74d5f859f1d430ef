"""Mixtures of experts: routing against transformers', sums against float64, rows of their own."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from typing import Any, cast

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE

from pilotfish.errors import ConfigError
from pilotfish.invariance.linear_probe import row_multiple
from pilotfish.invariance.padding import products_of
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.int4 import dequantize_int4, eager, quantize_int4
from pilotfish.kernels.router import eager as choice_by_torch
from pilotfish.layers import experts, moe, router
from pilotfish.layers.experts import ExpertFormat, Experts
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.moe import MixtureOfExperts
from pilotfish.layers.router import Routing, sigmoid_scores

TORCH = KernelBackend("torch")
TRITON = KernelBackend("triton")
BACKENDS = (TORCH, TRITON)
PLAIN, INT4 = ExpertFormat(), ExpertFormat(gate_up=32, down=32)


@attrs.frozen(kw_only=True)
class Shape:
    """Of a mixture; width and expert_width are multiples of 32 where experts are INT4."""

    width: int = 64
    expert_width: int = 32
    num_experts: int = 12
    num_chosen: int = 3
    num_groups: int = 1
    num_kept_groups: int = 1
    shared_width: int = 48
    normalize: bool = True
    scale: float = 2.5

    @property
    def routing(self) -> Routing:
        return Routing(
            num_experts=self.num_experts,
            num_chosen=self.num_chosen,
            num_groups=self.num_groups,
            num_kept_groups=self.num_kept_groups,
            normalize=self.normalize,
            scale=self.scale,
        )

    def oracle(self, seed: int = 0) -> DeepseekV3MoE:
        """transformers' block, random, its correction large enough to change the selection."""
        config = DeepseekV3Config(
            hidden_size=self.width,
            moe_intermediate_size=self.expert_width,
            n_routed_experts=self.num_experts,
            num_experts_per_tok=self.num_chosen,
            n_group=self.num_groups,
            topk_group=self.num_kept_groups,
            n_shared_experts=1,
            norm_topk_prob=self.normalize,
            routed_scaling_factor=self.scale,
        )
        config._experts_implementation = "eager"
        torch.manual_seed(seed)
        block = DeepseekV3MoE(config)
        for parameter in block.parameters():
            parameter.data.normal_(0, 0.1)
        block.gate.weight.data.normal_(0, 0.3)
        block.gate.e_score_correction_bias.normal_(0, 0.3)
        return block.requires_grad_(False)


def tensors_of(block: DeepseekV3MoE, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The block's numbers under our names, experts in `dtype`."""
    shared = block.shared_experts
    halves = (shared.gate_proj.weight, shared.up_proj.weight)
    found = {
        "router.weight": block.gate.weight.float(),
        "router.bias": block.gate.e_score_correction_bias.float(),
        "shared.gate_up.weight": torch.cat(halves).to(dtype),
        "shared.down.weight": shared.down_proj.weight.to(dtype),
    }
    for expert in range(block.experts.num_experts):
        found[f"experts.{expert}.gate_up"] = block.experts.gate_up_proj[expert].to(dtype)
        found[f"experts.{expert}.down"] = block.experts.down_proj[expert].to(dtype)
    return {name: tensor.clone() for name, tensor in found.items()}


def quantized(
    tensors: dict[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The experts in INT4: as the layer wants them, and the numbers that they stand for."""
    packed_all, plain = {}, {}
    for name, tensor in tensors.items():
        if not name.startswith("experts."):
            packed_all[name] = plain[name] = tensor
            continue
        packed, scale = quantize_int4(tensor)
        pieces = 2 if name.endswith("gate_up") else 1
        packed_all[f"{name}_packed"], packed_all[f"{name}_scale"] = packed, scale
        packed_all[f"{name}_shape"] = torch.zeros(pieces, 2, dtype=torch.int32)
        plain[name] = dequantize_int4(packed, scale, tensor.dtype)
    return packed_all, plain


def build(
    shape: Shape,
    tensors: dict[str, torch.Tensor],
    backend: KernelBackend,
    format: ExpertFormat = PLAIN,
) -> MixtureOfExperts:
    layer = MixtureOfExperts(
        shape.width,
        shape.expert_width,
        shape.routing,
        dtype=tensors["shared.down.weight"].dtype,
        shared_width=tensors["shared.down.weight"].shape[1],
        format=format,
    )
    assert layer.parameter_shapes() == {name: tuple(t.shape) for name, t in tensors.items()}
    names = list(tensors)
    for place in torch.randperm(len(names), generator=torch.Generator().manual_seed(1)).tolist():
        layer.assign(names[place], tensors[names[place]].clone(), backend)
    return layer


def multiple_of(layer: MixtureOfExperts, backend: KernelBackend) -> int:
    products = (one for part in layer.layers_inside() for one in products_of(part, torch.float32))
    found = row_multiple(products, backend=backend)
    assert found is not None
    return found


def apply(layer: MixtureOfExperts, x: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
    """x: [T, D] -> [T, D], padded as a pass is, with rows of NaN."""
    multiple = multiple_of(layer, backend)
    short = -x.shape[0] % multiple
    padded = torch.nn.functional.pad(x, (0, 0, 0, short), value=float("nan"))
    run = types.SimpleNamespace(backend=backend, row_multiple=multiple, num_rows=x.shape[0])
    out = layer(padded, cast(ForwardPass, run))
    assert out.shape == padded.shape
    return out[: x.shape[0]]


def exact(shape: Shape, tensors: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """float64, one row and one expert at a time; the selection as the definition reads."""
    t = {name: tensor.double() for name, tensor in tensors.items()}
    x = x.double()
    out = torch.empty_like(x)

    def expert(row: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        gate, up = (gate_up @ row).chunk(2)
        return down @ (gate * torch.sigmoid(gate) * up)

    for i, row in enumerate(x):
        scores = torch.sigmoid(t["router.weight"] @ row)
        biased = (scores + t["router.bias"]).tolist()
        size = shape.num_experts // shape.num_groups
        groups = [sorted(range(g * size, (g + 1) * size), key=lambda e: -biased[e])
                  for g in range(shape.num_groups)]  # fmt: skip
        if shape.num_groups > 1:
            groups.sort(key=lambda members: -sum(biased[e] for e in members[:2]))
        allowed = [e for members in groups[: shape.num_kept_groups] for e in members]
        chosen = sorted(allowed, key=lambda e: -biased[e])[: shape.num_chosen]
        total = sum(scores[e] for e in chosen) if shape.normalize else 1.0
        out[i] = expert(row, t["shared.gate_up.weight"], t["shared.down.weight"])
        for e in chosen:
            weight = scores[e] / total * shape.scale
            out[i] += weight * expert(row, t[f"experts.{e}.gate_up"], t[f"experts.{e}.down"])
    return out


GROUPS = [(1, 1), (2, 1), (2, 2), (4, 2), (4, 1), (6, 3)]


@pytest.mark.parametrize(("num_groups", "num_kept_groups"), GROUPS)
@pytest.mark.parametrize("normalize", [True, False])
def test_routing_is_transformers(num_groups: int, num_kept_groups: int, normalize: bool) -> None:
    """The same experts, and weights to the last bits, of 500 rows."""
    num_chosen = 2 if num_groups in (4, 6) else 3
    shape = Shape(
        num_groups=num_groups,
        num_kept_groups=num_kept_groups,
        num_chosen=num_chosen,
        normalize=normalize,
    )
    block = shape.oracle()
    x = torch.randn(500, shape.width)
    logits, wanted_weights, wanted = block.gate(x)
    choice, weights = shape.routing(logits, block.gate.e_score_correction_bias)
    order = wanted.argsort(dim=1)
    assert torch.equal(choice, wanted.gather(1, order))
    # Two sigmoids, at most S sums of S scores and two products: each within one unit.
    limit = (shape.num_chosen + 4) * 2**-23
    torch.testing.assert_close(weights, wanted_weights.gather(1, order), rtol=limit, atol=0)
    if normalize:
        torch.testing.assert_close(weights.sum(1), torch.full((500,), 2.5), rtol=1e-6, atol=0)
    assert (choice.diff(dim=1) > 0).all()
    assert len(choice.unique()) > shape.num_experts // 2


@pytest.mark.parametrize(("num_groups", "num_kept_groups"), GROUPS)
def test_ties_are_broken_as_by_the_oracle(num_groups: int, num_kept_groups: int) -> None:
    """Equal scores everywhere, in groups too: torch.topk decides, row by row."""
    shape = Shape(num_groups=num_groups, num_kept_groups=num_kept_groups, num_chosen=2)
    block = shape.oracle()
    block.gate.e_score_correction_bias.zero_()
    block.gate.weight.data = block.gate.weight.data[:3].repeat(4, 1)
    x = torch.randn(50, shape.width)
    x[::5] = 0.0
    logits, _, wanted = block.gate(x)
    # On scores alike to the bit: the oracle's own sigmoid.
    routing = attrs.evolve(shape.routing, scoring=torch.sigmoid)
    choice, _ = routing(logits, block.gate.e_score_correction_bias)
    assert torch.equal(choice, wanted.sort(dim=1).values)
    for i in range(50):
        one, _ = routing(logits[i : i + 1], block.gate.e_score_correction_bias)
        assert torch.equal(one[0], choice[i])


def test_a_rows_scores_and_weights_are_its_own() -> None:
    """Elementwise code with a vector body and another tail would show at some number of rows."""
    logits = torch.randn(37, 12)
    routing, bias = Shape(num_groups=2).routing, torch.randn(12)
    choice, weights = routing(logits, bias)
    for start in range(37):
        for end in (start + 1, start + 2, start + 3, 37):
            part = slice(start, min(end, 37))
            assert torch.equal(sigmoid_scores(logits[part]), sigmoid_scores(logits)[part])
            found = routing(logits[part], bias)
            assert torch.equal(found[0], choice[part])
            assert torch.equal(found[1], weights[part])


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_experts": 10, "num_groups": 4}, "10 experts stand in 4 groups"),
        ({"num_experts": 4, "num_groups": 4}, "at least 2 experts a group"),
        ({"num_experts": 8, "num_groups": 4, "num_kept_groups": 5}, "5 groups of 4"),
        ({"num_experts": 8, "num_groups": 4, "num_kept_groups": 0}, "0 groups of 4"),
        ({"num_experts": 8, "num_groups": 4, "num_chosen": 3}, "chosen among 2"),
        ({"num_experts": 8, "num_chosen": 9}, "chosen among 8"),
        ({"num_experts": 8, "num_chosen": 0}, "0 experts"),
    ],
)
def test_numbers_that_do_not_fit_are_told(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Routing(**{"num_chosen": 1, **fields})
    assert told in str(caught.value)


def error_of(got: torch.Tensor, wanted: torch.Tensor) -> float:
    assert got.isfinite().all()
    return (got.double() - wanted).abs().max().item()


def check_error(
    shape: Shape,
    backend: KernelBackend,
    dtype: torch.dtype,
    *,
    num_rows: int = 20,
    is_int4: bool = False,
) -> None:
    """Error against float64 within twice that of transformers' block on the same numbers."""
    block = shape.oracle(seed=num_rows)
    given = tensors_of(block, dtype)
    plain = given
    if is_int4:
        given, plain = quantized(given)
    layer = build(shape, given, backend, INT4 if is_int4 else PLAIN)
    x = torch.randn(num_rows, shape.width).to(dtype)
    for expert in range(shape.num_experts):
        block.experts.gate_up_proj[expert] = plain[f"experts.{expert}.gate_up"]
        block.experts.down_proj[expert] = plain[f"experts.{expert}.down"]
    bias = block.gate.e_score_correction_bias.clone()
    block.to(dtype)
    block.gate.weight.data = plain["router.weight"]
    block.gate.e_score_correction_bias = bias
    wanted = exact(shape, plain, x)
    usual = error_of(block(x.unsqueeze(0)).squeeze(0), wanted)
    assert error_of(apply(layer, x, backend), wanted) <= 2 * usual


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize(("num_groups", "num_kept_groups"), [(1, 1), (2, 1), (4, 2)])
def test_error_is_no_worse_than_twice_transformers(
    backend: KernelBackend, is_int4: bool, num_groups: int, num_kept_groups: int
) -> None:
    shape = Shape(num_groups=num_groups, num_kept_groups=num_kept_groups)
    check_error(shape, backend, torch.float32, is_int4=is_int4)


@pytest.mark.parametrize("is_int4", [False, True])
@pytest.mark.parametrize("num_rows", [1, 20])
def test_error_in_bfloat16(is_int4: bool, num_rows: int) -> None:
    check_error(Shape(), TORCH, torch.bfloat16, is_int4=is_int4, num_rows=num_rows)


@given(
    width=st.integers(1, 40),
    expert_width=st.integers(1, 40),
    num_experts=st.integers(2, 9),
    num_chosen=st.integers(1, 2),
    num_rows=st.sampled_from((1, 2, 5, 33)),
    scale=st.sampled_from((1.0, 2.5)),
)
@settings(max_examples=25)
def test_odd_sizes(
    *,
    width: int,
    expert_width: int,
    num_experts: int,
    num_chosen: int,
    num_rows: int,
    scale: float,
) -> None:
    """More experts than rows, and more rows than experts, no size a multiple of anything."""
    shape = Shape(
        width=width,
        expert_width=expert_width,
        num_experts=num_experts,
        num_chosen=num_chosen,
        scale=scale,
    )
    tensors = tensors_of(shape.oracle(seed=width), torch.float32)
    layer = build(shape, tensors, TORCH)
    x = torch.randn(num_rows, width)
    wanted = exact(shape, tensors, x)
    # Sums of at most 2 * 40 terms, twice, then of 3 parts: Higham's bound with room for sizes.
    assert error_of(apply(layer, x, TORCH), wanted) <= 200 * 2**-24 * (1 + wanted.abs().max())


def invariance_holds(layer: MixtureOfExperts, x: torch.Tensor, backend: KernelBackend) -> None:
    """Alone, in mixtures, at other places, beside rows that crowd one row's experts."""
    wanted = apply(layer, x, backend)
    for start, count in ((0, 1), (4, 1), (1, 2), (3, 5), (2, 17), (0, 30)):
        part = slice(start, start + count)
        assert torch.equal(apply(layer, x[part], backend), wanted[part]), (start, count)
    crowd = x[:1].expand(20, -1)
    assert torch.equal(apply(layer, torch.cat((crowd, x)), backend)[20:], wanted)
    shuffled = torch.randperm(x.shape[0])
    assert torch.equal(apply(layer, x[shuffled], backend), wanted[shuffled])


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_int4", [False, True])
def test_a_rows_bits_do_not_depend_on_the_rows_beside_it(
    backend: KernelBackend, dtype: torch.dtype, is_int4: bool
) -> None:
    shape = Shape(num_groups=2, num_experts=8)
    tensors = tensors_of(shape.oracle(), dtype)
    given = quantized(tensors)[0] if is_int4 else tensors
    layer = build(shape, given, backend, INT4 if is_int4 else PLAIN)
    invariance_holds(layer, torch.randn(30, shape.width).to(dtype), backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_bits_hold_at_widths_where_a_librarys_kernels_change(dtype: torch.dtype) -> None:
    """One row alone is multiplied otherwise than many from a width of some 1500 on."""
    shape = Shape(width=1600, expert_width=32, num_experts=4, num_chosen=2)
    layer = build(shape, tensors_of(shape.oracle(), dtype), TORCH)
    invariance_holds(layer, torch.randn(30, shape.width).to(dtype), TORCH)


def test_parts_may_have_forms_of_their_own() -> None:
    """gate_up packed and down plain."""
    shape, dtype = Shape(), torch.float32
    plain = tensors_of(shape.oracle(), dtype)
    packed, numbers = quantized(plain)
    mixed = {n: t for n, t in packed.items() if ".down_" not in n}
    mixed |= {n: t for n, t in plain.items() if n.endswith(".down") and "experts" in n}
    numbers |= {n: t for n, t in plain.items() if n.endswith(".down") and "experts" in n}
    layer = build(shape, mixed, TORCH, ExpertFormat(gate_up=32))
    x = torch.randn(9, shape.width)
    assert error_of(apply(layer, x, TORCH), exact(shape, numbers, x)) <= 1e-5


def test_without_shared_experts_and_correction() -> None:
    shape = Shape(scale=1.0)
    tensors = tensors_of(shape.oracle(), torch.float32)
    layer = MixtureOfExperts(
        shape.width, shape.expert_width, shape.routing, dtype=torch.float32, router_bias=False
    )
    for name in layer.parameter_shapes():
        layer.assign(name, tensors[name].clone(), TORCH)
    assert not any(name.startswith("shared") for name in layer.parameter_shapes())
    nothing = {"router.bias", "shared.gate_up.weight", "shared.down.weight"}
    for name in nothing:
        tensors[name].zero_()
    x = torch.randn(7, shape.width)
    assert error_of(apply(layer, x, TORCH), exact(shape, tensors, x)) <= 1e-5


def test_a_tensor_nobody_declared_is_named_and_groups_must_fit() -> None:
    layer = MixtureOfExperts(8, 4, Routing(num_experts=4, num_chosen=1), dtype=torch.float32)
    for name in ("experts.4.down", "experts.0.gate_up_packed", "experts.0.up"):
        with pytest.raises(KeyError, match=name.removeprefix("experts.")):
            layer.assign(name, torch.zeros(8, 4), TORCH)
    with pytest.raises(ConfigError, match="40 columns in INT4 groups of 32"):
        Experts(40, 32, 2, dtype=torch.float32, format=INT4)


def test_only_the_experts_in_use_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row of 12 experts, 3 chosen: 6 products; padding rows go nowhere."""
    from pilotfish.kernels.grouped_linear import eager as grouped

    shape = Shape()
    layer = build(shape, tensors_of(shape.oracle(), torch.float32), TORCH)
    multiple = multiple_of(layer, TORCH)
    rows: list[int] = []
    multiply = grouped.eager.linear_each

    def counted(
        xs: Sequence[torch.Tensor], weights: Sequence[Any], **how: bool
    ) -> list[torch.Tensor]:
        rows.extend(x.shape[0] for x in xs)
        return multiply(xs, weights, **how)

    run = types.SimpleNamespace(backend=TORCH, row_multiple=multiple, num_rows=1)
    x = torch.nn.functional.pad(torch.randn(1, shape.width), (0, 0, 0, multiple - 1))
    monkeypatch.setattr(grouped.eager, "linear_each", counted)
    layer(x, cast(ForwardPass, run))
    assert rows == [multiple] * 6


Plant = Callable[[pytest.MonkeyPatch], None]


def biased_weights(patch: pytest.MonkeyPatch) -> None:
    """The scores that select are used as weights too."""
    route = Routing.__call__

    def wrong(self: Routing, logits: torch.Tensor, bias: torch.Tensor, *rest: Any) -> Any:
        choice, _ = route(self, logits, bias, *rest)
        weights = (self.scoring(logits) + bias).gather(1, choice)
        return choice, weights / weights.sum(1, keepdim=True) * self.scale

    patch.setattr(Routing, "__call__", wrong)


def no_correction(patch: pytest.MonkeyPatch) -> None:
    route = Routing.__call__
    patch.setattr(
        Routing, "__call__", lambda self, logits, bias, *rest: route(self, logits, None, *rest)
    )


def no_groups(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(choice_by_torch, "without_other_groups", lambda biased, *counts: biased)


def best_of_group(patch: pytest.MonkeyPatch) -> None:
    """A group judged by its best expert instead of its two best."""

    def wrong(biased: torch.Tensor, num_groups: int, num_kept_groups: int) -> torch.Tensor:
        grouped = biased.view(biased.shape[0], num_groups, -1)
        kept = grouped.amax(-1).topk(num_kept_groups).indices
        mask = torch.ones(grouped.shape[:2], dtype=torch.bool).scatter_(1, kept, False)
        return grouped.masked_fill(mask.unsqueeze(-1), float("-inf")).view_as(biased)

    patch.setattr(choice_by_torch, "without_other_groups", wrong)


def up_before_gate(patch: pytest.MonkeyPatch) -> None:
    act = experts.swiglu
    patch.setattr(
        experts,
        "swiglu",
        lambda x, *, backend: act(torch.cat(x.chunk(2, 1)[::-1], 1), backend=backend),
    )


def places_shifted(patch: pytest.MonkeyPatch) -> None:
    combine = moe.combine_rows
    patch.setattr(
        moe,
        "combine_rows",
        lambda x, places, *rest, **kw: combine(x, places.roll(1, 1), *rest, **kw),
    )


def nibbles_reversed(patch: pytest.MonkeyPatch) -> None:
    unpack = eager.dequantize

    def wrong(packed: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        numbers = unpack(packed, torch.ones_like(scale), torch.float32)
        numbers = numbers.unflatten(-1, (-1, 8)).flip(-1).flatten(-2)
        return (numbers * scale.float().repeat_interleave(32, -1)).to(dtype)

    patch.setattr(eager, "dequantize", wrong)


MUTANTS = (
    (biased_weights, False),
    (no_correction, False),
    (no_groups, False),
    (best_of_group, False),
    (up_before_gate, False),
    (places_shifted, False),
    (nibbles_reversed, True),
)


@pytest.mark.parametrize(("plant", "is_int4"), MUTANTS)
def test_planted_bugs_show(monkeypatch: pytest.MonkeyPatch, plant: Plant, is_int4: bool) -> None:
    shape = Shape(num_groups=4, num_kept_groups=2)
    check_error(shape, TORCH, torch.float32, is_int4=is_int4)
    block = shape.oracle(seed=20)
    given = tensors_of(block, torch.float32)
    plain = given
    if is_int4:
        given, plain = quantized(given)
    x = torch.randn(20, shape.width)
    wanted = exact(shape, plain, x)
    plant(monkeypatch)
    layer = build(shape, given, TORCH, INT4 if is_int4 else PLAIN)
    assert error_of(apply(layer, x, TORCH), wanted) > 1e-3


def test_an_expert_with_one_row_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The invariance test can fail. Planted: a product that rounds otherwise when given one row,
    which blocks of rows keep from it, and an expert's row that comes to it without a block.
    """
    from pilotfish.kernels.linear import eager as products

    shape = Shape(num_experts=4, num_chosen=2)
    layer = build(shape, tensors_of(shape.oracle(), torch.float32), TORCH)
    x = torch.randn(30, shape.width)
    multiply, sort_rows = products.linear, moe.group_rows

    def lonely(x: torch.Tensor, weight: Any) -> torch.Tensor:
        out = multiply(x, weight)
        return out if x.shape[0] > 1 else out.nextafter(out.new_tensor(torch.inf))

    def unpadded(choice: torch.Tensor, count: int, *, backend: KernelBackend, **_: int) -> Any:
        return sort_rows(choice, count, backend=backend, row_multiple=1)

    monkeypatch.setattr(products, "linear", lonely)
    monkeypatch.setattr(moe, "group_rows", unpadded)
    invariance_holds(layer, x, TORCH)
    in_blocks = products.linear_in_blocks

    def sometimes(x: torch.Tensor, weight: Any) -> torch.Tensor:
        return lonely(x, weight) if x.shape[0] == 1 else in_blocks(x, weight)

    monkeypatch.setattr(products, "linear_in_blocks", sometimes)
    with pytest.raises(AssertionError):
        invariance_holds(layer, x, TORCH)


@pytest.mark.parametrize("num_chosen", [3, 6, 8, 13, 16, 33])
def test_a_rows_weights_do_not_depend_on_the_other_rows(num_chosen: int) -> None:
    """Their sum has one order: alone, in small passes, and in one that two threads share."""
    routing = Routing(num_experts=64, num_chosen=num_chosen)
    num_rows = 12_000  # times num_chosen above what torch leaves to one thread, 32768
    logits = torch.randn(num_rows, 64) * 3
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        choice, weights = routing(logits, None)
    finally:
        torch.set_num_threads(num_threads)
    for size in (1, 2, 3, 17, 700):
        for start in (0, 5, num_rows - size):
            part = slice(start, start + size)
            alone = routing(logits[part].clone(), None)
            assert torch.equal(alone[0], choice[part])
            assert torch.equal(alone[1], weights[part])


def test_the_router_is_float32_in_every_run() -> None:
    """Weights that arrive in another dtype are widened; rows are too."""
    layer = router.Router(8, Routing(num_experts=4, num_chosen=2))
    weight, bias = torch.randn(4, 8).bfloat16(), torch.randn(4).bfloat16()
    layer.assign("weight", weight, TORCH)
    layer.assign("bias", bias, TORCH)
    assert layer.correction is not None
    assert (layer.packed.dtype, layer.correction.dtype) == (torch.float32, torch.float32)
    x = torch.randn(4, 8).bfloat16()
    scores = torch.sigmoid(x.float() @ weight.float().T)
    choice, weights = layer.choose(x, TORCH, 3)
    assert choice.shape == weights.shape == (3, 2)
    wanted = (scores + bias.float())[:3].topk(2).indices.sort(1).values
    assert torch.equal(choice, wanted)


def test_loads_are_rows_of_each_expert() -> None:
    """None are counted unasked, and padding goes to none."""
    shape = Shape()
    layer = build(shape, tensors_of(shape.oracle(), torch.float32), TORCH)
    x = torch.randn(7, shape.width)
    apply(layer, x, TORCH)
    assert layer.experts.loads is None
    layer.experts.count_loads()
    choice, _ = layer.router.choose(x, TORCH, 7)
    apply(layer, x, TORCH)
    apply(layer, x[:3], TORCH)
    wanted = torch.bincount(torch.cat([choice, choice[:3]]).flatten(), minlength=shape.num_experts)
    assert torch.equal(layer.experts.loads, wanted)
    assert wanted.sum() == 10 * shape.num_chosen
