"""DFlashConfig: one validated configuration for DFlash drafts of every format.

Knows: what a draft and its target say of themselves. Does not know: tensors; imports no torch.
Letters: D draft width, N query heads, K kv heads, H head width, I feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, TypeVar

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import int_at_least, norm_epsilon, one_of
from pilotfish.config.hf_options import (
    MOST_PADDING,
    count,
    option,
    run_dtype,
    text_config,
    want_counts,
    want_value,
    want_written,
    whole_number,
    written,
)
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import ConfigError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.registry import Registry
from pilotfish.state import KVCacheParams, StateSpec
from pilotfish_dflash.formats import (
    DRAFT_ARCHITECTURES,
    SPECULATORS,
    DraftFormat,
    LayerMaskSpec,
    read_format,
    read_mask_specs,
    read_taps,
)
from pilotfish_dflash.options import WHOSE, boolean
from pilotfish_dflash.unread import refuse_other_tensors

DRAFT_CACHE = "draft"
"""The paged cache with the draft's keys and values."""

NEEDED = (
    *("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("num_hidden_layers", "intermediate_size"),
    *("vocab_size", "max_position_embeddings"),
)
NEEDED_OF_TARGET = ("hidden_size", "vocab_size", "num_hidden_layers")

DTYPES = ("auto", "float32", "bfloat16", "float16")

_count = int_at_least(1)


@attrs.frozen(kw_only=True)
class DFlashConfig:
    """Everything the draft's network needs to know.

    draft_format: how the draft is spelled (formats.py). taps: boundaries of the target's stream
        that it reads, in fc's order; taps_source: how they were found.
    target_hidden_size, target_vocab_size, num_target_layers: of the target. vocab_size: rows of the
        draft's own embedding, which may be padded to another size.
    block_size: rows of a block, the anchor included. mask_token_id: read by the rows after it.
    samples_anchor: the anchor's row proposes too, each row the token after it.
    mask_specs: what each layer's rows see. rope: rotary positions; max_position: rows from here on
        are not drafted. attention_bias: on all four projections.
    embedding_factor: what the target's `embed` is multiplied with; logit_factor: the same of its
        `lm_head`; logit_softcap: c in `c tanh(logits / c)` after that; None for none.
    own_embedding, own_head, has_offsets: whether the FILE has embed_tokens, lm_head, d2t.
    """

    draft_format: str
    hidden_size: int = attrs.field(validator=_count)
    target_hidden_size: int = attrs.field(validator=_count)
    target_vocab_size: int = attrs.field(validator=_count)
    num_target_layers: int = attrs.field(validator=_count)
    vocab_size: int = attrs.field(validator=_count)
    draft_vocab_size: int = attrs.field(validator=_count)
    taps: tuple[int, ...]
    taps_source: str
    block_size: int = attrs.field(validator=_count)
    mask_token_id: int = attrs.field(validator=int_at_least(0))
    samples_anchor: bool = False
    num_attention_heads: int = attrs.field(validator=_count)
    num_key_value_heads: int = attrs.field(validator=_count)
    head_dim: int = attrs.field(validator=int_at_least(2))
    intermediate_size: int = attrs.field(validator=_count)
    num_hidden_layers: int = attrs.field(validator=_count)
    rms_norm_eps: float = attrs.field(validator=norm_epsilon())
    mask_specs: tuple[LayerMaskSpec, ...]
    rope: RopeParameters
    max_position: int = attrs.field(validator=_count)
    dtype: str = attrs.field(validator=one_of(("float32", "bfloat16", "float16")))
    attention_bias: bool = False
    embedding_factor: float = 1.0
    logit_factor: float = 1.0
    logit_softcap: float | None = None
    own_embedding: bool = False
    own_head: bool = False
    has_offsets: bool = False
    lookahead: int = 0

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"the draft's num_attention_heads is {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads}; wanted a multiple"
            )
        if self.max_width < 1:
            raise ConfigError(
                f"the draft's block_size is {self.block_size}, the anchor alone; wanted at least 2"
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ConfigError(
                f"the draft's draft_vocab_size is {self.draft_vocab_size} and its vocab_size "
                f"{self.vocab_size}; wanted at most that: give the draft of this target"
            )
        rows = min(self.vocab_size, self.target_vocab_size)
        if self.mask_token_id >= rows:
            raise ConfigError(
                f"the draft's mask_token_id is {self.mask_token_id} and the embeddings have {rows} "
                "rows; wanted one of them: give the draft of this target"
            )

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
        model = model_config or pipeline_config.draft_model
        if model is None:
            raise ConfigError(
                "the method dflash needs a draft and got none; give one: --draft, or draft= in "
                "Python"
            )
        if model.weight_format != "safetensors":
            raise ConfigError(
                f"the draft {model.model} is a {model.weight_format} file; the method dflash reads "
                "a directory with config.json and safetensors"
            )
        said = written(model)
        draft = read_format(model.huggingface_config, said)
        if draft.name != SPECULATORS:  # that format leaves defaults out
            want_written(model, NEEDED, WHOSE)
        dtype = draft.option("dtype") or draft.option("torch_dtype") or "auto"
        want_value("torch_dtype", str(dtype).removeprefix("torch."), DTYPES, WHOSE)
        mask_specs = read_mask_specs(draft, said)
        return _from_format(
            cls, draft, pipeline_config, run_dtype(pipeline_config, model), mask_specs
        )

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Reads what only the tensors' names can tell.

        huggingface_config: the draft's. state_dict: tensor name -> anything.
        Raises ConfigError when they are not those of a draft like this.
        """
        del huggingface_config
        names = {name.removeprefix("model.") for name in state_dict}
        refuse_other_tensors(sorted(names))
        found = attrs.evolve(
            self,
            own_embedding="embed_tokens.weight" in names,
            own_head="lm_head.weight" in names,
            has_offsets="d2t" in names,
        )
        found._want_whole()
        return found

    @property
    def return_hidden_states(self) -> ReturnHiddenStates:
        """It reads the target's residual stream at the taps."""
        return ReturnHiddenStates.SELECTED

    @property
    def num_context_features(self) -> int:
        """Taps; not tied to the number of draft layers."""
        return len(self.taps)

    @property
    def max_width(self) -> int:
        """Most tokens a block proposes."""
        return self.block_size if self.samples_anchor else self.block_size - 1

    @property
    def kv_params(self) -> KVCacheParams:
        """The geometry of the draft's pages."""
        return KVCacheParams(
            name=DRAFT_CACHE,
            num_layers=self.num_hidden_layers,
            num_kv_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
        )

    def prefix_salt(self, num_started_tokens: int) -> bytes:
        """Rows of requests with different salts differ; see `RopeParameters`."""
        return self.rope.prefix_salt(num_started_tokens)

    def num_scratch_rows(self, width: int) -> int:
        """Rows of the block, all past the committed ones."""
        return width + (not self.samples_anchor) if width else 0

    def get_kv_params(self) -> KVCacheParams:
        """As `kv_params`."""
        return self.kv_params

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """One paged cache, "draft"."""
        return (self.kv_params.spec,)

    def get_max_seq_len(self) -> int:
        """Rows that may be drafted; a longer text goes on without proposals."""
        return self.max_position

    @property
    def num_repeated_weights(self) -> int:
        """Numbers that are held twice: K and V of the block, and all layers' for the context."""
        of_a_row = self.hidden_size + self.attention_bias
        of_a_layer = 2 * self.num_key_value_heads * self.head_dim * of_a_row + self.head_dim
        return self.num_hidden_layers * of_a_layer

    def _want_whole(self) -> None:
        if self.draft_vocab_size < self.vocab_size and not self.has_offsets:
            raise ConfigError(
                f"the draft knows {self.draft_vocab_size} of {self.vocab_size} tokens and "
                "its file has no d2t, which says which; the file is incomplete"
            )
        if self.has_offsets and not self.own_head:
            raise ConfigError(
                "the draft's file has d2t and no lm_head.weight, whose rows it would name; the "
                "target's head has its own; the file is incomplete"
            )
        if self.hidden_size != self.target_hidden_size and not (
            self.own_embedding and self.own_head
        ):
            raise ConfigError(
                f"the draft is {self.hidden_size} wide and the target {self.target_hidden_size}, "
                "whose embedding and head it would share; give the draft of this target"
            )


Made = TypeVar("Made", bound=DFlashConfig)


def _from_format(
    cls: type[Made],
    draft: DraftFormat,
    pipeline_config: PipelineConfig,
    dtype: str,
    mask_specs: tuple[LayerMaskSpec, ...],
) -> Made:
    layer = draft.layer
    want_counts(layer, NEEDED, WHOSE)
    target = _target_config(pipeline_config.model.huggingface_config)
    _want_same(draft, target)
    taps, source = read_taps(draft, target.num_hidden_layers)
    heads = layer.num_attention_heads
    head_dim = count(layer, "head_dim", layer.hidden_size // heads, WHOSE)
    rope = RopeParameters.from_hf(
        layer, head_dim, whose=WHOSE, plain_turns_whole=draft.name == SPECULATORS
    )
    embedding, logits = _factors(draft, target)
    draft_vocab_size = draft.option("draft_vocab_size")
    if draft_vocab_size is None:
        draft_vocab_size = layer.vocab_size
    return cls(
        draft_format=draft.name,
        hidden_size=layer.hidden_size,
        target_hidden_size=target.hidden_size,
        target_vocab_size=target.vocab_size,
        num_target_layers=target.num_hidden_layers,
        vocab_size=layer.vocab_size,
        draft_vocab_size=whole_number("draft_vocab_size", draft_vocab_size, whose=WHOSE),
        taps=taps,
        taps_source=source,
        block_size=draft.block_size,
        mask_token_id=draft.mask_token_id,
        samples_anchor=draft.samples_anchor,
        num_attention_heads=heads,
        num_key_value_heads=count(layer, "num_key_value_heads", heads, WHOSE),
        head_dim=head_dim,
        intermediate_size=layer.intermediate_size,
        num_hidden_layers=layer.num_hidden_layers,
        rms_norm_eps=option(layer, "rms_norm_eps", 1e-6),
        mask_specs=mask_specs,
        rope=rope,
        max_position=rope.length_limit,
        dtype=dtype,
        attention_bias=boolean("attention_bias", getattr(layer, "attention_bias", None)),
        embedding_factor=embedding,
        logit_factor=logits,
        logit_softcap=draft.softcap,
    )


def _target_config(huggingface_config: Any) -> Any:
    """The part of a target's config that describes its text model."""
    config = text_config(huggingface_config)
    names = tuple(getattr(config, "architectures", None) or ())
    if names and names[0] in DRAFT_ARCHITECTURES:
        raise ConfigError(
            f"the target is {names[0]!r}, which is a draft and cannot run alone; give the model "
            "that it was made for, and this one as --draft with --speculative dflash"
        )
    want_counts(config, NEEDED_OF_TARGET, "the target's config")
    return config


def _want_same(draft: DraftFormat, target: Any) -> None:
    """Raises ConfigError when the draft says that it was made for another target."""
    for name, said, of_target, apart in (
        ("target_hidden_size", draft.option("target_hidden_size"), "hidden_size", 0),
        ("vocab_size", draft.layer.vocab_size, "vocab_size", MOST_PADDING),
        ("num_target_layers", draft.option("num_target_layers"), "num_hidden_layers", 0),
    ):
        has = getattr(target, of_target)
        if said is not None and abs(whole_number(name, said, whose=WHOSE) - has) > apart:
            raise ConfigError(
                f"the draft was made for a target with {of_target} {said} and this one has {has}; "
                "give the draft of this target"
            )


def _factors(draft: DraftFormat, target: Any) -> tuple[float, float]:
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
