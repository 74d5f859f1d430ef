"""An author's mistakes: the kit, or the product, says which contract is not kept, and where."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch

from pilotfish import LLM, load_registry
from pilotfish.contracts import misspelt
from pilotfish.layers.block import PreNormBlock
from pilotfish.layers.mlp import GatedMLP
from pilotfish.testing import Subject, check, promise_named, tiny_subjects
from pilotfish.testing.promises.options import _others
from pilotfish.weights import Piece, Rule, Transform, WeightRules
from pilotfish_llama3.model import Llama3Model

Patch = pytest.MonkeyPatch
BATCH, WIDTHS = "batch equals singles", "rows are their own at real widths"


def outcome(*promises: str, architecture: str = "LlamaForCausalLM") -> list[tuple[str, str]]:
    options: dict[str, Any] = {"only": ["plain"], "dtypes": ("float32",)}
    with tiny_subjects(architecture, load_registry(), **options) as (subject,):
        found = [check(promise_named(promise), subject) for promise in promises]
    return [(result.status, result.said) for result in found]


def with_blocks(patch: Patch, change: Callable[[Any], None]) -> None:
    real = Llama3Model.build_network

    def build(self: Any) -> Any:
        network = real(self)
        for block in network.layers:
            change(block)
        return network

    patch.setattr(Llama3Model, "build_network", build)


class Wide(GatedMLP):
    def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        return super().__call__(x.double(), run)


def test_rows_of_float64_are_told_once_and_where_they_are_made(monkeypatch: Patch) -> None:
    with_blocks(monkeypatch, lambda block: setattr(block.mlp, "__class__", Wide))
    (first, said), (second, after) = outcome(BATCH, WIDTHS)
    assert (first, second) == ("FAILED", "not known")
    assert "a model that cannot be run: PluginError: float64 rows reached a Linear" in said
    assert "test_plugin_contracts.py:" in said
    assert after == "the model cannot be run: PluginError, as told above"


class Forgetful(GatedMLP):
    """Says what differs from pass to pass."""

    def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        raise KeyError(f"{len(x)} rows at {id(run)}")


def test_what_fails_in_other_words_each_time_is_told_once_too(monkeypatch: Patch) -> None:
    with_blocks(monkeypatch, lambda block: setattr(block.mlp, "__class__", Forgetful))
    (first, said), second = outcome(BATCH, WIDTHS)
    assert first == "FAILED"
    assert "a model that cannot be run: KeyError" in said
    assert second == ("not known", "the model cannot be run: KeyError, as told above")


def test_a_function_in_a_layers_place_is_named(monkeypatch: Patch) -> None:
    def change(block: Any) -> None:
        real = block.mlp
        block.mlp = lambda x, run: real(x, run) * 1

    with_blocks(monkeypatch, change)
    ((status, said),) = outcome(BATCH)
    assert status == "FAILED"
    assert re.search(r"PreNormBlock\.mlp is a function.* wanted a Layer", said)


def test_a_transform_whose_shape_lies_is_named(monkeypatch: Patch) -> None:
    real = Llama3Model.weight_rules
    turned = Transform(apply=lambda tensor: tensor.T)

    def rules(self: Any) -> WeightRules:
        made = real(self)
        changed = [
            Rule(rule.parameter, Piece("layers.{layer}.mlp.down_proj.weight", transform=turned))
            if rule.parameter.endswith("mlp.down.weight")
            else rule
            for rule in made.rules
        ]
        return attrs.evolve(made, rules=tuple(changed))

    monkeypatch.setattr(Llama3Model, "weight_rules", rules)
    ((status, said),) = outcome(BATCH)
    assert status == "FAILED"
    assert (
        "PluginError: the Transform of model.layers.0.mlp.down_proj.weight made [100, 72]" in said
    )
    assert "wanted [72, 100], which its `shape` says" in said


class Hidden(GatedMLP):
    """Something that no try says anything of."""

    def __call__(self, x: torch.Tensor, run: Any) -> torch.Tensor:
        steps = torch.stack([torch.sigmoid(row) * 0 for row in x.float()])
        return super().__call__(x, run) + steps.to(x.dtype)


class OwnBlock(PreNormBlock):
    def __call__(self, x: Any, residual: Any, run: Any) -> Any:
        return super().__call__(x, residual, run)


def test_every_class_that_does_not_say_keeps_bits_is_named(monkeypatch: Patch) -> None:
    """What cannot be tried is not known, and not broken."""

    def change(block: Any) -> None:
        block.__class__, block.mlp.__class__ = OwnBlock, Hidden

    with_blocks(monkeypatch, change)
    ((status, said),) = outcome(WIDTHS)
    assert status == "not known"
    assert "sigmoid of" in said
    assert "could not be tried" in said
    assert "`keeps_bits = True` is missing in Llama3Model, OwnBlock, Hidden" in said
    monkeypatch.setattr(Hidden, "keeps_bits", True, raising=False)
    ((status, said),) = outcome(WIDTHS)
    assert said.endswith("`keeps_bits = True` is missing in Llama3Model, OwnBlock")


def test_a_member_with_one_letter_wrong_is_misspelt() -> None:
    def of(**members: Any) -> list[tuple[str, str]]:
        return list(misspelt(type("Own", (), {"__module__": "own", **members}), {"clear", "keep"}))

    assert of(cleer=None) == [("cleer", "clear")]
    assert of(claer=None) == [("claer", "clear")]
    assert of(cleer=None, clear=None) == []
    assert of(kept=None, clean_up=None, _cleer=None) == []


def test_equal_tokens_with_other_log_probabilities_are_told_by_these(monkeypatch: Patch) -> None:
    real = LLM.generate

    def wrong(self: LLM, *args: Any, **options: Any) -> Any:
        outputs = real(self, *args, **options)
        if not self.num_preemptions:
            return outputs
        first = outputs[0]
        other = attrs.evolve(first.logprobs[1], logprob=-7.5)
        changed = [first.logprobs[0], other, *first.logprobs[2:]]
        return [attrs.evolve(first, logprobs=changed), *outputs[1:]]

    monkeypatch.setattr(LLM, "generate", wrong)
    ((status, said),) = outcome("tiny pools do not matter")
    assert status == "FAILED"
    assert ", with the same tokens: TokenLogprobs(" in said
    assert "logprob=-7.5" in said.partition("wanted")[0]
    assert " of token 1, as with many pages" in said.partition("wanted log probabilities")[2]


def test_an_optional_number_is_tried_without() -> None:
    assert _others(50.0) == [75.25, 6.25, None]
    assert _others(None) == [3, 0.5]


def test_a_model_without_pages_is_told_what_to_declare() -> None:
    with tiny_subjects("LlamaForCausalLM", load_registry(), only=["plain"]) as (subject,):
        one: Subject = subject
        session = one.session()
        session.add("a", [1, 2])
        inputs = attrs.evolve(session.inputs({"a": 2}), kv_cache_inputs=None)
        with pytest.raises(ValueError, match=r"KVCacheParams\(num_layers=0, num_kv_heads=1"):
            session.execute(inputs)
