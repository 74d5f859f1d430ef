"""EagleConfig: one validated configuration for EAGLE-1, EAGLE-2 and EAGLE-3 drafts.

Knows: what a draft and its target say of themselves. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import one_of
from pilotfish.errors import CheckpointError, ConfigError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.speculation.draft_config import DraftConfig
from pilotfish.weights.checkpoint import open_checkpoint
from pilotfish_eagle.formats import EagleFormat, Version

NO_DRAFT = (
    "the draft's file has no fc.weight, so it is no EAGLE draft; a small language model drafts by "
    "another method"
)


@attrs.frozen(kw_only=True)
class EagleConfig(DraftConfig):
    """Everything the draft's network needs to know.

    version: 1 (EAGLE-1 and EAGLE-2) or 3.
    fc_bias: None until the file is known where the config does not say.
    norm_before_residual: the residual of layer 0 is the normed feature. norm_before_fc: one norm
        over all aux hidden states before fc. fc_norm: one for each of them. norms_head: a norm
        stands before the head. feeds_normed_states: the next row gets the normed output.
    windows: keys that each layer's rows see, themselves included; None for all.
    """

    format_class: ClassVar[type[EagleFormat]] = EagleFormat

    version: Version = attrs.field(validator=one_of((1, 3)))
    fc_bias: bool | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norms_head: bool = True
    feeds_normed_states: bool = False
    windows: tuple[int | None, ...] = (None,)
    tie_word_embeddings: bool = False

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.version == 1 and self.hidden_size != self.target_hidden_size:
            raise ConfigError(
                f"the draft's hidden_size is {self.hidden_size} and the target's "
                f"{self.target_hidden_size}; wanted one: give the draft of this target"
            )
        if len(self.windows) != self.num_hidden_layers:
            raise ConfigError(
                f"windows has {len(self.windows)} entries; wanted {self.num_hidden_layers}, one "
                "for each layer"
            )
        if self.norm_before_fc and self.fc_norm:
            raise ConfigError("the draft's config has norm_before_fc and fc_norm; wanted one")
        if self.rope.depends_on_length:
            raise ConfigError(
                f"the draft's rope_type is {self.rope.rope_type!r}, which depends on the prompt's "
                "length; the method eagle reads default, linear, yarn and llama3"
            )

    @classmethod
    def from_format(cls, draft: EagleFormat, pipeline_config: PipelineConfig) -> Self:
        """As the base; an ordinary model, whose architecture may be EAGLE-1's, is called one."""
        try:
            return super().from_format(draft, pipeline_config)
        except ConfigError as error:
            if draft.version == 1:
                _refuse_ordinary_model(draft.model, error)
            raise

    @classmethod
    def read_fields(cls, draft: EagleFormat, target: Any) -> dict[str, Any]:
        """As every draft's, with the version and its biases."""
        attention_bias, is_third = draft.layer_flag("attention_bias"), draft.version == 3
        is_open = is_third and draft.option("bias") is None
        return {
            **super().read_fields(draft, target),
            "version": draft.version,
            "fc_bias": None if is_open else draft.flag("bias", not is_third),
            "qkv_bias": draft.flag("qkv_bias", attention_bias),
            "out_bias": attention_bias,
            "mlp_bias": draft.layer_flag("mlp_bias"),
            "tie_word_embeddings": draft.flag("tie_word_embeddings"),
            **{
                name: draft.eagle_flag(name)
                for name in ("norm_before_residual", "norm_before_fc", "fc_norm")
            },
            "norms_head": draft.norms_head,
            "feeds_normed_states": draft.feeds_normed_states,
            "windows": draft.windows(),
        }

    def with_tensors(self, names: set[str]) -> Self:
        """As the base; whether fc has a bias too."""
        if "fc.weight" not in names:
            raise ConfigError(NO_DRAFT)
        is_third = any(name.endswith(".hidden_norm.weight") for name in names)
        if is_third != (self.version == 3):
            raise ConfigError(
                f"the draft's config is EAGLE-{self.version}'s and its file has "
                f"{'a' if is_third else 'no'} layers.0.hidden_norm.weight, as EAGLE-"
                f"{3 if is_third else 1}'s have; set architectures in its config.json"
            )
        fc_bias = "fc.bias" in names if self.fc_bias is None else self.fc_bias
        return attrs.evolve(super().with_tensors(names), fc_bias=fc_bias)

    def want_whole(self) -> None:
        """As the base; EAGLE-1 borrows what its file does not have."""
        if self.version == 3:
            super().want_whole()

    @property
    def return_hidden_states(self) -> ReturnHiddenStates:
        """EAGLE-1 reads the target's normed output, EAGLE-3 some of its hidden states."""
        normed, selected = ReturnHiddenStates.ALL_NORMALIZED, ReturnHiddenStates.SELECTED
        return normed if self.version == 1 else selected

    @property
    def num_features(self) -> int:
        """Numbers of the target that one row reads."""
        return self.target_hidden_size * (len(self.aux_hidden_state_layers) or 1)

    @property
    def has_tied_head(self) -> bool:
        """Whether the draft's head is its own embedding."""
        return self.tie_word_embeddings and self.own_embedding and not self.own_head

    @property
    def has_head(self) -> bool:
        """EAGLE-1 always borrows the target's."""
        return self.version == 3 and (self.own_head or self.has_tied_head)


def _refuse_ordinary_model(model: ModelConfig, cause: ConfigError) -> None:
    """EAGLE-1 drafts share their architecture's name with ordinary models: the file tells."""
    if not Path(model.path).is_dir():
        return
    try:
        names = open_checkpoint(model.path).weights().infos
    except CheckpointError:  # not there, or not whole: what the config says stands
        return
    if not any(name.removeprefix("model.") == "fc.weight" for name in names):
        raise ConfigError(f"{model.model}: {NO_DRAFT}") from cause
