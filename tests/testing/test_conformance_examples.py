"""Examples: one that does not load is told by name; what each tries is listed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pilotfish import load_registry
from pilotfish.cli import main
from pilotfish.testing import Broken, promise_named, run, tiny_subjects
from pilotfish.weights import WeightRules
from pilotfish_llama3.model import Llama3Model


def test_an_example_that_does_not_load_fails_by_name_and_the_others_are_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configs = {"LlamaForCausalLM": {"bad": {"hidden_act": "gelu"}, "plain": {}}}
    monkeypatch.setattr("pilotfish_llama3.examples._CONFIGS", configs)
    chosen = [promise_named("optional members are spelt right"), promise_named("config round trip")]
    with tiny_subjects("LlamaForCausalLM", load_registry(), dtypes=("float32",)) as subjects:
        found = [(r.subject, r.status) for r in run(subjects, chosen)]
        with pytest.raises(Broken, match="hidden_act"):
            chosen[0].keep(subjects[0])  # as a test of its own
    assert found == [("bad", "FAILED"), ("plain", "ok"), ("bad", "not known"), ("plain", "ok")]


def test_weight_rules_that_miss_a_tensor_are_told_as_the_plugins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`verify` goes on, and says whose fault it is that a file does not fit."""
    real = Llama3Model.weight_rules

    def misses(self: Any) -> WeightRules:
        rules = [rule for rule in real(self).rules if not rule.parameter.endswith("qkv.bias")]
        return WeightRules(rules=rules, ties=real(self).ties)

    configs = {"LlamaForCausalLM": {"plain": {}, "biased": {"attention_bias": True}}}
    monkeypatch.setattr("pilotfish_llama3.examples._CONFIGS", configs)
    monkeypatch.setattr(Llama3Model, "weight_rules", misses)
    promise = "optional members are spelt right"
    assert main(["verify", "--architecture", "LlamaForCausalLM", "--promise", promise]) == 1
    said = capsys.readouterr().out
    assert "biased: got the checkpoint does not fit the architecture" in said
    assert "the kit wrote this checkpoint with transformers, so the plugin's weight rules" in said
    assert "plain:" not in said


def test_verify_lists_the_configs_of_an_architectures_examples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With what stands at a default, so that options of one value can be seen."""
    configs = {"LlamaForCausalLM": {"plain": {}, "biased": {"attention_bias": True}}}
    monkeypatch.setattr("pilotfish_llama3.examples._CONFIGS", configs)
    assert main(["verify", "--architecture", "LlamaForCausalLM", "--list"]) == 0
    lines = [line.partition(": ") for line in capsys.readouterr().out.splitlines()]
    found = {name: json.loads(config) for name, _, config in lines}
    assert [found[name]["attention_bias"] for name in ("plain", "biased")] == [False, True]
    assert found["plain"]["head_dim"] == found["plain"]["hidden_size"] // 4
