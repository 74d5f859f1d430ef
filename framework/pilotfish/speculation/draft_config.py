"""DraftConfig: what the configs of drafts that read their target's hidden states have in common.

Knows: what a draft and its target say of themselves. Does not know: any one method's options, or
tensors; imports no torch. Letters: D draft width, N query heads, K kv heads, H head width, I
feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import int_at_least, norm_epsilon
from pilotfish.config.hf_options import (
    MOST_PADDING,
    count,
    option,
    text_config,
    want_counts,
    want_value,
    want_written,
    whole_number,
)
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.models.transformer_config import DTYPES, SIZES, GroupedQueryConfig
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.registry import Registry
from pilotfish.speculation.draft_format import SPECULATORS, WHOSE, DraftFormat
from pilotfish.state import KVCacheParams

DRAFT_CACHE = "draft"
"""The paged cache with the draft's keys and values."""
_OF_TARGET = ("hidden_size", "vocab_size", "num_hidden_layers")

_count = int_at_least(1)


@attrs.frozen(kw_only=True)
class DraftConfig(GroupedQueryConfig):
    """Base of such a `SpeculatorConfig`; a method has a subclass with fields of its own.

    format_class: its DraftFormat. needed, needed_in_file: options that are whole numbers >= 1, and
        those that config.json itself must have: transformers' defaults are another model's.

    draft_format: how the draft is spelled. aux_hidden_state_layers: boundaries of the target's
        residual stream that it reads, in fc's order; layers_source: how they were found.
    target_hidden_size, target_vocab_size, num_target_layers: of the target. vocab_size: rows of the
        draft's own embedding, which may be padded to another size.
    max_position: rows from here on are not drafted.
    own_embedding, own_head, has_offsets: whether the FILE has embed_tokens, lm_head, d2t.
    lookahead: 1, for a row that reads the token after its own; see SpeculatorConfig.
    """

    format_class: ClassVar[type[DraftFormat]]
    whose: ClassVar[str] = "the draft's "
    needed: ClassVar[tuple[str, ...]] = (*SIZES, "max_position_embeddings")
    needed_in_file: ClassVar[tuple[str, ...]] = _OF_TARGET

    draft_format: str
    target_hidden_size: int = attrs.field(validator=_count)
    target_vocab_size: int = attrs.field(validator=_count)
    num_target_layers: int = attrs.field(validator=_count)
    draft_vocab_size: int = attrs.field(validator=_count)
    aux_hidden_state_layers: tuple[int, ...] = ()
    layers_source: str = ""
    rms_norm_eps: float = attrs.field(validator=norm_epsilon())
    max_position: int = attrs.field(validator=_count)
    own_embedding: bool = False
    own_head: bool = False
    has_offsets: bool = False
    lookahead: int = 1

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.draft_vocab_size > self.vocab_size:
            raise ConfigError(
                f"the draft's draft_vocab_size is {self.draft_vocab_size} and its vocab_size "
                f"{self.vocab_size}; wanted at most that: give the draft of this target"
            )

    # Reading.

    @classmethod
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Reads the draft's and the target's Hugging Face configs; needs no weights.

        model_config: the draft; None means `pipeline_config.draft_model`. registry: not needed.
        Raises ConfigError for a draft of another target or another method, for a draft without a
        target, and for any option that changes the maths and is not understood.
        """
        del registry
        method = cls.format_class.method
        model = model_config or pipeline_config.draft_model
        if model is None:
            raise ConfigError(
                f"the method {method} needs a draft and got none; give one: --draft, or draft= in "
                "Python"
            )
        if model.weight_format != "safetensors":
            raise ConfigError(
                f"the draft {model.model} is a {model.weight_format} file; the method {method} "
                "reads a directory with config.json and safetensors or pytorch_model.bin"
            )
        draft = cls.format_class.of(model)
        if draft.name != SPECULATORS:  # that format leaves defaults out
            want_written(model, cls.needed_in_file, WHOSE)
        return cls.from_format(draft, pipeline_config)

    @classmethod
    def from_format(cls, draft: Any, pipeline_config: PipelineConfig) -> Self:
        """draft: of `format_class`. Raises as `initialize`."""
        want_counts(draft.layer, cls.needed, WHOSE)
        target = cls.target_options(pipeline_config.model.huggingface_config)
        _want_same(draft, target)
        fields = cls.read_fields(draft, target)
        return cls(**{"dtype": _dtype(pipeline_config, draft), **fields})

    @classmethod
    def target_options(cls, huggingface_config: Any) -> Any:
        """The part of a target's config that describes its text model."""
        config = text_config(huggingface_config)
        want_counts(config, _OF_TARGET, "the target's config")
        return config

    @classmethod
    def read_fields(cls, draft: Any, target: Any) -> dict[str, Any]:
        """Values of the fields, all but `dtype`; a subclass adds those of its own to the base's.

        draft: of `format_class`. target: its options. Raises as `initialize`.
        """
        layer = draft.layer
        aux_hidden_state_layers, source = draft.aux_hidden_state_layers(target.num_hidden_layers)
        heads = layer.num_attention_heads
        head_dim = count(layer, "head_dim", layer.hidden_size // heads, WHOSE)
        rope = RopeParameters.from_hf(
            layer, head_dim, whose=WHOSE, plain_turns_whole=draft.name == SPECULATORS
        )
        draft_vocab_size = draft.option("draft_vocab_size")
        if draft_vocab_size is None:
            draft_vocab_size = layer.vocab_size
        return {
            "draft_format": draft.name,
            **{name: getattr(layer, name) for name in SIZES},
            "target_hidden_size": target.hidden_size,
            "target_vocab_size": target.vocab_size,
            "num_target_layers": target.num_hidden_layers,
            "draft_vocab_size": whole_number("draft_vocab_size", draft_vocab_size, whose=WHOSE),
            "aux_hidden_state_layers": aux_hidden_state_layers,
            "layers_source": source,
            "num_key_value_heads": count(layer, "num_key_value_heads", heads, WHOSE),
            "head_dim": head_dim,
            "rms_norm_eps": option(layer, "rms_norm_eps", 1e-6),
            "rope": rope,
            "max_position": layer.max_position_embeddings,
        }

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Reads what only the tensors' names can tell.

        huggingface_config: the draft's. state_dict: tensor name -> anything.
        Raises ConfigError when they are not those of a draft like this.
        """
        del huggingface_config
        return self.with_tensors({name.removeprefix("model.") for name in state_dict})

    def with_tensors(self, names: set[str]) -> Self:
        """The same. names: without a leading `model.`."""
        found = attrs.evolve(
            self,
            own_embedding="embed_tokens.weight" in names,
            own_head="lm_head.weight" in names,
            has_offsets="d2t" in names,
        )
        found.want_whole()
        return found

    def want_whole(self) -> None:
        """Raises ConfigError where the file lacks what the target cannot lend."""
        if self.draft_vocab_size < self.vocab_size and not self.has_offsets:
            raise ConfigError(
                f"the draft knows {self.draft_vocab_size} of {self.vocab_size} tokens and "
                "its file has no d2t, which says which; the file is incomplete"
            )
        is_wider = self.hidden_size != self.target_hidden_size
        if is_wider and not self.own_embedding:
            raise ConfigError(
                f"the draft is {self.hidden_size} wide and the target {self.target_hidden_size}, "
                "and the draft's file has no embed_tokens.weight; give the draft of this target, "
                "or its whole file"
            )
        if self.has_offsets and not self.has_head:
            raise ConfigError(
                "the draft's file has d2t and no lm_head.weight, whose rows it would name; the "
                "target's head has its own; the file is incomplete"
            )
        if is_wider and not self.has_head:
            raise ConfigError(
                "the draft's file has no lm_head.weight and the target's head has another shape; "
                "the file is incomplete"
            )

    # What the network and the engine ask.

    @property
    def has_tied_head(self) -> bool:
        """Whether the draft's head is its own embedding."""
        return False

    @property
    def has_head(self) -> bool:
        """Whether it has a head of its own; else it borrows the target's."""
        return self.own_head or self.has_tied_head

    @property
    def return_hidden_states(self) -> ReturnHiddenStates:
        """It reads the target's residual stream at some boundaries."""
        return ReturnHiddenStates.SELECTED

    @property
    def max_draft_tokens(self) -> int | None:
        """Most tokens a step that it was trained for; None: any number."""
        return None

    def num_scratch_rows(self, width: int) -> int:
        """Rows past the committed ones: one for each drafted token but the last."""
        return max(0, width - 1)

    @property
    def kv_params(self) -> KVCacheParams:
        """The geometry of the draft's pages."""
        return attrs.evolve(super().kv_params, name=DRAFT_CACHE)

    @property
    def max_seq_len(self) -> int:
        """Rows that may be drafted; a longer text goes on without proposals."""
        return self.max_position


def _want_same(draft: DraftFormat, target: Any) -> None:
    """Raises ConfigError when the draft says that it was made for another target."""
    for name, said, of_target, apart in (
        ("target_hidden_size", draft.target_hidden_size, "hidden_size", 0),
        ("vocab_size", draft.layer.vocab_size, "vocab_size", MOST_PADDING),
        ("num_target_layers", draft.option("num_target_layers"), "num_hidden_layers", 0),
    ):
        has = getattr(target, of_target)
        if said is not None and abs(whole_number(name, said, whose=WHOSE) - has) > apart:
            raise ConfigError(
                f"the draft was made for a target with {of_target} {said} and this one has {has}; "
                "give the draft of this target"
            )


def _dtype(pipeline_config: PipelineConfig, draft: DraftFormat) -> str:
    """The run's dtype: the draft reads the target's numbers."""
    given = draft.option("dtype") or draft.option("torch_dtype")
    name = "auto" if given is None else str(given).removeprefix("torch.")
    want_value("torch_dtype", name, ("auto", *DTYPES), WHOSE)
    if pipeline_config.runtime.dtype != "auto":
        return pipeline_config.runtime.dtype
    return "float32" if name == "auto" else name
