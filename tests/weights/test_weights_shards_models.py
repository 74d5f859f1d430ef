"""Every parameter of tiny models in published layouts, cut along each axis for several ranks: what
each reads is what the whole parameter has there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from hub.repositories import gguf_of_a_model
from kernels.native_cases import needs_library
from kimi_k25.cases import PACKED, packed, tensors_of, with_tensors, write_kimi
from pilotfish import load_registry
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.parallel.group import Group
from pilotfish.parallel.shard import Shard
from pilotfish.testing.checkpoints import save_tiny
from pilotfish.weights import LoadPlan, StoredRows, WeightSource, execute_load
from pilotfish.weights.shards import bytes_read, check_shards
from pilotfish.weights.stored_rows import block_columns, numbers_of

pytestmark = needs_library

TINY = {
    "llama3, tied, biased": ("LlamaForCausalLM", "biased, tied, llama3 rope"),
    "llama3, fused in the file": ("Phi3ForCausalLM", "window"),
    "lfm2": ("Lfm2ForCausalLM", "wide, biased, attention first"),
    "latent attention, biased, tied": ("DeepseekV3ForCausalLM", "plain queries"),
    "kimi": ("Kimi_K25ForConditionalGeneration", "whole"),
}
FEATURES = {
    "llama3, tied, biased": {"fused", "tied"},
    "llama3, fused in the file": set(),
    "lfm2": {"fused", "tied", "changed"},
    "latent attention, biased, tied": {"fused", "tied"},
    "kimi": {"fused", "changed"},
    "kimi, INT4": {"fused", "changed", "stacked"},
    "llama3, GGUF": {"fused", "turned"},
    "llama3, GGUF in blocks": {"fused", "tied", "turned", "blocks"},
}
"""Case -> what its plan has, so that a case is what it is called."""


def model_path(case: str, folder: Path) -> str:
    """A checkpoint of a case; "demo" is a GGUF file of Q4_1 and Q8_0."""
    if case in TINY:
        return str(save_tiny(*TINY[case], folder, load_registry()))
    if case == "kimi, INT4":
        path = write_kimi("published", folder, moe_intermediate_size=32)
        text = json.loads((path / "config.json").read_text())["text_config"]
        config = {"text_config": {**text, "quantization_config": PACKED}}
        return str(with_tensors(path, folder / "int4", packed(tensors_of(path)), **config))
    if case == "llama3, GGUF":
        plain = save_tiny("LlamaForCausalLM", "plain", folder, load_registry())
        return str(gguf_of_a_model(folder / "tiny.gguf", plain))
    return "demo"


@attrs.frozen
class Loadable:
    """What a load of a model is made of. keeps: as on the native backend."""

    plan: LoadPlan
    source: WeightSource
    keeps: Callable[[str], bool]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n: one.shape for one in self.plan.steps for n in (one.parameter, *one.tied)}

    def read(self, shards: dict[str, Shard], keeps: Any, dtype: torch.dtype) -> dict[str, Any]:
        """Parameter -> tensor or StoredRows."""
        found: dict[str, Any] = {}
        assign = found.__setitem__
        execute_load(self.plan, self.source, assign, dtype, keeps=keeps, shards=shards)
        return found

    def shards(self, axis: int, group: Group, keeps: Any) -> dict[str, Shard]:
        """A rank's share of every parameter that has the axis, halves of its rows out of order."""
        found = {}
        for step in self.plan.steps:
            if len(step.shape) <= axis:
                continue
            kinds = [self.source.infos[piece.name].dtype for piece in step.pieces]
            block = max(map(block_columns, kinds)) if axis and keeps else 1
            own = group.share(step.shape[axis] // block)
            middle = (own.start + own.stop) // 2
            halves = range(middle, own.stop), range(own.start, middle)
            ranges = [range(one.start * block, one.stop * block) for one in halves]
            found |= dict.fromkeys((step.parameter, *step.tied), Shard(axis, ranges))
        return found


def loadable(case: str, folder: Path) -> Loadable:
    prepared = prepare_from_options(model_path(case, folder), backend="native")
    model: Any = prepared.model
    plan = model.plan_load(prepared.weights.infos)
    if case == "llama3, GGUF in blocks":  # one of its thirty layers
        layers = "layers.1.", "norm", "embed", "lm_head", "rotary"
        plan = attrs.evolve(plan, steps=[s for s in plan.steps if s.parameter.startswith(layers)])
    return Loadable(plan, prepared.weights, model.network.may_stay)


def features(made: Loadable) -> set[str]:
    found = set()
    for step in made.plan.steps:
        transforms = [piece.transform for piece in step.pieces if piece.transform is not None]
        has = {
            "tied": step.tied,
            "fused": len(step.pieces) > 1 and step.combine == "rows",
            "stacked": step.combine == "stack",
            "turned": any(one.row_parts is not None for one in transforms),
            "changed": any(one.row_parts is None for one in transforms),
            "blocks": any(block_columns(made.source.infos[p.name].dtype) > 1 for p in step.pieces),
        }
        found |= {name for name, value in has.items() if value}
    return found


def numbers(held: Any) -> torch.Tensor:
    if isinstance(held, StoredRows):
        return torch.cat([numbers_of(part).float() for part in held.parts])
    assert isinstance(held, torch.Tensor)
    return held


@pytest.mark.parametrize("case", FEATURES)
def test_every_rank_reads_what_the_whole_has_there(case: str, tmp_path: Path) -> None:
    """Kept as the file's rows, and as numbers of another dtype."""
    made = loadable(case, tmp_path)
    infos = made.source.infos
    assert features(made) == FEATURES[case]
    for keeps, dtype in ((made.keeps, torch.float32), (None, torch.bfloat16)):
        whole = {name: numbers(held) for name, held in made.read({}, keeps, dtype).items()}
        assert whole.keys() == made.shapes.keys()
        for axis, size in ((0, 2), (0, 3), (1, 2), (1, 3)):
            for rank in range(size):
                transport: Any = object()
                shards = made.shards(axis, Group(rank, size, transport), keeps)
                check_shards(made.plan, infos, shards, keeps)
                got = made.read(shards, keeps, dtype)
                for name, tensor in whole.items():
                    shard = shards.get(name, Shard.rows(range(len(tensor))))
                    assert (name in got) == bool(shard.ranges)
                    if name in got:
                        assert torch.equal(numbers(got[name]), shard.of(tensor)), (name, shard)
                        assert tuple(got[name].shape) == shard.shape(tuple(tensor.shape))


@pytest.mark.parametrize(
    "case", [case for case, has in FEATURES.items() if not has & {"changed", "stacked"}]
)
def test_ranks_together_read_the_file_once(case: str, tmp_path: Path) -> None:
    """But what has no columns, where columns are cut: every rank reads that."""
    made = loadable(case, tmp_path)
    infos = made.source.infos
    read = {piece.name for step in made.plan.steps for piece in step.pieces}
    for axis, size in ((0, 2), (0, 3), (1, 2), (1, 3)):
        transport: Any = object()
        ranks = [made.shards(axis, Group(i, size, transport), made.keeps) for i in range(size)]
        times = {name: size if len(infos[name].shape) <= axis else 1 for name in read}
        wanted = sum(infos[name].num_bytes * count for name, count in times.items())
        total = sum(bytes_read(made.plan, infos, shards) for shards in ranks)
        assert abs(total - wanted) <= len(read) * size  # each is rounded
