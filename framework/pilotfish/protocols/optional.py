"""What a config and a model may say besides, and most do not: each member with its default.

Knows: how they are asked for. Does not know: any architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from inspect import getattr_static
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, cast

from pilotfish.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from pilotfish.parallel.group import Groups
    from pilotfish.protocols.images import ImageMemory
    from pilotfish.weights import TensorInfo, WeightRules


class OptionalOfConfig:
    """Of an ArchConfig."""

    recompute_length: int | None = None
    """A request that started with at most so many tokens is computed anew, once, when it has more:
    for rotary angles that depend on the length. None: never."""

    unserved_token_ids: Mapping[str, int] = MappingProxyType({})
    """Ids that stand for an input that is not served, by its kind."""

    def prefix_salt(self, num_tokens: int) -> bytes:
        """Rows of requests that started with so many tokens are shared where these are equal; by
        default all are.
        """
        del num_tokens
        return b""

    def get_image_memory(self) -> ImageMemory | None:
        """What images take; None for an architecture that serves none."""
        return None


class OptionalOfModel:
    """Of a PipelineModel; a DecoderModel has them all. A Proposer may have the plans."""

    keeps_bits: bool | Literal["portable"] = False
    """Whether its author says that a row's bits are its own; False: whole passes are tried."""

    is_invariant: bool | None = None
    """Whether a row's bits are its own; None: not known, whole passes are tried."""

    why_not_invariant: str = ""
    """Why; "" where they are."""

    def weight_rules(self) -> WeightRules:
        """How a checkpoint's tensors become its parameters."""
        raise NotImplementedError

    def shard(self, groups: Groups) -> None:
        """Leaves one of several ranks its part, once, before weights are planned."""
        raise ConfigError(
            "the model says nothing of how ranks share it; wanted tensor_parallel=1 and "
            "reduction_slices=1, or a DecoderModel"
        )

    def idle_round(self, joins: int) -> bool:
        """Takes part in a pass of other replicas that share its experts; see `Lockstep`. False
        where none has rows, and all have heard of as many requests.
        """
        del joins
        return False

    def count_expert_loads(self) -> None:
        """From now on counts how many rows each expert gets."""

    def expert_loads(self) -> Mapping[str, torch.Tensor]:
        """Those rows, layer by layer: name -> [E] int64."""
        return {}

    def plan_load(self, infos: Mapping[str, TensorInfo]) -> Any:
        """Raises as `load_model` does, from the headers alone: before weights are fetched."""

    def plan_pass(self) -> None:
        """After `load_model`: does what the first pass would do once."""

    def without_ignored(self, infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors that `load_model` reads; by default all."""
        return dict(infos)

    def staying(self, infos: Mapping[str, TensorInfo]) -> Collection[str]:
        """Those that are used as they lie in the file, in what memory they take there; or none."""
        del infos
        return ()


class _Filled:
    """Asks one object, and a second one for what the first has not."""

    def __init__(self, own: object, defaults: object) -> None:
        self._own, self._defaults = own, defaults

    def __getattr__(self, name: str) -> Any:
        # Not `getattr` with a default: an AttributeError within a property is not a lack of it.
        has_own = getattr_static(self._own, name, None) is not None or hasattr(self._own, name)
        return getattr(self._own if has_own else self._defaults, name)


def of_config(config: object) -> OptionalOfConfig:
    """The members of `OptionalOfConfig`, as a config has them, or as they are by default."""
    return cast(OptionalOfConfig, _Filled(config, OptionalOfConfig()))


def of_model(model: object) -> OptionalOfModel:
    """The same of a model or a proposer."""
    return cast(OptionalOfModel, _Filled(model, OptionalOfModel()))
