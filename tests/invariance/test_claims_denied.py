"""What cannot be tried is not claimed: parts, calls and paths that a check might overlook."""

from __future__ import annotations

import copy
import enum
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from kernels.native_cases import needs_library
from pilotfish import load_registry
from pilotfish.config import CacheConfig
from pilotfish.invariance.own_parts import own_part
from pilotfish.invariance.whole_pass import TEXT, probe_passes
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.mlp import GatedMLP
from pilotfish.layers.router import Router, Routing
from pilotfish.loading.arithmetic import probe_arithmetic
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.shallow import shallow
from pilotfish.testing import Examples, promise_named, run, tiny_subjects
from pilotfish_llama3.model import Llama3Model
from support.own_arithmetic import (
    FEW,
    Gate,
    HandMade,
    SteadyModel,
    gated,
    model_with,
    registry_of,
    tried,
    with_feed_forward,
    write_checkpoint,
)

WIDTH = 64


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("narrow") / "model", width=WIDTH)


def prepared(path: str, model: Any, **options: Any) -> Prepared:
    setattr(sys.modules["support.own_arithmetic"], model.__name__, model)
    return prepare_from_options(
        path,
        registry=registry_of(model),
        cache=CacheConfig(page_size_tokens=16, num_pages=32),
        **{"dtype": "float32", "backend": "torch", **options},
    )


def described(path: str, model: Any, **options: Any) -> str:
    return probe_arithmetic(prepared(path, model, **options)).described


def model_of(gate: Gate) -> type[Llama3Model]:
    return with_feed_forward(gated(gate))


def unsteady(x: torch.Tensor) -> torch.Tensor:
    """[T, D] -> [T, 1], added in another order for few rows."""
    terms = x.float() * torch.linspace(-1, 1, x.shape[1])
    if x.shape[0] > FEW:
        return terms.sum(-1, keepdim=True)
    return terms.unflatten(1, (2, -1)).sum(-1).sum(-1, keepdim=True)


class Quiet(Routing):
    """As the library's, and nobody answers for it."""

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


class Answered(Routing):
    keeps_bits = True

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


def test_a_routing_of_ones_own_is_a_part_and_its_router_is_the_librarys() -> None:
    for kind, keeps in ((Quiet, False), (Answered, True)):
        router = Router(8, kind(num_experts=4, num_chosen=2))
        assert own_part(router) is None
        found = own_part(router.routing)
        assert found is not None
        assert (found.name, found.keeps_bits) == (kind.__name__, keeps)


class OwnEmbedding(Embedding):
    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        rows = super().__call__(tokens)
        return rows + unsteady(rows).to(rows.dtype)


class OwnLogits(Llama3Model):
    def _logits(self, state: Any, indices: list[int]) -> torch.Tensor:
        found = super()._logits(state, indices)
        return found + unsteady(found)


