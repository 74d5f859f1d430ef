"""A plugin whose model and draft fail on rank 1, at a stage and in a way that the environment
names.
"""

from __future__ import annotations

import os
from typing import Any

from pilotfish.plugin_specs import ArchitectureSpec, Plugin, SpeculatorSpec
from pilotfish.plugins import load_registry
from pilotfish.protocols import ModelInputs, ModelOutputs
from pilotfish.registry import Registry
from pilotfish.speculation import DraftOutputs, DraftRows
from pilotfish_eagle.model import EagleModel
from pilotfish_llama3.model import Llama3Model
from ranks.fake import fail

ARCHITECTURE, VARIABLE = "LlamaForCausalLM", "TEST_FAULT"
FAULTY_METHOD = "faulty eagle"


class FaultyModel(Llama3Model):
    """VARIABLE is "stage how": load, prefill, decode, verify, draft; and as `fake.fail` has it."""

    def load_model(self, *args: Any) -> None:
        self._fail_at("load")
        super().load_model(*args)

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        kv = model_inputs.kv_cache_inputs
        assert kv is not None
        stage = "decode" if max(kv.row_counts) == 1 else "verify" if min(kv.lengths) else "prefill"
        self._fail_at(stage)
        return super().execute(model_inputs)

    def _fail_at(self, stage: str) -> None:
        fail_at(stage, self.groups.tensor.rank)


class FaultyDraft(EagleModel):
    """At the stage "draft": in its third pass."""

    num_passes = 0

    def forward(self, rows: DraftRows) -> DraftOutputs:
        self.num_passes += 1
        if self.num_passes == 3:
            fail_at("draft", self.target.groups.tensor.rank)
        return super().forward(rows)


def fail_at(stage: str, rank: int) -> None:
    wanted, _, how = os.environ.get(VARIABLE, "").partition(" ")
    if stage == wanted and rank == 1:
        fail(how)


def registry() -> Registry:
    """The installed plugins, and this one in the place of llama3."""
    spec = ArchitectureSpec(
        names=(ARCHITECTURE,),
        config="pilotfish_llama3.config:Llama3Config",
        model=f"{__name__}:FaultyModel",
        capabilities=frozenset({"verify"}),
    )
    draft = SpeculatorSpec(
        method=FAULTY_METHOD,
        draft_architectures=("LlamaForCausalLMEagle3",),
        driver="sequential",
        config="pilotfish_eagle.config:EagleConfig",
        model=f"{__name__}:FaultyDraft",
        needs=frozenset({"verify"}),
    )
    others = (one for one in load_registry().plugins if ARCHITECTURE not in names_of(one))
    faulty = Plugin(name="faulty", architectures=(spec,), speculators=(draft,))
    return Registry(plugins=(*others, faulty))


def names_of(plugin: Plugin) -> list[str]:
    """Of the architectures that it serves."""
    return [name for spec in plugin.architectures for name in spec.names]
