"""EagleConfig: one validated configuration for EAGLE-1, EAGLE-2 and EAGLE-3 drafts.

Knows: what a draft and its target say of themselves. Does not know: tensors; imports no torch.
Letters: D draft width, N query heads, K kv heads, H head width, I feed-forward width.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import attrs

from pilotfish.config import ModelConfig, PipelineConfig
from pilotfish.config.checks import int_at_least, norm_epsilon, one_of
from pilotfish.config.hf_options import (
    MOST_PADDING,
    count,
    option,
    text_config,
    want_counts,
    want_value,
    want_written,
    whole_number,
    written,
)
from pilotfish.config.rope import RopeParameters
from pilotfish.errors import CheckpointError, ConfigError
from pilotfish.protocols import ReturnHiddenStates
from pilotfish.registry import Registry
from pilotfish.state import KVCacheParams, StateSpec
from pilotfish.weights.checkpoint import open_checkpoint
from pilotfish_eagle.formats import (
    SPECULATORS,
    WHOSE,
    DraftFormat,
    Version,
    boolean,
    read_format,
    read_taps,
    read_windows,
)

DRAFT_CACHE = "draft"
"""The paged cache with the draft's keys and values."""

NEEDED = (
    *("hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"),
    *("vocab_size", "max_position_embeddings"),
)
NEEDED_OF_TARGET = NEEDED_IN_FILE = ("hidden_size", "vocab_size", "num_hidden_layers")

NO_DRAFT = (
    "the draft's file has no fc.weight, so it is no EAGLE draft; a small language model drafts by "
    "another method"
)
DTYPES = ("auto", "float32", "bfloat16", "float16")

_count = int_at_least(1)


