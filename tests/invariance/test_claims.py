"""What a run claims of its arithmetic is so: plugins that compute by themselves, inspect, GPUs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kernels.native_cases import needs_library
from pilotfish import LLM, SamplingParams, load_registry
from pilotfish.cli.inspect import describe
from pilotfish.config import CacheConfig
from pilotfish.invariance.own_parts import OwnPart, own_part, own_parts
from pilotfish.invariance.whole_pass import TEXT, PassProbe, probe_passes
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.device import current_device
from pilotfish.loading.arithmetic import probe_arithmetic
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.models.claims import Claims
from pilotfish.models.decoder import Decoder
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.shallow import shallow
from pilotfish.testing import save_tiny
from support.own_arithmetic import (
    HandMadeModel,
    MeetingModel,
    RouterModel,
    SteadyModel,
    UnsteadyModel,
    registry_of,
    router_weight,
    tried,
    write_checkpoint,
)

BACKENDS = [pytest.param("native", marks=needs_library), "torch"]
GREEDY = SamplingParams(temperature=0, max_tokens=2)
PROMPT = [5, 6, 7]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "model")


def prepared(path: str, model: type[HandMadeModel], **options: Any) -> Prepared:
    options = {"dtype": "float32", **options}
    cache = CacheConfig(page_size_tokens=16, num_pages=32)
    return prepare_from_options(path, registry=registry_of(model), cache=cache, **options)


def claims_of(made: Prepared) -> Claims:
    assert isinstance(made.model, Claims)
    return made.model


def warnings_of(path: str, model: type[HandMadeModel], **options: Any) -> list[str]:
    options = {"dtype": "float32", "max_length": 128, **options}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with LLM(path, registry=registry_of(model), **options) as llm:
            llm.generate([PROMPT, PROMPT], GREEDY)
            llm.generate(PROMPT, GREEDY)
    return [str(one.message) for one in seen if "arithmetic" in str(one.message)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("model", "told"),
    [
        (SteadyModel, ""),
        (UnsteadyModel, "rows differ in passes of 1, 3 and 16 rows"),
        (MeetingModel, "rows differ in passes of 1, 3 and 16 rows"),
    ],
)
def test_inspect_says_what_the_run_warns_of_and_names_the_call(
    wide: str, backend: str, model: type[HandMadeModel], told: str
) -> None:
    described = describe(prepared(wide, model, backend=backend))["arithmetic"]
    loaded = prepared(wide, model, backend=backend)
    loaded.model.load_model(loaded.weights)
    said = warnings_of(wide, model, backend=backend)
    if not told:
        assert described == "invariant: a row's bits are its own"
        assert claims_of(loaded).is_invariant
        assert said == []
        return
    assert not claims_of(loaded).is_invariant
    assert described.startswith(f"NOT invariant: {told}")
    assert "support.own_arithmetic:" in described
    assert len(said) == 1
    assert described.removeprefix("NOT invariant: ") in said[0]
    assert "with one seed a text may differ between batches" in said[0]


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        ("pilotfish.invariance.padding.attention_row_multiple", "attention of 1 kv heads"),
        ("pilotfish.invariance.linear_probe.probe", "products with [1024, 1024] float32 (packed)"),
    ],
)
def test_inspect_and_the_run_name_what_no_number_of_rows_keeps(
    wide: str, monkeypatch: pytest.MonkeyPatch, probe: str, told: str
) -> None:
    monkeypatch.setenv("PILOTFISH_CACHE_DIR", "none")
    monkeypatch.setattr(probe, lambda *shape: None)
    made = prepared(wide, SteadyModel, backend="torch")
    described = describe(made)
    assert described["arithmetic"].startswith("NOT invariant: no number of rows keeps")
    assert described["row_multiple"] is None
    (said,) = warnings_of(wide, SteadyModel, backend="torch")
    assert told in described["arithmetic"].replace("(plain)", "(packed)")
    assert told in said.replace("(plain)", "(packed)")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_raw_router_is_claimed_as_its_rows_are(wide: str, backend: str, dtype: str) -> None:
    """Whether the library multiplies rows alike is a matter of the machine; the claim follows."""
    claims = claims_of(prepared(wide, RouterModel, backend=backend, dtype=dtype))
    found = claims.probe_own_parts()
    assert [one.name for one in found.operations] == ["linear"]
    half = torch.randn(TEXT, 512, generator=torch.Generator().manual_seed(3))
    x = torch.cat((half, -half), dim=1).to(getattr(torch, dtype))
    weight = router_weight(x)
    weight[:, 512:] = weight[:, :512]
    whole = torch.nn.functional.linear(x, weight)
    counts = [
        count
        for count in (1, 3, 16)
        if not torch.equal(torch.nn.functional.linear(x[:count], weight), whole[:count])
    ]
    print(backend, dtype, "rows differ in calls of", counts)
    if counts:
        assert claims.why_not_invariant.startswith("linear of")
        assert "support.own_arithmetic" in claims.why_not_invariant
    assert claims.is_invariant == (claims.why_not_invariant == "")
    assert claims.is_invariant == (not found.operations[0].problem and not found.unlike)


@torch.library.custom_op("pilotfish_tests::linear", mutates_args=())
def unsteady_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A library's product, of which one row is added in another order, on every machine."""
    total = x.new_zeros(x.shape[0], weight.shape[0])
    columns = range(x.shape[1])
    for k in reversed(columns) if x.shape[0] == 1 else columns:
        total += x[:, k, None] * weight[None, :, k]
    return total


