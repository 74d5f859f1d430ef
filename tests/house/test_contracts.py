"""A plugin that does not keep to a contract is told which member, of which contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from pilotfish import LLM, SpeculativeConfig, load_registry
from pilotfish.contracts import check_spelling
from pilotfish.errors import ConfigError, PluginError
from pilotfish.layers.block import PreNormBlock
from pilotfish.models.decoder_model import DecoderModel
from pilotfish.protocols import OptionalOfModel, ReturnHiddenStates
from pilotfish.protocols.checks import check_target
from pilotfish.protocols.optional import of_config, of_model
from pilotfish.registry import Plugin, Registry, SpeculatorSpec
from pilotfish.speculation import StatelessConfig
from pilotfish.state import SlotStateSpec, StateManager
from pilotfish.testing import save_tiny
from pilotfish.testing.drafters import ScriptedProposer
from support.toy_model import ToyConfig, ToyModel


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contracts")
    return save_tiny("LlamaForCausalLM", "plain", folder, load_registry())


class Misnamed:
    """A config with a getter of another name."""

    get_max_seq_length = ToyConfig.get_max_seq_len
    initialize, finalize = ToyConfig.initialize, ToyConfig.finalize
    get_kv_params, get_state_specs = ToyConfig.get_kv_params, ToyConfig.get_state_specs


def test_a_config_without_a_getter_is_told_the_getter() -> None:
    check_target("Toy", ToyConfig, ToyModel)
    with pytest.raises(PluginError) as caught:
        check_target("Toy", Misnamed, ToyModel)
    assert str(caught.value) == (
        f"the config of Toy is {__name__}.Misnamed, which has no get_max_seq_len; wanted all that "
        "pilotfish.protocols.config.ArchConfig says (did you mean get_max_seq_length?)"
    )
    with pytest.raises(PluginError, match=r"the model of Toy is builtins\.object, which has no "):
        check_target("Toy", ToyConfig, object)


class SaltyConfig(ToyConfig):
    """Whose pages would be shared between all lengths, had nobody looked."""

    def prefix_salts(self, num_tokens: int) -> bytes:
        return b"%d" % num_tokens


class PlainModel(ToyModel):
    """One that claims nothing, in a name that nobody reads."""

    is_invarient = True


def test_an_optional_member_that_is_misspelt_is_told() -> None:
    said = f"the config of Toy is {__name__}.SaltyConfig, whose 'prefix_salts' nobody reads; wanted"
    with pytest.raises(PluginError, match=f"{said} 'prefix_salt', or a name"):
        check_target("Toy", SaltyConfig, ToyModel)
    said = "whose 'is_invarient' nobody reads; wanted 'is_invariant"
    with pytest.raises(PluginError, match=said):
        check_target("Toy", ToyConfig, PlainModel)


def test_what_a_class_inherits_may_be_misspelt_too_and_a_helper_is_no_mistake() -> None:
    def own(**members: Any) -> type:
        return type("Own", (DecoderModel,), {"__module__": "own", **members})

    with pytest.raises(PluginError, match="whose 'keep_bits' nobody reads; wanted 'keeps_bits'"):
        check_spelling(own(keep_bits=True), OptionalOfModel, "the model")
    check_spelling(own(embeds=None, released=None, states=None), OptionalOfModel, "the model")


def test_what_a_class_does_not_say_is_as_the_contract_has_it() -> None:
    class Own:
        keeps_bits = True

        def without_ignored(self, infos: Any) -> Any:
            return {}

        def prefix_salt(self, num_tokens: int) -> bytes:
            return b"salt"

    own, other = of_model(Own()), of_model(object())
    assert (own.keeps_bits, other.keeps_bits) == (True, False)
    assert (own.is_invariant, own.why_not_invariant) == (None, "")
    assert own.plan_load({}) is own.plan_pass() is None  # type: ignore[func-returns-value]
    infos: Any = {"a": 1}
    assert (own.without_ignored(infos), other.without_ignored(infos)) == ({}, infos)
    assert list(own.staying(infos)) == []
    assert (of_config(Own()).prefix_salt(3), of_config(object()).prefix_salt(3)) == (b"salt", b"")
    assert of_config(object()).get_image_memory() is None

    class Failing:
        @property
        def recompute_length(self) -> int:
            return self.no_such  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(AttributeError, match="no_such"):
        _ = of_config(Failing()).recompute_length
    assert dict(of_config(object()).unserved_token_ids) == {}


@attrs.frozen(kw_only=True)
class WithSlots(StatelessConfig):
    """A drafter's config that asks for state outside pages."""

    def get_state_specs(self) -> Any:
        return (SlotStateSpec(name="rnn", num_layers=1, slot_shape=(4,), dtype="float32"),)


