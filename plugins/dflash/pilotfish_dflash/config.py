"""DFlashConfig: one validated configuration for DFlash drafts of every format.

Knows: what a draft and its target say of themselves. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import attrs

from pilotfish.config.checks import int_at_least
from pilotfish.config.hf_options import text_config
from pilotfish.errors import ConfigError
from pilotfish.speculation.draft_config import DraftConfig
from pilotfish.speculation.draft_format import architecture_names
from pilotfish_dflash.formats import (
    DRAFT_ARCHITECTURES,
    DFlashFormat,
    LayerMaskSpec,
    refuse_other_tensors,
)

NEEDED = (*DraftConfig.needed, "num_key_value_heads", "head_dim")


@attrs.frozen(kw_only=True)
class DFlashConfig(DraftConfig):
    """Everything the draft's network needs to know.

    block_size: rows of a block, the anchor included. mask_token_id: read by the rows after it.
    samples_anchor: the anchor's row proposes too, each row the token after it.
    mask_specs: what each layer's rows see. attention_bias: on all four projections.
    embedding_factor: what the target's `embed` is multiplied with; logit_factor: the same of its
        `lm_head`; logit_softcap: c in `c tanh(logits / c)` after that; None for none.
    """

    format_class: ClassVar[type[DFlashFormat]] = DFlashFormat
    needed: ClassVar[tuple[str, ...]] = NEEDED
    needed_in_file: ClassVar[tuple[str, ...]] = NEEDED

    block_size: int = attrs.field(validator=int_at_least(1))
    mask_token_id: int = attrs.field(validator=int_at_least(0))
    samples_anchor: bool = False
    mask_specs: tuple[LayerMaskSpec, ...]
    attention_bias: bool = False
    embedding_factor: float = 1.0
    logit_factor: float = 1.0
    logit_softcap: float | None = None
    lookahead: int = 0

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        if self.max_draft_tokens < 1:
            raise ConfigError(
                f"the draft's block_size is {self.block_size}, the anchor alone; wanted at least 2"
            )
        rows = min(self.vocab_size, self.target_vocab_size)
        if self.mask_token_id >= rows:
            raise ConfigError(
                f"the draft's mask_token_id is {self.mask_token_id} and the embeddings have {rows} "
                "rows; wanted one of them: give the draft of this target"
            )

    @classmethod
    def target_options(cls, huggingface_config: Any) -> Any:
        """As the base; a draft is no target."""
        name = architecture_names(text_config(huggingface_config))[0]
        if name in DRAFT_ARCHITECTURES:
            raise ConfigError(
                f"the target is {name!r}, which is a draft and cannot run alone; give the model "
                "that it was made for, and this one as --draft with --speculative dflash"
            )
        return super().target_options(huggingface_config)

    @classmethod
    def read_fields(cls, draft: DFlashFormat, target: Any) -> dict[str, Any]:
        """As the base; positions reach as far as the rotary scaling."""
        fields = super().read_fields(draft, target)
        embedding_factor, logit_factor = _factors(draft, target)
        return {
            **fields,
            "max_position": fields["rope"].length_limit,
            "block_size": draft.block_size,
            "mask_token_id": draft.mask_token_id,
            "samples_anchor": draft.flag("sample_from_anchor"),
            "mask_specs": draft.mask_specs(),
            "attention_bias": draft.layer_flag("attention_bias"),
            "embedding_factor": embedding_factor,
            "logit_factor": logit_factor,
            "logit_softcap": draft.softcap,
        }

    def with_tensors(self, names: set[str]) -> Self:
        """As the base; tensors of another method are refused."""
        refuse_other_tensors(sorted(names))
        return super().with_tensors(names)

    @property
    def num_context_features(self) -> int:
        """Taps; not tied to the number of draft layers."""
        return len(self.aux_hidden_state_layers)

    @property
    def max_draft_tokens(self) -> int:
        """Most tokens a block proposes."""
        return self.block_size if self.samples_anchor else self.block_size - 1

    def num_scratch_rows(self, width: int) -> int:
        """Rows of the block, all past the committed ones."""
        return width + (not self.samples_anchor) if width else 0

    @property
    def num_repeated_weights(self) -> int:
        """Numbers that are held twice: K and V of the block, and all layers' for the context."""
        of_a_row = self.hidden_size + self.attention_bias
        of_a_layer = 2 * self.num_key_value_heads * self.head_dim * of_a_row + self.head_dim
        return self.num_hidden_layers * of_a_layer


def _factors(draft: DFlashFormat, target: Any) -> tuple[float, float]:
    """What the target's embedding and logits are multiplied with.

    Where the draft's config gives a factor, it is one of the plain embedding and the plain head, so
    it takes the place of the target's own; where it gives none, the target's own stays.
    """
    embedding, logits = 1.0, 1.0
    scale = draft.factor("input_embedding_scale")
    if scale is not None:
        embedding = scale / float(getattr(target, "embedding_multiplier", None) or 1.0)
    multiplier = draft.factor("output_multiplier")
    if multiplier is not None:
        logits = multiplier * float(getattr(target, "logits_scaling", None) or 1.0)
    return embedding, logits