@torch.library.custom_op("pilotfish_tests::silu", mutates_args=())
def unsteady_silu(x: torch.Tensor) -> torch.Tensor:
    """A library's function, whose last three elements run through other code."""
    flat = x.flatten().clone()
    flat[:-3] = flat[:-3] * 1.000001
    return flat.view(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_call_whose_order_follows_the_number_of_rows_is_found(dtype: torch.dtype) -> None:
    weight = torch.randn(5, 64).to(dtype)

    def calls(rows: int) -> None:
        x = torch.randn(rows, 64).to(dtype)
        for _ in range(2):
            unsteady_linear(x, weight)
        unsteady_linear(x[:7], weight)
        torch.relu(x) + x

    own = tried(calls)
    said = [one.problem for one in own.found]
    assert said[0] == "gives the rows of a call of 1 other bits than those of many"
    assert "no axis of its operands is the rows" in said[1]  # 7 rows are of no pass
    assert [one.is_untried for one in own.found] == [False, True]
    assert own.found[0].operands.startswith("[88, 64] x [5, 64]")
    assert own.found[0].place.startswith(f"{__name__}:")


def test_a_call_whose_last_elements_run_through_other_code_is_found() -> None:
    own = tried(lambda rows: unsteady_silu(torch.randn(rows, 5)))
    assert own.found[0].problem.startswith("gives")
    assert not own.found[0].is_untried


def test_what_the_library_calls_is_left_to_its_kernels() -> None:
    from pilotfish.kernels.elementwise import silu

    def calls(rows: int) -> None:
        silu(torch.randn(rows, 5), backend=KernelBackend("torch"))
        torch.exp(torch.randn(rows, 5, dtype=torch.float64))

    assert tried(calls).found == []


class HandsOn(TorchFunctionMode):
    """Sees every call and changes none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class HandsOnBelow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The same, of what torch makes of the calls."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Computes(HandsOn):
    """Takes an exponential for every sigmoid."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.sigmoid:
            return torch.exp(*args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [HandsOn, HandsOnBelow])
@pytest.mark.parametrize("backend", ["torch", pytest.param("native", marks=needs_library)])
def test_a_mode_that_hands_calls_on_did_not_make_them(mode: Any, backend: Any) -> None:
    from pilotfish.kernels.elementwise import silu

    def calls(rows: int) -> None:
        x = torch.randn(rows, 5)
        with mode():
            silu(x, backend=KernelBackend(backend))

    assert [one.problem for one in tried(calls).found] == []


@pytest.mark.parametrize("mode", [HandsOn, HandsOnBelow, Computes])
def test_what_a_plugin_calls_under_a_mode_is_its_own(mode: Any) -> None:
    def calls(rows: int) -> None:
        x = torch.randn(rows, 5)
        with mode():
            torch.sigmoid(x)

    (found,) = tried(calls).found
    wanted = "exp" if mode is Computes else "sigmoid"
    assert found.name == wanted


def test_operands_are_as_they_were_and_the_pass_gets_its_own_result() -> None:
    def calls(rows: int) -> None:
        x = torch.randn(rows, 8)
        before = x.clone()
        made = torch.nn.functional.silu(x)
        assert torch.equal(x, before)
        torch.nn.functional.silu(x, inplace=True)
        assert torch.equal(x, made)
        mades.append((before, made))

    mades: list[tuple[torch.Tensor, torch.Tensor]] = []
    assert len(tried(calls).found) == 2
    for before, made in mades:
        assert torch.equal(made, torch.nn.functional.silu(before))


def test_helpers_of_what_a_plugin_must_write_are_no_computation() -> None:
    class Helped(DecoderModel):
        def build_network(self) -> Decoder:
            return self._block()

        def _block(self) -> Any: ...

    class Logits(Helped):
        def _logits(self, *args: Any) -> Any: ...

    assert own_part(object.__new__(Helped)) is None
    assert own_part(object.__new__(Logits)) == OwnPart(Logits.__qualname__, keeps_bits=False)


def test_one_layer_of_each_kind_is_tried_and_no_weight_is_read(wide: str) -> None:
    made = prepared(wide, SteadyModel, backend="torch")
    model: Any = made.model
    assert own_parts(model) == [OwnPart("Steady", keeps_bits=False)]
    few, vocab_size = shallow(model, is_loaded=False) or (None, 0)
    assert few is not None
    assert (len(few.network.layers), len(model.network.layers), vocab_size) == (1, 3, 64)
    assert probe_passes(few, vocab_size).unlike == ""
    model.load_model(made.weights)  # what was tried without weights left nothing behind
    assert model.is_invariant


def test_the_librarys_own_layers_are_not_tried(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = prepare_from_options(wide, backend="torch", dtype="float32")
    monkeypatch.setattr("pilotfish.models.claims.probe_passes", None)
    assert probe_arithmetic(made).described.startswith(("invariant", "NOT invariant"))


def test_a_layer_that_is_too_large_without_weights_is_not_claimed(
    wide: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pilotfish.models.shallow.LARGEST", 1000)
    made = prepared(wide, SteadyModel, backend="torch")
    assert probe_arithmetic(made).described == (
        "NOT invariant: Steady can be tried with the weights only"
    )
    made.model.load_model(made.weights)
    assert claims_of(made).is_invariant


def test_every_launch_is_on_the_models_gpu(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the thread's current GPU, wherever its arguments lie."""
    named = current_device(torch.device("cuda:1"))
    assert isinstance(named, torch.cuda.device)
    assert named.idx == 1
    inside: list[torch.device] = []
    seen: dict[str, bool] = {}

    class Entered:
        """Again and again, as torch's."""

        def __init__(self, device: torch.device) -> None:
            self.device = device

        def __enter__(self) -> None:
            inside.append(self.device)

        def __exit__(self, *error: object) -> None:
            inside.pop()

    for module in ("engine.runner", "kernels.device", "invariance.whole_pass"):
        monkeypatch.setattr(f"pilotfish.{module}.current_device", Entered)
    for name in ("load_model", "execute"):
        real = getattr(SteadyModel, name)

        def watched(self: Any, *args: Any, name: str = name, real: Any = real) -> Any:
            seen[name] = seen.get(name, True) and bool(inside)
            return real(self, *args)

        monkeypatch.setattr(SteadyModel, name, watched)
    with LLM(wide, registry=registry_of(SteadyModel), dtype="float32", max_length=128) as llm:
        llm.generate([PROMPT], GREEDY)
    assert seen == {"load_model": True, "execute": True}


def test_torch_on_a_gpu_claims_nothing() -> None:
    """A library there chooses its kernel by the number of rows."""
    made = KernelBackend.choose("torch", "cuda", "invariant")
    assert not made.invariant
    assert "on a GPU" in made.why_not_invariant
    assert KernelBackend.choose("torch", "cpu", "invariant").why_not_invariant == ""
    assert KernelBackend.choose("triton", "cuda", "invariant").invariant
    assert "fastest" in KernelBackend.choose("torch", "cpu", "fastest").why_not_invariant


def test_a_run_of_torch_on_a_gpu_is_warned_of(wide: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = KernelBackend.choose
    monkeypatch.setattr(
        KernelBackend, "choose", lambda name, device, arithmetic: choose(name, "cuda", arithmetic)
    )
    made = prepared(wide, SteadyModel, backend="torch")
    assert "NOT invariant: torch's kernels on a GPU" in probe_arithmetic(made).described
    assert not claims_of(made).is_invariant
    assert any("on a GPU" in said for said in warnings_of(wide, SteadyModel, backend="torch"))


@needs_library
def test_a_pass_of_native_calls_alone_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin's layer that plans itself and is believed; one that does not is tried."""
    registry = load_registry()
    path = str(save_tiny("Lfm2ForCausalLM", "attention between", tmp_path, registry))
    cache = CacheConfig(page_size_tokens=16, num_pages=32)
    tried: list[Any] = []

    def try_passes(model: Any, vocab_size: int, **says: Any) -> PassProbe:
        tried.append(model)
        return PassProbe()

    monkeypatch.setattr("pilotfish.models.claims.probe_passes", try_passes)
    for backend in ("native", "torch"):
        made = prepare_from_options(path, registry=registry, backend=backend, cache=cache)
        assert {part.name for part in own_parts(made.model)} == {"LFM2Model", "ShortConv"}  # type: ignore[arg-type]
        assert claims_of(made).probe_own_parts() == PassProbe()
        assert len(tried) == (backend == "torch")
    tried.clear()
    monkeypatch.delattr("pilotfish_lfm2.network.ShortConv.plan")
    made = prepare_from_options(path, registry=registry, backend="native", cache=cache)
    assert claims_of(made).probe_own_parts() == PassProbe()
    assert len(tried) == 1