@pytest.mark.parametrize("backend", [pytest.param("native", marks=needs_library), "torch"])
@pytest.mark.parametrize("part", ["embedding", "logits", "patch"])
def test_what_stands_outside_of_a_plan_is_tried(
    narrow: str, backend: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: type[Llama3Model] = OwnLogits
    if part == "embedding":
        model = model_with(lambda net: setattr(net.embed_tokens, "__class__", OwnEmbedding))
    if part == "patch":
        real, model = GatedMLP.__call__, model_with(lambda net: None)

        def patched(self: Any, x: torch.Tensor, run: Any) -> torch.Tensor:
            return real(self, x, run) + unsteady(x).to(x.dtype)

        monkeypatch.setattr(GatedMLP, "__call__", patched)
    assert described(narrow, model, backend=backend).startswith("NOT invariant")


def silent(gate: Gate) -> Gate:
    """Its call only: nothing of it shows in the rows."""
    return lambda x: torch.ones(x.shape[0], 1) + 0 * gate(x)


WEIGHT = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
GATES: dict[str, tuple[Gate, str]] = {
    "numpy": (lambda x: torch.from_numpy(x.float().numpy()[:, :1].copy()), "numpy of"),
    "asarray": (lambda x: torch.from_numpy(np.array(np.asarray(x.float())[:, :1])), "__array__ of"),
    "numbers": (lambda x: torch.tensor([[sum(row)] for row in x.float().tolist()]), "tolist of"),
    "single rows": (
        lambda x: torch.stack([torch.mv(WEIGHT, row.float())[:1] for row in x]),
        "mv of",
    ),
    "some rows": (
        lambda x: functional.pad(functional.linear(x[::3].float(), WEIGHT), (0, 0, 0, 999))[
            : x.shape[0], :1
        ],
        "linear of",
    ),
    "rows meet": (lambda x: x[:, :1].float().sum(0, keepdim=True), "sum of"),
    "a path of few rows": (
        lambda x: torch.sigmoid(x[:, :1].float()) if x.shape[0] < 12 else x[:, :1].float(),
        "sigmoid of",
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_a_call_that_cannot_be_tried_is_named(narrow: str, name: str) -> None:
    gate, told = GATES[name]
    said = described(narrow, model_of(silent(gate)))
    print(said)
    assert said.startswith(f"NOT invariant: {told}"), said
    assert "could not be tried: " in said


def test_an_author_may_answer_for_what_cannot_be_tried(narrow: str) -> None:
    gate = silent(GATES["single rows"][0])
    believed = gated(gate, keeps_bits=True)
    assert described(narrow, with_feed_forward(believed)) == "invariant: a row's bits are its own"
    below = gated(gate, believed)  # with a method of its own, and without a word
    assert described(narrow, with_feed_forward(below)).startswith("NOT invariant: mv of")
    patched = gated(gate, keeps_bits=True)
    patched.__call__ = believed.__call__  # type: ignore[method-assign]
    assert described(narrow, with_feed_forward(patched)).startswith("NOT invariant: mv of")
    wrong = gated(lambda x: 1 + unsteady(x), keeps_bits=True)  # what can be tried, is
    assert described(narrow, with_feed_forward(wrong)).startswith("NOT invariant: rows differ")


@torch.library.custom_op("pilotfish_tests::scores", mutates_args=())
def scores_of(q: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """q: [R, D] and keys: [K, D] -> [R, K], whose bits depend on the number of keys."""
    # Sums of one row and key each: here and there a product's bits depend on how many rows it has.
    return (q[:, None] * keys).sum(-1) * (1 + 1e-3 * keys.shape[0])


class OverKeys(GatedMLP):
    """Reads keys as attention of an author's own does: row by row, or a request at once."""

    keeps_bits = True

    def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        made, plan = super().__call__(x, run), run.plan
        for first, before, rows in zip(plan.offsets, plan.lengths, plan.row_counts, strict=False):
            keys, own = WEIGHT.repeat(3, 1), slice(first, first + rows)
            made[own] += scores_of(x[own].float(), KEYS).amax(1, keepdim=True).to(x.dtype)
            for i in range(rows):
                row = x[first + i][None].float()
                made[first + i] += scores_of(row, keys[: before + i + 1]).amax().to(x.dtype)
        return made


KEYS = torch.randn(TEXT, WIDTH, generator=torch.Generator().manual_seed(1))
"""As many as a pass has rows, and no rows."""


def test_an_axis_of_keys_is_no_row(narrow: str) -> None:
    """It has as many places as the pass has rows, in a call or in all."""
    assert described(narrow, with_feed_forward(OverKeys)) == "invariant: a row's bits are its own"

    def row_by_row(rows: int) -> None:
        keys = torch.randn(rows + 5, WIDTH)
        for i in range(rows):
            scores_of(torch.randn(1, WIDTH), keys[: i + 5 + 1])

    found = tried(row_by_row).found
    assert len(found) == TEXT
    assert {one.problem for one in found} == {
        "no axis of its operands is the rows of a pass that is tried"
    }
    (whole,) = tried(lambda rows: scores_of(torch.randn(rows, WIDTH), KEYS)).found
    assert (whole.problem, whole.is_untried) == ("", False)


class Color(enum.Enum):
    RED, BLUE = 1, 2


@pytest.mark.parametrize(
    "values",
    [(0, 1, 2), (Color.RED, Color.BLUE, Color.RED), ((1,), (2,), (1,)), ({}, {"a": 1}, {})],
)
def test_whatever_an_own_layer_holds_is_a_switch(narrow: str, values: tuple[Any, ...]) -> None:
    def change(network: Any) -> None:
        for block, value in zip(network.layers, values, strict=True):
            block.mlp.__class__ = Own
            block.mlp.value = value

    class Own(HandMade):
        pass

    made: Any = prepared(narrow, model_with(change)).model
    few, _ = shallow(made, is_loaded=False) or (None, 0)
    assert few is not None
    kinds = [block.mlp.value for block in few.network.layers]  # type: ignore[attr-defined]
    assert set(map(repr, kinds)) == set(map(repr, values))


class Inside(Embedding):
    """An embedding without a tensor of its own."""

    def __init__(self, inner: Embedding) -> None:
        self.inner, self.width = inner, inner.width

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(tokens)


def test_an_embedding_without_a_tensor_is_tried_and_what_raises_is_told(
    narrow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DecoderModel, "plan_load", lambda self, infos: None)  # other names
    model = model_with(lambda net: setattr(net, "embed_tokens", Inside(net.embed_tokens)))
    assert described(narrow, model) == "invariant: a row's bits are its own"

    def fails(*args: Any, **options: Any) -> None:
        raise ValueError("no such copy")

    monkeypatch.setattr("pilotfish.models.claims.shallow", fails)
    assert described(narrow, model).endswith("what tries it raised ValueError: no such copy")


@pytest.mark.parametrize(("reach", "told"), [(65, "invariant"), (1, "NOT invariant: it cannot")])
def test_a_text_as_long_as_a_width_is_not_tried(tmp_path: Path, reach: int, told: str) -> None:
    """64 of 65 positions are the model's width, whose columns are no rows."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=200,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=reach,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    gate = silent(lambda x: functional.layer_norm(x.float(), (WIDTH,), WEIGHT[0])[:, :1])
    assert described(str(tmp_path), model_of(gate)).startswith(told)


def test_a_pass_that_is_not_finite_cannot_be_tried(narrow: str) -> None:
    said = described(narrow, model_of(lambda x: unsteady(x) * torch.tensor(float("nan"))))
    assert "it cannot be tried: its logits are not finite" in said


class Foreign:
    """A model that is no Claims."""

    def __init__(self, model: Any, **says: bool) -> None:
        self._model = model
        vars(self).update(says)

    def __getattr__(self, name: str) -> Any:
        if name == "is_invariant":
            raise AttributeError(name)
        return getattr(self._model, name)


def test_inspect_says_of_a_foreign_model_what_it_says_of_itself(narrow: str) -> None:
    made = prepared(narrow, SteadyModel)
    for says, told in (
        ({}, "not known before weights are read: Foreign is tried whole"),
        ({"is_invariant": False}, "NOT invariant: the architecture's model says so"),
        ({"is_invariant": True}, "invariant: a row's bits are its own"),
    ):
        foreign: Any = Foreign(made.model, **says)
        assert probe_arithmetic(_with_model(made, foreign)).described == told


def _with_model(made: Prepared, model: Any) -> Prepared:
    other = copy.copy(made)
    object.__setattr__(other, "model", model)
    return other


def test_a_subject_without_wide_examples_is_not_said_to_be_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pilotfish.testing.subject.examples_of", lambda *names: Examples(wide={}))
    with tiny_subjects("GraniteForCausalLM", load_registry()) as subjects:
        one = next(iter(subjects))
        (result,) = run([one], [promise_named("rows are their own at real widths")])
    assert result.status == "not known"
    assert "nothing of real width is tried" in result.said


def test_every_pass_is_watched(narrow: str) -> None:
    model = model_of(silent(GATES["a path of few rows"][0]))
    made: Any = prepared(narrow, model).model
    few, vocab_size = shallow(made, is_loaded=False) or (None, 0)
    assert few is not None
    found = probe_passes(few, vocab_size)
    assert found.unlike == ""
    assert [one.name for one in found.operations] == ["sigmoid"]
    assert found.why_not_invariant != ""
