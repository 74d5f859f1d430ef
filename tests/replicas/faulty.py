"""A plugin whose model fails on one rank of its replica, as the environment of its process says."""

from __future__ import annotations

import os
from typing import Any

from pilotfish.errors import WeightsError
from pilotfish.plugin_specs import ArchitectureSpec, Plugin
from pilotfish.plugins import load_registry
from pilotfish.protocols import ModelInputs, ModelOutputs
from pilotfish.registry import Registry
from pilotfish_llama3.model import Llama3Model
from ranks.fake import fail
from ranks.faulty import ARCHITECTURE, names_of

VARIABLE = "TEST_REPLICA_FAULT"
POISON = 13
"""A token that a rank fails of."""


def fault(rank: int, when: str, how: str) -> str:
    """A value of VARIABLE. when: "load", or "poison", which is a pass with that token."""
    return f"{rank} {when} {how}"


class FaultyModel(Llama3Model):
    """See `fault`, and `fake.fail` for how; "user" is a mistake of the user's."""

    def load_model(self, *args: Any) -> None:
        self._fail_at("load")
        super().load_model(*args)

    def execute(self, model_inputs: ModelInputs) -> ModelOutputs:
        if POISON in model_inputs.tokens.tolist():
            self._fail_at("poison")
        return super().execute(model_inputs)

    def _fail_at(self, when: str) -> None:
        said, _, how = os.environ.get(VARIABLE, "").rpartition(" ")
        if said == f"{self.groups.tensor.rank} {when}":
            if how == "user":
                raise WeightsError("planted; wanted other weights")
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
