"""What a config and a model may say besides, and most do not: each member has a default.

Knows: who asks for them. Does not know: any architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from pilotfish.protocols.images import ImageMemory
    from pilotfish.weights import TensorInfo, WeightRules


class OptionalOfConfig(Protocol):
    """Of an ArchConfig."""

    recompute_length: int | None
    """A request that started with at most so many tokens is computed anew, once, when it has more:
    for rotary angles that depend on the length. None: never."""

    unserved_token_ids: Mapping[str, int]
    """Ids that stand for an input that is not served, by its kind; by default there are none."""

    def prefix_salt(self, num_tokens: int) -> bytes:
        """Rows of requests that started with so many tokens are shared where these are equal; by
        default all are.
        """
        ...

    def get_image_memory(self) -> ImageMemory:
        """What images take; only of an architecture that serves them."""
        ...


class OptionalOfModel(Protocol):
    """Of a PipelineModel; a DecoderModel has them all."""

    keeps_bits: bool | Literal["portable"]
    """Whether its author says that a row's bits are its own; False: whole passes are tried."""

    is_invariant: bool
    """False where a row's bits are known not to be its own; asked for instead of trying."""

    why_not_invariant: str
    """Why; "" where they are."""

    def weight_rules(self) -> WeightRules:
        """How a checkpoint's tensors become its parameters; asked for which are tied."""
        ...

    def plan_load(self, infos: Mapping[str, TensorInfo]) -> Any:
        """Raises as `load_model` does, from the headers alone: before weights are fetched."""
        ...

    def plan_pass(self) -> None:
        """After `load_model`: does what the first pass would do once."""
        ...

    def without_ignored(self, infos: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """The tensors that `load_model` reads; by default all."""
        ...

    def staying(self, infos: Mapping[str, TensorInfo]) -> Collection[str]:
        """Those that are used as they lie in the file, in what memory they take there; or none."""
        ...
