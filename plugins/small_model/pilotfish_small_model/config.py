"""SmallModelConfig: the draft's own configuration, its cache beside the target's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.hf_options import count, text_config
from pilotfish.errors import ConfigError
from pilotfish.protocols import ArchConfig, PipelineModel, ReturnHiddenStates
from pilotfish.protocols.optional import of_config
from pilotfish.registry import Registry, Route
from pilotfish.state import PagedStateSpec, StateSpec
from pilotfish.tokenization.token_texts import first_difference, token_texts

DRAFT_CACHE = "small_model.kv"


@attrs.frozen(kw_only=True)
class SmallModelConfig:
    """route: of the draft as a model of its own. draft: its configuration.

    vocab_size, target_vocab_size: rows of the two embeddings. One tokenizer may be padded to
    different sizes: no text stands for the rows that only one of them has.
    """

    route: Route
    draft: ArchConfig
    vocab_size: int
    target_vocab_size: int
    return_hidden_states: ReturnHiddenStates = ReturnHiddenStates.NONE
    aux_hidden_state_layers: tuple[int, ...] = ()
    max_draft_tokens: int | None = None
    lookahead: int = 0

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Makes the draft's configuration and checks that it can draft for the target.

        Raises ConfigError for another vocabulary (the text of an id where both have a tokenizer,
        else its size), for a draft with caches other than one paged cache, and for one whose rows
        depend on the length of their request.
        """
        draft = model_config or pipeline_config.draft_model
        if draft is None or registry is None:
            raise ConfigError(
                "the method 'small_model' needs a draft; give one: --draft, or draft= in Python"
            )
        route = registry.route(draft.architecture)
        target = pipeline_config.model
        sizes = _vocab_size(draft), _vocab_size(target)
        config = route.config_class().initialize(pipeline_config, draft)
        _want_same_tokens(draft, target, sizes)
        specs = config.get_state_specs()
        if len(specs) != 1 or not isinstance(specs[0], PagedStateSpec):
            raise ConfigError(
                f"the draft {draft.model} ({draft.architecture}) keeps "
                f"{', '.join(spec.name for spec in specs)}; wanted a model whose only state is "
                "paged keys and values"
            )
        if of_config(config).prefix_salt(2**30):
            raise ConfigError(
                f"the draft {draft.model} has rotary positions that depend on the length of the "
                "text; wanted a draft without dynamic or longrope scaling"
            )
        return cls(route=route, draft=config, vocab_size=sizes[0], target_vocab_size=sizes[1])

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Completes the draft's configuration."""
        return attrs.evolve(self, draft=self.draft.finalize(huggingface_config, state_dict))

    def model_class(self) -> type[PipelineModel]:
        """The draft's own model class."""
        return self.route.model_class()

    def num_scratch_rows(self, width: int) -> int:
        """The newest token's row, and one for each drafted token but the last."""
        return width

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """The draft's paged cache, under a name of its own."""
        return tuple(attrs.evolve(spec, name=DRAFT_CACHE) for spec in self.draft.get_state_specs())

    def get_max_seq_len(self) -> int:
        """Rows that the draft has positions for; a longer text goes on without proposals."""
        return self.draft.get_max_seq_len()


def _vocab_size(model: ModelConfig) -> int:
    return count(
        text_config(model.huggingface_config), "vocab_size", whose=f"{model.model}'s config"
    )


def _want_same_tokens(draft: ModelConfig, target: ModelConfig, sizes: tuple[int, int]) -> None:
    """Raises ConfigError naming the first id with two texts; without tokenizers, by the sizes."""
    if draft.path == target.path:
        return
    ours = token_texts(draft)
    theirs = None if ours is None else token_texts(target)
    if ours is None or theirs is None:
        if sizes[0] != sizes[1]:
            raise ConfigError(
                f"the draft {draft.model} has {sizes[0]} token ids and the target {target.model} "
                f"{sizes[1]}; wanted as many, or a tokenizer in both, which would show whether "
                "only the padding differs"
            )
        return
    odd = first_difference(ours, theirs)
    if odd is not None:
        raise ConfigError(
            f"the draft {draft.model} has another tokenizer than the target {target.model}: token "
            f"{odd[0]} is {odd[1]!r} there and {odd[2]!r} here; wanted a draft with the target's "
            "tokenizer"
        )