@attrs.frozen(kw_only=True)
class WithOddMode(StatelessConfig):
    """A mode that there is not."""

    return_hidden_states: Any = "everything"


@attrs.frozen(kw_only=True)
class WithoutTaps(StatelessConfig):
    """Selects nothing."""

    return_hidden_states: Any = ReturnHiddenStates.SELECTED


@attrs.frozen(kw_only=True)
class FarTaps(StatelessConfig):
    """Selects what there is not."""

    return_hidden_states: Any = ReturnHiddenStates.SELECTED
    aux_hidden_state_layers: tuple[int, ...] = (0, 99)


class Bare:
    """No attributes at all."""

    initialize = classmethod(lambda cls, *args, **options: cls())
    finalize = num_scratch_rows = get_state_specs = lambda self, *args: ()


class Unable:
    """A proposer that proposes nothing."""

    def load_model(self, weights: Any) -> None:
        """Nothing."""

    def release(self, request_id: str) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("config", "model", "said"),
    [
        (WithSlots, ScriptedProposer, r"declares the slots rnn; wanted paged caches alone"),
        (
            WithOddMode,
            ScriptedProposer,
            r"has return_hidden_states 'everything' and aux_hidden_state_layers \(\)",
        ),
        (
            WithoutTaps,
            ScriptedProposer,
            r"aux_hidden_state_layers \(\); wanted .* or SELECTED with some",
        ),
        (FarTaps, ScriptedProposer, r"aux_hidden_state_layers is \[0, 99\] with"),
        (
            Bare,
            ScriptedProposer,
            "has no return_hidden_states, aux_hidden_state_layers, max_draft_tokens, lookahead",
        ),
        (StatelessConfig, Unable, "drafter of the method 'own' is .*Unable, which has no propose"),
    ],
)
def test_a_drafter_is_told_what_no_engine_gives(
    llama: Path, config: type, model: type, said: str
) -> None:
    spec = SpeculatorSpec(
        method="own",
        config=f"{config.__module__}:{config.__name__}",
        model=f"{model.__module__}:{model.__name__}",
    )
    plugins = (*load_registry().plugins, Plugin(name="own", speculators=(spec,)))
    with pytest.raises((PluginError, ConfigError), match=said):
        LLM(
            str(llama),
            speculative=SpeculativeConfig(method="own"),
            registry=Registry(plugins=plugins),
        )


def test_a_cache_is_told_what_it_lacks() -> None:
    class Forgetful:
        def claim(self, request_id: str) -> None:
            """Nothing."""

    for cache, said in ((None, "NoneType, which has no "), (Forgetful(), "reserve, commit, ")):
        with pytest.raises(PluginError, match=rf"what `make_cache` returned is .*{said}"):
            StateManager(num_pages=2, page_size_tokens=4, slot_caches=[cache])  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": torch.float32}, r"dtype is torch.float32; wanted one of these names: float32"),
        ({"slot_shape": 4}, r"slot_shape is 4; wanted a tuple of sizes, as in \(64,\)"),
        ({"boundary_shape": (-1,)}, r"boundary_shape is \(-1,\); wanted a tuple of sizes"),
    ],
)
def test_a_slot_spec_names_the_field_that_is_wrong(options: dict[str, Any], said: str) -> None:
    right: dict[str, Any] = {
        "name": "rnn",
        "num_layers": 1,
        "slot_shape": (4,),
        "dtype": "float32",
    }
    assert SlotStateSpec(**right).bytes_per_slot == 16
    with pytest.raises(ConfigError, match=f"SlotStateSpec.{said}"):
        SlotStateSpec(**{**right, **options})


def test_a_block_that_closes_the_stream_is_told_what_a_block_returns(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = PreNormBlock.__call__
    monkeypatch.setattr(PreNormBlock, "__call__", lambda *args: real(*args)[0])
    for backend in ("torch", "auto"):
        with pytest.raises(
            PluginError, match=r"the block PreNormBlock returned Tensor; wanted \(x"
        ):
            LLM(str(llama), backend=backend).generate([1, 2, 3])  # type: ignore[arg-type]
