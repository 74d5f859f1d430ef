"""Parts of one's own in planned passes: what layers called one by one give, or an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import pytest
import torch

from kernels.native_cases import NATIVE, needs_library
from kernels.planned_passes import called_one_by_one
from kernels.test_rope import angles
from models.test_planned_architectures import passes
from pilotfish import load_registry
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.rope import apply_rope
from pilotfish.layers.attention import Attention, HeadNorm
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.layer import Layer
from pilotfish.layers.linear import Linear
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.norm import RMSNorm
from pilotfish.layers.rope import Rotary
from pilotfish.models.decoder import Decoder
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import ReturnHiddenStates, ReturnLogits
from pilotfish.testing import Subject, tiny_subjects

pytestmark = needs_library

LLAMA, LFM2, DEEPSEEK = "LlamaForCausalLM", "Lfm2ForCausalLM", "DeepseekV3ForCausalLM"
Plant = Callable[[DecoderModel, pytest.MonkeyPatch], None]


@contextmanager
def subject(architecture: str = LLAMA) -> Iterator[Subject]:
    with tiny_subjects(architecture, load_registry(), dtypes=("bfloat16",)) as subjects:
        yield next(iter(subjects))


def load(one: Subject, boundaries: tuple[int, ...] = ()) -> DecoderModel:
    mode = ReturnHiddenStates.SELECTED if boundaries else ReturnHiddenStates.NONE
    found = one.load("bfloat16", ReturnLogits.VARIABLE, mode, boundaries)
    return cast(DecoderModel, found)


def doubled(kind: type, name: str) -> dict[str, Any]:
    """A method whose result is twice that of the class."""
    real = getattr(kind, name)

    def method(self: Any, *args: Any) -> Any:
        found = real(self, *args)
        return (2 * found[0], *found[1:]) if isinstance(found, tuple) else found.mul_(2)

    return {name: method}


def of_kind(model: DecoderModel, kind: type, path: str = "") -> list[Layer]:
    """The layers of a kind; path: only those with this attribute name."""
    holders = list(model.network.layers_inside())
    if path:
        found = [getattr(holder, path, None) for holder in holders]
        return [layer for layer in found if isinstance(layer, kind)]
    return [layer for layer in holders if isinstance(layer, kind)]


def subclassed(kind: type, name: str, path: str = "") -> Plant:
    def plant(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
        own = type("Own", (kind,), doubled(kind, name))
        found = of_kind(model, kind, path)
        assert found
        for layer in found:
            layer.__class__ = own

    return plant


def patched(kind: type, name: str) -> Plant:
    def plant(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(kind, name, doubled(kind, name)[name])

    return plant


def on_the_network(name: str) -> Plant:
    def plant(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
        real = getattr(model.network, name)
        patch.setattr(model.network, name, lambda *args: 2 * real(*args))

    return plant


class FirstAngle(Attention):
    """Reads the angles of every row that it gets."""

    def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        assert x.shape[0] % run.row_multiple == 0
        return super().__call__(x * run.cos[:, :1].to(x.dtype), run)


def own_attention(multiple: int) -> Plant:
    def plant(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(type(model), "probe_own_rows", lambda self, known: multiple)
        for layer in of_kind(model, Attention):
            layer.__class__ = FirstAngle

    return plant


class NewHeads(HeadNorm):
    """Leaves the heads that it gets alone."""

    def __call__(self, heads: torch.Tensor, backend: KernelBackend) -> torch.Tensor:
        return super().__call__(heads.clone(), backend)


class Swapped(Rotary):
    """Two views of one tensor, sines first."""

    def __call__(self, *args: Any) -> Any:
        return torch.cat(super().__call__(*args)[::-1], -1).chunk(2, -1)


def swapped_angles(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    model.network.rotary.__class__ = Swapped


PLANTS: dict[str, tuple[str, Plant]] = {
    "attention": (LLAMA, own_attention(1)),
    "attention, padded": (LLAMA, own_attention(8)),
    "angles side by side": (LLAMA, swapped_angles),
    "network.finish": (LLAMA, on_the_network("finish")),
    "network.logits": (LLAMA, on_the_network("logits")),
    "Decoder.finish": (LLAMA, patched(Decoder, "finish")),
    "RMSNorm.add": (LLAMA, patched(RMSNorm, "add")),
    "GatedMLP.__call__": (LLAMA, patched(GatedMLP, "__call__")),
    "head": (LLAMA, subclassed(Linear, "__call__", "lm_head")),
    "block": (LLAMA, subclassed(PreNormBlock, "__call__")),
    "norm of heads": (LFM2, subclassed(HeadNorm, "__call__")),
    "norm of the latent": (DEEPSEEK, subclassed(RMSNorm, "__call__", "kv_norm")),
    "norm of the queries": (DEEPSEEK, subclassed(RMSNorm, "__call__", "q_norm")),
}


@pytest.mark.parametrize("part", PLANTS)
def test_a_part_of_ones_own_computes_in_planned_passes(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    architecture, plant = PLANTS[part]
    with subject(architecture) as one:
        plain = passes(one, "bfloat16", load(one))
        model = load(one)
        plant(model, monkeypatch)
        found = passes(one, "bfloat16", model)
        with called_one_by_one():
            assert all(map(torch.equal, found, passes(one, "bfloat16", model)))
    assert not all(map(torch.equal, found, plain))


def _wide_blocks(model: DecoderModel, patch: pytest.MonkeyPatch) -> None:
    def wide(self: Any, x: torch.Tensor, residual: Any, run: Any) -> Any:
        return tuple(
            each.float() for each in PreNormBlock.__call__(self, x.bfloat16(), residual, run)
        )

    for block in model.network.layers:
        block.__class__ = type("WideBlock", (PreNormBlock,), {"__call__": wide, "plan": None})


WHY_CALLED: dict[str, tuple[Plant, str]] = {
    "a network's run": (on_the_network("run"), "Decoder has a `run` of its own"),
    "a network's logits": (subclassed(Decoder, "logits"), "Own has a `logits` of its own"),
    "a patch": (patched(Decoder, "finish"), "Decoder has a `finish` of its own"),
    "logits of the model": (
        lambda model, patch: patch.setattr(model, "_logits", lambda *given: None),
        "Llama3Model has a `_logits` of its own",
    ),
    "a wide stream": (_wide_blocks, "the block WideBlock has no `plan` and gives rows of "),
}


@pytest.mark.parametrize("part", WHY_CALLED)
def test_what_keeps_a_pass_from_being_planned_is_named(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant, said = WHY_CALLED[part]
    with subject() as one:
        model = load(one)
        assert model.why_called == ""
        plant(model, monkeypatch)
        if part == "a wide stream":
            model.network.dtypes_given = {torch.float32}
        assert said in model.why_called


def test_a_norm_of_heads_may_return_new_ones() -> None:
    with subject(LFM2) as one:
        plain, model = passes(one, "bfloat16", load(one)), load(one)
        for norm in of_kind(model, HeadNorm):
            norm.__class__ = NewHeads
        assert all(map(torch.equal, passes(one, "bfloat16", model), plain))
        with called_one_by_one():
            assert all(map(torch.equal, passes(one, "bfloat16", model), plain))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (torch.Tensor.bfloat16, "cos is .* torch.bfloat16 .*wanted torch.float32"),
        (lambda found: found[:, 2:], "cos is .*wanted .* or more rows"),
        (lambda found: found[:1], "cos is .*wanted .* or more rows"),
    ],
)
def test_angles_that_native_code_would_misread_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Rotary.__call__
    changed: Any = lambda self, *args: tuple(map(change, real(self, *args)))  # noqa: E731
    monkeypatch.setattr(Rotary, "__call__", changed)
    with subject() as one, pytest.raises(ValueError, match=said):
        passes(one, "bfloat16", load(one))


@pytest.mark.parametrize("change", [torch.Tensor.bfloat16, lambda found: found[:1]])
def test_they_are_refused_outside_of_a_plan(change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    cos, sin = map(change, angles(3, 8, False))
    with pytest.raises(ValueError, match="cos is"):
        apply_rope(torch.randn(3, 2, 8), cos, sin, backend=NATIVE)


def without_positions(model: DecoderModel, *, rotary: Rotary | None) -> DecoderModel:
    model.network.rotary = rotary
    for layer in of_kind(model, Attention):
        cast(Attention, layer).rope = False
    return model


def test_a_network_without_angles_is_one_that_turns_nothing() -> None:
    with subject() as one:
        turning = passes(one, "bfloat16", load(one))
        model = load(one)
        plain = passes(one, "bfloat16", without_positions(model, rotary=model.network.rotary))
        assert not all(map(torch.equal, plain, turning))
        for called in (nullcontext, called_one_by_one):
            with called():
                found = passes(one, "bfloat16", without_positions(load(one), rotary=None))
            assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("called", [nullcontext, called_one_by_one])
def test_a_network_without_angles_turns_no_heads(
    called: Callable[[], AbstractContextManager[None]],
) -> None:
    with subject() as one, called():
        model = load(one)
        model.network.rotary = None
        with pytest.raises(ValueError, match="no angles to turn heads by; wanted a network with"):
            passes(one, "bfloat16", model)


def with_embedding(
    model: DecoderModel, change: Callable[[torch.Tensor], torch.Tensor]
) -> DecoderModel:
    real = model.embed_inputs
    model.__dict__["embed_inputs"] = lambda *args: change(real(*args))
    return model


def test_the_strides_of_what_enters_are_no_matter() -> None:
    with subject() as one:
        plain = passes(one, "bfloat16", load(one, (0, 1)))
        model = with_embedding(load(one, (0, 1)), lambda rows: rows.t().contiguous().t())
        assert all(map(torch.equal, passes(one, "bfloat16", model), plain))
        with called_one_by_one():
            assert all(map(torch.equal, passes(one, "bfloat16", model), plain))


def test_rows_of_another_dtype_are_refused() -> None:
    with subject() as one:
        model = with_embedding(load(one), torch.Tensor.float)
        with pytest.raises(ValueError, match=r"is torch\.float32; wanted torch\.bfloat16"):
            passes(one, "bfloat16", model)


@pytest.mark.parametrize(("kind", "path"), [(Linear, "lm_head"), (RMSNorm, "norm")])
def test_nothing_is_called_without_rows(kind: type, path: str) -> None:
    class Own(kind):  # type: ignore[misc]
        def __call__(self, x: torch.Tensor, *args: Any) -> Any:
            assert x.shape[0]
            return super().__call__(x, *args)

        def add(self, x: torch.Tensor, *args: Any) -> Any:
            assert x.shape[0]
            return super().add(x, *args)

    with subject() as one:
        model = load(one)
        getattr(model.network, path).__class__ = Own
        session = one.session("bfloat16", model=model)
        session.add("a", one.tokens(30, 30))
        for wanted in (0, 2):
            outputs = session.execute(session.inputs({"a": 9}, {"a": wanted}))
            assert outputs.logits.shape[0] == wanted
            session.commit({"a": 9})
