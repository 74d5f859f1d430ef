"""SharedByReplicas: what a decoder knows of other replicas: batches, rounds and experts' loads.

Knows: that replicas which share experts run their passes together. Does not know: how a pass is
run, or what tells a replica of requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from pilotfish.batch import RequestContext
from pilotfish.errors import ConfigError
from pilotfish.layers.experts import Experts
from pilotfish.layers.experts_over_replicas import ExpertsOverReplicas
from pilotfish.models.decoder import Decoder
from pilotfish.models.inputs import PackedBatch
from pilotfish.parallel.group import Group, Groups
from pilotfish.parallel.lockstep import Lockstep
from pilotfish.protocols import ModelInputs, ModelOutputs, ReturnHiddenStates


class SharedByReplicas:
    """The part of a DecoderModel that speaks of its groups.

    lockstep: with whom its passes are rounds; None where its experts are its own.
    """

    network: Decoder
    groups: Groups
    dtype: torch.dtype
    device: torch.device
    return_hidden_states: ReturnHiddenStates
    aux_hidden_state_layers: tuple[int, ...]
    lockstep: Lockstep | None = None
    _native_passes: dict[Any, Any]

    @property
    def signal_buffers(self) -> Group:
        """The ranks of this replica, through which its layers tell one another their parts."""
        return self.groups.tensor

    @property
    def ep_inputs(self) -> Group:
        """The ranks that share experts, through which rows go to them."""
        return self.groups.expert

    def join_replicas(self, groups: Groups) -> None:
        """After the network was split. Raises ConfigError where replicas share no experts of it."""
        if groups.num_expert_replicas == 1:
            return
        inside = self.network.layers_inside()
        layers = [layer for layer in inside if isinstance(layer, ExpertsOverReplicas)]
        if not layers:
            raise ConfigError(
                f"expert_parallel is {groups.expert.size} with tensor_parallel "
                f"{groups.tensor.size}, and {type(self.network).__name__} has no experts of the "
                "library's that replicas could share; wanted expert_parallel of at most "
                f"{groups.tensor.size}"
            )
        self.lockstep = Lockstep(groups.expert, layers)

    def packed_batch(self, replica_batches: Sequence[Sequence[RequestContext]]) -> PackedBatch:
        """The requests that this model packs, of one batch or of one for each replica."""
        return PackedBatch.of(replica_batches, self.groups.data)

    def begin_round(self, inputs: ModelInputs) -> None:
        """Before a pass. Raises ValueError for splits that are not of these inputs."""
        splits = inputs.data_parallel_splits
        if splits is not None:
            self._check_splits(inputs, splits.tolist())
        if self.lockstep is not None:
            self.lockstep.begin_round(is_agreed=splits is not None)

    def take_part(self) -> None:
        """A round that all know of, in which this replica has no rows."""
        if self.lockstep is not None:
            self.lockstep.take_part()

    def idle_outputs(self, inputs: ModelInputs) -> ModelOutputs:
        """Of no requests: the pass of the others is a round of this replica too."""
        self.begin_round(inputs)
        self.take_part()
        mode, width = self.return_hidden_states, self.network.embed_tokens.width
        if mode is ReturnHiddenStates.SELECTED:
            width *= len(self.aux_hidden_state_layers)
        hidden = torch.empty((0, width), dtype=self.dtype, device=self.device)
        return ModelOutputs(
            logits=torch.empty((0, self.network.lm_head.out_features), device=self.device),
            logit_offsets=torch.zeros(1, dtype=torch.int64),
            hidden_states=None if mode is ReturnHiddenStates.NONE else hidden,
        )

    @torch.inference_mode()
    def idle_round(self, joins: int) -> bool:
        """A round of the replicas that share experts, in which this one has no rows; see
        `Lockstep.idle_round`. False where there are no others.
        """
        return self.lockstep is not None and self.lockstep.idle_round(joins)

    def count_expert_loads(self) -> None:
        """From now on passes count how many rows each expert gets, which takes them more time."""
        for _, experts in self._experts():
            experts.count_loads()
        self._native_passes.clear()

    def expert_loads(self) -> dict[str, torch.Tensor]:
        """Rows that each expert got since `count_expert_loads`, of all replicas that share it.

        The path to each layer with experts -> [E] int64; empty where nothing is counted.
        """
        return {
            name: experts.loads.clone()
            for name, experts in self._experts()
            if experts.loads is not None
        }

    def _experts(self) -> Iterator[tuple[str, Experts]]:
        for name, layer in self.network.named_layers():
            if isinstance(layer, Experts):
                yield name.removesuffix("."), layer

    def _check_splits(self, inputs: ModelInputs, splits: list[int]) -> None:
        data = self.groups.data
        if data.is_alone:
            fits = splits[-1] == inputs.num_requests
        else:
            has_all = len(splits) == data.size + 1
            fits = has_all and splits[data.rank + 1] - splits[data.rank] == inputs.num_requests
        if not fits:
            raise ValueError(
                f"data_parallel_splits is {splits} and the inputs are of {inputs.num_requests} "
                f"requests of replica {data.rank} of {data.size}; wanted its own in their place"
            )
