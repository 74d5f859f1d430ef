"""Routing: exact pairs, composition by capabilities, and errors that say what would fit."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.errors import PluginConflictError, PluginError, RouteError, UserError
from pilotfish.nearest import did_you_mean, did_you_mean_model, nearest
from pilotfish.registry import (
    ArchitectureSpec,
    Plugin,
    PluginFailure,
    Registry,
    Route,
    SpeculatorSpec,
)

FRUIT = ArchitectureSpec(
    names=("AppleForCausalLM", "PearForCausalLM"),
    config="fractions:Fraction",
    model="collections:OrderedDict",
    gguf_architectures=("apple",),
    gguf_config="json:loads",
    capabilities={"verify", "aux_hidden_states", "embed", "lm_head"},
)
NUT = ArchitectureSpec(
    names=("NutForCausalLM",), config="fractions:Fraction", model="collections:OrderedDict",
    capabilities={"verify"}, gguf_architectures=("nut",),
)  # fmt: skip

WITHOUT_GGUF = attrs.evolve(NUT, gguf_architectures=())


def speculator(method: str, *drafts: str, **fields: Any) -> SpeculatorSpec:
    return SpeculatorSpec(
        method=method,
        draft_architectures=drafts,
        config="decimal:Decimal",
        model="string:Template",
        **fields,
    )


WORM = speculator("worm", "WormDraft", needs={"aux_hidden_states", "lm_head"})
WASP = speculator("wasp", needs={"verify"})
ORCHARD = Plugin(name="orchard", distribution="orchard-dist", version="2.1",
                 architectures=(FRUIT, NUT))  # fmt: skip
INSECTS = Plugin(name="insects", distribution="insects-dist", version="0.3",
                 speculators=(WORM, WASP))  # fmt: skip
REGISTRY = Registry(plugins=(ORCHARD, INSECTS))


def refusal(registry: Registry, *asked: str | None) -> RouteError:
    with pytest.raises(RouteError) as caught:
        registry.route(*asked)  # type: ignore[arg-type]
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("name", ["AppleForCausalLM", "PearForCausalLM"])
def test_route_without_a_method_is_the_target_alone(name: str) -> None:
    route = REGISTRY.route(name)
    assert route == Route(hf_architecture=name, architecture=FRUIT, plugin=ORCHARD)
    assert not route.needs_draft


def test_route_composes_plugins_that_have_never_met() -> None:
    route = REGISTRY.route("PearForCausalLM", "worm", "WormDraft")
    assert (route.architecture, route.plugin) == (FRUIT, ORCHARD)
    assert (route.speculator, route.speculator_plugin) == (WORM, INSECTS)
    assert route.needs_draft
    assert not REGISTRY.route("NutForCausalLM", "wasp").needs_draft


def test_an_exact_pair_wins_over_composition_whatever_the_order() -> None:
    pair = speculator("worm", "WormDraft", needs={"nothing has it"}, targets=("PearForCausalLM",))
    special = Plugin(name="special", speculators=(pair,))
    for plugins in ((special, ORCHARD, INSECTS), (ORCHARD, INSECTS, special)):
        registry = Registry(plugins=plugins)
        assert registry.route("PearForCausalLM", "worm", "WormDraft").speculator is pair
        assert registry.route("PearForCausalLM", "worm").speculator is pair
        assert registry.route("AppleForCausalLM", "worm", "WormDraft").speculator is WORM


def test_an_exact_pair_that_does_not_read_the_draft_leaves_it_to_composition() -> None:
    pair = speculator("worm", "OtherDraft", targets=("PearForCausalLM",))
    registry = Registry(plugins=(ORCHARD, INSECTS, Plugin(name="special", speculators=(pair,))))
    assert registry.route("PearForCausalLM", "worm", "WormDraft").speculator is WORM
    assert registry.route("PearForCausalLM", "worm", "OtherDraft").speculator is pair


def test_an_unknown_architecture_names_near_ones_and_all_that_are_served() -> None:
    said = str(refusal(REGISTRY, "AppelForCausalLM"))
    assert "'AppelForCausalLM' (did you mean AppleForCausalLM" in said
    assert "served: AppleForCausalLM, NutForCausalLM, PearForCausalLM" in said
    assert "served: none" in str(refusal(Registry(), "AppleForCausalLM"))


def test_an_unknown_method_names_near_ones_and_those_that_fit_the_target() -> None:
    said = str(refusal(REGISTRY, "NutForCausalLM", "wasps"))
    assert "the method 'wasps' (did you mean wasp?)" in said
    assert said.endswith("methods that fit NutForCausalLM: wasp")
    assert "methods that fit PearForCausalLM: wasp, worm" in str(
        refusal(REGISTRY, "PearForCausalLM", "nothing")
    )


def test_a_pair_that_does_not_fit_says_what_is_missing_and_what_fits() -> None:
    said = str(refusal(REGISTRY, "NutForCausalLM", "worm", "WormDraft"))
    assert (
        "plugin insects (insects-dist 0.3) needs aux_hidden_states, lm_head of its target" in said
    )
    assert "which offers verify" in said
    assert said.endswith("methods that fit it: wasp")


def test_a_pair_made_for_other_targets_says_which() -> None:
    pair = speculator("pit", targets=("PearForCausalLM",))
    registry = Registry(plugins=(ORCHARD, Plugin(name="special", speculators=(pair,))))
    said = str(refusal(registry, "AppleForCausalLM", "pit"))
    assert "plugin special serves only PearForCausalLM" in said
    assert said.endswith("methods that fit it: none")


def test_a_draft_that_the_method_does_not_read_is_refused() -> None:
    said = str(refusal(REGISTRY, "PearForCausalLM", "worm", "WormDarft"))
    assert "does not read a draft 'WormDarft' (did you mean WormDraft?)" in said
    assert "it reads: WormDraft" in said
    said = str(refusal(REGISTRY, "PearForCausalLM", "wasp", "WormDraft"))
    assert "methods that read it: worm; 'wasp' reads: none" in said


def test_a_draft_without_a_method_names_the_methods_that_read_it() -> None:
    said = str(refusal(REGISTRY, "PearForCausalLM", None, "WormDraft"))
    assert said.endswith("given without a method; methods that read it: worm")


def test_a_method_that_depends_on_the_draft_asks_for_it() -> None:
    other = Plugin(name="other", speculators=(speculator("worm", "GrubDraft"),))
    registry = Registry(plugins=(ORCHARD, INSECTS, other))
    said = str(refusal(registry, "PearForCausalLM", "worm"))
    assert said.endswith("give a draft of one of: GrubDraft, WormDraft")
    found = registry.route("PearForCausalLM", "worm", "GrubDraft")
    assert found.speculator_plugin is other


def failure(name: str) -> PluginFailure:
    error = PluginError(f"plugin {name} failed to load: KeyError: '{name} key'")
    error.__cause__ = KeyError(f"{name} key")
    return PluginFailure(name=name, distribution="d", version="1", error=error)


@pytest.mark.parametrize(
    "asked",
    [("RottenForCausalLM",), ("PearForCausalLM", "rot"), ("PearForCausalLM", "worm", "RotDraft")],
)
def test_every_refusal_chains_the_plugin_that_failed(asked: tuple[str, ...]) -> None:
    registry = attrs.evolve(REGISTRY, failures=(failure("rotten"),))
    error = refusal(registry, *asked)
    assert "plugin rotten failed to load: KeyError: 'rotten key'" in str(error)
    assert error.__cause__ is registry.failures[0].error
    assert isinstance(error.__cause__.__cause__, KeyError)


def test_several_failures_are_chained_as_a_group() -> None:
    registry = attrs.evolve(REGISTRY, failures=(failure("a"), failure("b")))
    error = refusal(registry, "RottenForCausalLM")
    assert isinstance(error.__cause__, ExceptionGroup)
    assert error.__cause__.exceptions == tuple(f.error for f in registry.failures)


def test_a_refusal_mentions_the_limit_on_loading() -> None:
    said = str(refusal(attrs.evolve(REGISTRY, limited_to=("orchard",)), "RottenForCausalLM"))
    assert "PILOTFISH_PLUGINS limits loading to orchard" in said


@pytest.mark.parametrize(
    ("second", "kind"),
    [
        ({"architectures": (WITHOUT_GGUF,)},
         "architecture 'NutForCausalLM'"),
        ({"architectures": (attrs.evolve(NUT, names=("OtherForCausalLM",)),)},
         "GGUF architecture 'nut'"),
        ({"speculators": (WASP,)}, "method 'wasp of no draft on any target'"),
    ],
)  # fmt: skip
def test_a_name_claimed_twice_names_both_distributions(second: Any, kind: str) -> None:
    other = Plugin(name="other", distribution="other-dist", version="9.9", **second)
    with pytest.raises(PluginConflictError) as caught:
        Registry(plugins=(ORCHARD, INSECTS, other))
    said = str(caught.value)
    first = "insects (insects-dist 0.3)" if "wasp" in kind else "orchard (orchard-dist 2.1)"
    assert f"the {kind} is claimed by plugin {first} and by plugin other (other-dist 9.9)" in said


def test_a_route_imports_lazily_and_resolves_what_it_names() -> None:
    import collections
    import decimal
    import fractions
    import string

    route = REGISTRY.route("PearForCausalLM", "worm", "WormDraft")
    assert route.config_class() is fractions.Fraction  # type: ignore[comparison-overlap]
    assert route.model_class() is collections.OrderedDict  # type: ignore[comparison-overlap]
    assert route.speculator_config_class() is decimal.Decimal  # type: ignore[comparison-overlap]
    assert route.speculator_model_class() is string.Template


def test_a_route_without_speculator_has_no_draft_classes() -> None:
    with pytest.raises(RouteError, match="has no speculator"):
        REGISTRY.route("PearForCausalLM").speculator_model_class()


@pytest.mark.parametrize(
    ("reference", "said", "cause"),
    [
        ("no_such_module:Model", "importing no_such_module failed: ModuleNotFoundError",
         ModuleNotFoundError),
        ("collections:OrderedDcit", r"has no 'OrderedDcit' \(did you mean OrderedDict",
         AttributeError),
        ("raises_at_import:Model", "importing raises_at_import failed: ZeroDivisionError",
         ZeroDivisionError),
    ],
)  # fmt: skip
def test_a_broken_reference_names_the_plugin_and_chains_the_import(
    reference: str,
    said: str,
    cause: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "raises_at_import.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    broken = Plugin(name="broken", architectures=(attrs.evolve(NUT, model=reference),))
    route = Registry(plugins=(broken,)).route("NutForCausalLM")
    with pytest.raises(PluginError, match=f"plugin broken refers to .*{said}") as caught:
        route.model_class()
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("config", "no_colon", "config is 'no_colon'; wanted a lazy reference"),
        ("model", "module:", "model is 'module:'"),
        ("model", ":Class", "model is ':Class'"),
        ("model", "a:b.c", "model is 'a:b.c'"),
        ("gguf_config", "x", "gguf_config is 'x'"),
        ("names", "AppleForCausalLM", "'AppleForCausalLM' where a sequence of names is wanted"),
        ("names", (), "names is (); wanted a name at least"),
        ("names", ("",), "names is ('',)"),
        ("capabilities", "aux_hidden_states", "'aux_hidden_states' where a set of names is wanted"),
    ],
)
def test_a_malformed_architecture_spec_names_what_it_got(field: str, value: Any, said: str) -> None:
    with pytest.raises(PluginError, match=re.escape(said)):
        attrs.evolve(NUT, **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("method", ""), ("driver", "parallel"), ("config", "x"), ("needs", "aux_hidden_states"),
     ("draft_architectures", "WormDraft"), ("targets", "PearForCausalLM")],
)  # fmt: skip
def test_a_malformed_speculator_spec_names_its_value(field: str, value: Any) -> None:
    with pytest.raises(PluginError, match=repr(value)):
        attrs.evolve(WORM, **{field: value})


def test_architecture_for_gguf_finds_the_spec_and_its_config_reader() -> None:
    import json

    assert REGISTRY.architecture_for_gguf("apple") is FRUIT
    assert REGISTRY.gguf_config("apple") is json.loads
    with pytest.raises(RouteError, match=r"'appel' \(did you mean apple\?\); read: apple, nut"):
        REGISTRY.architecture_for_gguf("appel")
    with pytest.raises(RouteError, match=r"'nut' but has no gguf_config"):
        REGISTRY.gguf_config("nut")


def test_a_spec_reads_gguf_where_it_claims_a_gguf_architecture() -> None:
    assert FRUIT.weight_formats == ("safetensors", "gguf")
    assert WITHOUT_GGUF.weight_formats == ("safetensors",)


def test_a_registry_lists_what_it_serves() -> None:
    assert REGISTRY.architectures == ("AppleForCausalLM", "NutForCausalLM", "PearForCausalLM")
    assert REGISTRY.methods == ("wasp", "worm")


def test_a_registry_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        REGISTRY.plugins = ()  # type: ignore[misc]


def test_the_registry_imports_no_torch() -> None:
    code = "import pilotfish.registry, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(st.text(min_size=1, max_size=12), st.lists(st.text(max_size=12), max_size=6))
def test_a_name_is_always_nearest_to_itself(name: str, others: list[str]) -> None:
    assert nearest(name, [name, *others])[0] == name
    assert set(nearest(name, others)) <= set(others)


def test_near_names_ignore_case_and_far_names_are_not_offered() -> None:
    assert did_you_mean("LLM", ["llm", "xyz"]) == " (did you mean llm?)"
    flags = ["--image", "--page-size", "--max-tokens"]
    assert nearest("--images", flags) == ["--image"], "those far behind the likest are no help"
    assert did_you_mean("abcdef", ["uvwxyz"]) == ""


SERVED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("MistralModel", "MistralForCausalLM"),
        ("LlamaForCausalML", "LlamaForCausalLM"),
        ("LlmaForCausalLM", "LlamaForCausalLM"),
        ("Qwne3ForCausalLM", "Qwen3ForCausalLM"),
        ("GptOssForCausalLM", ""),
        ("MixtralForCausalLM", ""),
        ("Ministral3ForCausalLM", ""),
        ("Qwen2ForCausalLM", ""),
        ("Qwen3MoeForCausalLM", ""),
        ("Qwen3VLForConditionalGeneration", ""),
        ("PhiForCausalLM", ""),
        ("LlamaForSequenceClassification", ""),
    ],
)
def test_another_model_is_no_slip_of_the_pen(name: str, meant: str) -> None:
    assert did_you_mean_model(name, SERVED) == (f" (did you mean {meant}?)" if meant else "")
    assert did_you_mean_model("DFlash2DraftModel", ["DFlashDraftModel"]) == ""
    assert did_you_mean_model("gemma3", ["gemma"]) == ""