@attrs.frozen(kw_only=True)
class EagleConfig:
    """Everything the draft's network needs to know.

    version: 1 (EAGLE-1 and EAGLE-2) or 3. draft_format: how the draft is spelled (formats.py).
    taps: boundaries of the target's stream that EAGLE-3 reads, in fc's order; taps_source: how
        they were found. target_hidden_size, target_vocab_size, num_target_layers: of the target.
    max_position: rows from here on are not drafted. rope: rotary positions.
    vocab_size: rows of the draft's own embedding, which may be padded to another size.
    fc_bias: None until the file is known where the config does not say.
    norm_before_residual: the residual of layer 0 is the normed feature. norm_before_fc: one norm
        over all taps before fc. fc_norm: one norm for each tap before fc. norms_head: a norm stands
        before the head. recycles_normed: the next row gets the normed output, not the plain one.
    windows: keys that each layer's rows see, themselves included; None for all.
    own_embedding, own_head, has_offsets: whether the FILE has embed_tokens, lm_head, d2t.
    """

    version: Version = attrs.field(validator=one_of((1, 3)))
    draft_format: str
    hidden_size: int = attrs.field(validator=_count)
    target_hidden_size: int = attrs.field(validator=_count)
    target_vocab_size: int = attrs.field(validator=_count)
    num_target_layers: int = attrs.field(validator=_count)
    vocab_size: int = attrs.field(validator=_count)
    draft_vocab_size: int = attrs.field(validator=_count)
    taps: tuple[int, ...] = ()
    taps_source: str = ""
    num_attention_heads: int = attrs.field(validator=_count)
    num_key_value_heads: int = attrs.field(validator=_count)
    head_dim: int = attrs.field(validator=int_at_least(2))
    intermediate_size: int = attrs.field(validator=_count)
    num_hidden_layers: int = attrs.field(validator=_count)
    rms_norm_eps: float = attrs.field(validator=norm_epsilon())
    rope: RopeParameters
    max_position: int = attrs.field(validator=_count)
    dtype: str = attrs.field(validator=one_of(("float32", "bfloat16", "float16")))
    fc_bias: bool | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    norm_before_residual: bool = False
    norm_before_fc: bool = False
    fc_norm: bool = False
    norms_head: bool = True
    recycles_normed: bool = False
    windows: tuple[int | None, ...] = (None,)
    tie_word_embeddings: bool = False
    own_embedding: bool = False
    own_head: bool = False
    has_offsets: bool = False
    max_width: int | None = None
    lookahead: int = 1

    def __attrs_post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"the draft's num_attention_heads is {self.num_attention_heads} and "
                f"num_key_value_heads {self.num_key_value_heads}; wanted a multiple"
            )
        if self.version == 1 and self.hidden_size != self.target_hidden_size:
            raise ConfigError(
                f"the draft's hidden_size is {self.hidden_size} and the target's "
                f"{self.target_hidden_size}; wanted one: give the draft of this target"
            )
        if self.draft_vocab_size > self.vocab_size:
            raise ConfigError(
                f"the draft's draft_vocab_size is {self.draft_vocab_size} and its vocab_size "
                f"{self.vocab_size}; wanted at most that: give the draft of this target"
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
    def initialize(
        cls,
        pipeline_config: PipelineConfig,
        model_config: ModelConfig | None = None,
        *,
        registry: Registry | None = None,
    ) -> Self:
        """Reads the draft's and the target's Hugging Face configs; needs no weights.

        model_config: the draft; None means `pipeline_config.draft_model`. registry: not needed.
        Raises ConfigError for a draft of another target, and for any option that changes the maths
        and is not understood.
        """
        del registry
        model = model_config or pipeline_config.draft_model
        if model is None:
            raise ConfigError(
                "the method eagle needs a draft and got none; give one: --draft, or draft= in "
                "Python"
            )
        if model.weight_format != "safetensors":
            raise ConfigError(
                f"the draft {model.model} is a {model.weight_format} file; the method eagle reads "
                "a directory with config.json and safetensors or pytorch_model.bin"
            )
        draft = read_format(model.huggingface_config, written(model))
        if draft.name != SPECULATORS:  # that format leaves defaults out
            want_written(model, NEEDED_IN_FILE, WHOSE)
        try:
            return _from_format(cls, draft, pipeline_config)
        except ConfigError as error:
            if draft.version == 1:
                _refuse_ordinary_model(model, error)
            raise

    def finalize(self, huggingface_config: Any, state_dict: Mapping[str, Any]) -> Self:
        """Reads what only the tensors' names can tell.

        huggingface_config: the draft's. state_dict: tensor name -> anything.
        Raises ConfigError when they are not those of a draft like this.
        """
        del huggingface_config
        names = {name.removeprefix("model.") for name in state_dict}
        self._want_tensors(names)
        fc_bias = self.fc_bias if self.fc_bias is not None else "fc.bias" in names
        return attrs.evolve(
            self,
            fc_bias=fc_bias,
            own_embedding="embed_tokens.weight" in names,
            own_head="lm_head.weight" in names,
            has_offsets="d2t" in names,
        )

    @property
    def return_hidden_states(self) -> ReturnHiddenStates:
        """EAGLE-1 reads the target's normed output, EAGLE-3 its residual stream at the taps."""
        normed, selected = ReturnHiddenStates.ALL_NORMALIZED, ReturnHiddenStates.SELECTED
        return normed if self.version == 1 else selected

    @property
    def num_features(self) -> int:
        """Numbers of the target that one row reads."""
        return self.target_hidden_size * (len(self.taps) or 1)

    @property
    def has_tied_head(self) -> bool:
        """Whether the draft's head is its own embedding."""
        return self.tie_word_embeddings and self.own_embedding and not self.own_head

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

    def num_scratch_rows(self, width: int) -> int:
        """Rows past the committed ones: one for each drafted token but the last."""
        return max(0, width - 1)

    def get_kv_params(self) -> KVCacheParams:
        """As `kv_params`."""
        return self.kv_params

    def get_state_specs(self) -> tuple[StateSpec, ...]:
        """One paged cache, "draft"."""
        return (self.kv_params.spec,)

    def get_max_seq_len(self) -> int:
        """Rows that may be drafted; a longer text goes on without proposals."""
        return self.max_position

    def _want_tensors(self, names: set[str]) -> None:
        if "fc.weight" not in names:
            raise ConfigError(NO_DRAFT)
        is_third = any(name.endswith(".hidden_norm.weight") for name in names)
        if is_third != (self.version == 3):
            raise ConfigError(
                f"the draft's config is EAGLE-{self.version}'s and its file has "
                f"{'a' if is_third else 'no'} layers.0.hidden_norm.weight, as EAGLE-"
                f"{3 if is_third else 1}'s have; set architectures in its config.json"
            )
        if self.version == 1:
            return
        if self.draft_vocab_size < self.vocab_size and "d2t" not in names:
            raise ConfigError(
                f"the draft knows {self.draft_vocab_size} of {self.vocab_size} tokens and "
                "its file has no d2t, which says which; the file is incomplete"
            )
        if "embed_tokens.weight" not in names and self.hidden_size != self.target_hidden_size:
            raise ConfigError(
                f"the draft is {self.hidden_size} wide, the target {self.target_hidden_size}, and "
                "the draft's file has no embed_tokens.weight; the file is incomplete"
            )
        borrows = "lm_head.weight" not in names and not (
            self.tie_word_embeddings and "embed_tokens.weight" in names
        )
        fits = (self.draft_vocab_size, self.hidden_size) == (
            self.vocab_size,
            self.target_hidden_size,
        )
        if borrows and "d2t" in names:
            raise ConfigError(
                "the draft's file has d2t and no lm_head.weight, whose rows it would name; the "
                "target's head has its own; the file is incomplete"
            )
        if borrows and not fits:
            raise ConfigError(
                "the draft's file has no lm_head.weight and the target's head has another shape; "
                "the file is incomplete"
            )


Made = TypeVar("Made", bound=EagleConfig)


def _from_format(cls: type[Made], draft: DraftFormat, pipeline_config: PipelineConfig) -> Made:
    layer = draft.layer
    want_counts(layer, NEEDED, WHOSE)
    target = text_config(pipeline_config.model.huggingface_config)
    want_counts(target, NEEDED_OF_TARGET, "the target's config")
    _want_same(draft, target)
    is_third = draft.version == 3
    taps, source = read_taps(draft, target.num_hidden_layers) if is_third else ((), "")
    heads = layer.num_attention_heads
    head_dim = count(layer, "head_dim", layer.hidden_size // heads, WHOSE)
    attention_bias = boolean("attention_bias", getattr(layer, "attention_bias", None))
    qkv_bias = draft.option("qkv_bias")
    bias = draft.option("bias")
    if bias is None and not is_third:
        bias = True
    return cls(
        version=draft.version,
        draft_format=draft.name,
        hidden_size=layer.hidden_size,
        target_hidden_size=target.hidden_size,
        target_vocab_size=target.vocab_size,
        num_target_layers=target.num_hidden_layers,
        vocab_size=layer.vocab_size,
        draft_vocab_size=_draft_vocab_size(draft),
        taps=taps,
        taps_source=source,
        num_attention_heads=heads,
        num_key_value_heads=count(layer, "num_key_value_heads", heads, WHOSE),
        head_dim=head_dim,
        intermediate_size=layer.intermediate_size,
        num_hidden_layers=layer.num_hidden_layers,
        rms_norm_eps=option(layer, "rms_norm_eps", 1e-6),
        rope=RopeParameters.from_hf(
            layer, head_dim, whose=WHOSE, plain_turns_whole=draft.name == SPECULATORS
        ),
        max_position=layer.max_position_embeddings,
        dtype=_dtype(pipeline_config, draft),
        fc_bias=None if bias is None else boolean("bias", bias),
        qkv_bias=attention_bias if qkv_bias is None else boolean("qkv_bias", qkv_bias),
        out_bias=attention_bias,
        mlp_bias=boolean("mlp_bias", getattr(layer, "mlp_bias", None)),
        tie_word_embeddings=boolean("tie_word_embeddings", draft.option("tie_word_embeddings")),
        norm_before_residual=draft.flag("norm_before_residual"),
        norm_before_fc=draft.flag("norm_before_fc"),
        fc_norm=draft.flag("fc_norm"),
        norms_head=draft.norms_head,
        recycles_normed=draft.recycles_normed,
        windows=read_windows(draft),
    )


def _want_same(draft: DraftFormat, target: Any) -> None:
    """Raises ConfigError when the draft says that it was made for another target."""
    width = draft.option("target_hidden_size") or draft.layer.hidden_size
    whole_number("target_hidden_size", width, whose=WHOSE)
    for name, said, has, apart in (
        ("hidden_size", width, target.hidden_size, 0),
        ("vocab_size", draft.layer.vocab_size, target.vocab_size, MOST_PADDING),
    ):
        if abs(said - has) > apart:
            raise ConfigError(
                f"the draft was made for a target with {name} {said} and this one has {has}; give "
                "the draft of this target"
            )


def _draft_vocab_size(draft: DraftFormat) -> int:
    given = draft.option("draft_vocab_size") if draft.version == 3 else None
    if given is None:
        return count(draft.layer, "vocab_size", whose=WHOSE)
    return whole_number("draft_vocab_size", given, whose=WHOSE)


def _dtype(pipeline_config: PipelineConfig, draft: DraftFormat) -> str:
    """The run's dtype: the draft reads the target's numbers."""
    given = draft.option("dtype") or draft.option("torch_dtype")
    name = "auto" if given is None else str(given).removeprefix("torch.")
    want_value("torch_dtype", name, DTYPES, WHOSE)
    if pipeline_config.runtime.dtype != "auto":
        return pipeline_config.runtime.dtype
    return "float32" if name == "auto" else name


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
