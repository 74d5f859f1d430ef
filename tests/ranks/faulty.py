"""A plugin whose model fails on rank 1, at a stage and in a way that the environment names."""

from __future__ import annotations

import os
from typing import Any

from pilotfish.plugin_specs import ArchitectureSpec, Plugin
from pilotfish.plugins import load_registry
from pilotfish.protocols import ModelInputs, ModelOutputs
from pilotfish.registry import Registry
from pilotfish_llama3.model import Llama3Model
from ranks.fake import fail

ARCHITECTURE, VARIABLE = "LlamaForCausalLM", "TEST_FAULT"


class FaultyModel(Llama3Model):
    """VARIABLE is "stage how": load, prefill, decode or verify; and as `fake.fail` has it."""

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
        wanted, _, how = os.environ.get(VARIABLE, "").partition(" ")
        if stage == wanted and self.groups.tensor.rank == 1:
            fail(how)


def registry() -> Registry:
    """The installed plugins, and this one in the place of llama3."""
    spec = ArchitectureSpec(
        names=(ARCHITECTURE,),
        config="pilotfish_llama3.config:Llama3Config",
        model=f"{__name__}:FaultyModel",
        capabilities=frozenset({"verify"}),
    )
    others = (one for one in load_registry().plugins if ARCHITECTURE not in names_of(one))
    return Registry(plugins=(*others, Plugin(name="faulty", architectures=(spec,))))


def names_of(plugin: Plugin) -> list[str]:
    """Of the architectures that it serves."""
    return [name for spec in plugin.architectures for name in spec.names]
