"""The formats in which DFlash drafts are published, as data: names, options, layer ids, masks.

Knows: what a format says and how it spells it. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import attrs

from pilotfish.config import ModelConfig
from pilotfish.config.hf_options import Allowed, option, real_number, section, whole_number, written
from pilotfish.errors import ConfigError
from pilotfish.speculation.draft_format import (
    SLIDING,
    SPECULATORS,
    WHOSE,
    DraftFormat,
    architecture_names,
    draft_flag,
    layer_ids,
    reference_layers,
)

DRAFT_ARCHITECTURES = ("DFlashDraftModel", "DFlashSpeculator")

DFLASH = "dflash"
"""Name of z-lab's own format."""
SECTION = "dflash_config"

_LAYER_IDS = {DFLASH: "target_layer_ids", SPECULATORS: "aux_hidden_state_layer_ids"}
_BLOCK_SIZE = {DFLASH: 16, SPECULATORS: 8}
"""Defaults of the formats' own code."""

MOST_BLOCK = 1024
"""Longest block: published ones have 16 rows or fewer, and no step drafts more than 64 tokens."""

_MARKS: Mapping[str, tuple[str, ...]] = {
    "DFlash2": ("selector_rank", "selector_top_k", "conv_kernel_size", "conv_group_size"),
    "DSpark": ("markov_rank", "markov_head_type", "enable_confidence_head"),
}
"""Options that only drafts of another method have."""
_TENSOR_MARKS: Mapping[str, tuple[str, ...]] = {
    "DFlash2": ("attention_conv.", "mlp_conv.", "candidate_selector."),
    "DSpark": ("markov_head.", "markov_", "confidence_head."),
    "Domino": ("prefix_gru.", "embed_proj."),
}
_READ_EITHER = frozenset(
    {
        *("block_size", "mask_token_id", "sample_from_anchor"),
        *("input_embedding_scale", "output_multiplier", "final_logit_softcapping"),
    }
)
"""Options that are read inside `dflash_config` and beside it."""


@attrs.frozen(kw_only=True)
class LayerMaskSpec:
    """What one layer's rows see. window: keys on a side, itself included; None for all.

    is_causal: whether a row of the block sees no later ones.
    """

    window: int | None = None
    is_causal: bool = False


@attrs.frozen(kw_only=True)
class DFlashFormat(DraftFormat):
    """name: DFLASH or SPECULATORS."""

    method: ClassVar[str] = DFLASH
    architectures: ClassVar[tuple[str, ...]] = DRAFT_ARCHITECTURES
    speculators_type: ClassVar[str] = "dflash"
    layer_model_types: ClassVar[tuple[str, ...]] = ("qwen3", "llama")
    section_name: ClassVar[str] = SECTION
    refused: ClassVar[Allowed] = {
        "logit_softcapping": (None, 0),
        "mlp_bias": (None, False),
        "qkv_bias": (None, False),
        "use_qk_norm": (None, True),
        "qk_norm": (None, True),
        "norm_type": (None, "rms_norm", "rmsnorm", "RMSNorm"),
        "use_final_norm": (None, True),
        "mask_embedding": (None, False),
        "rotary_dim": (None,),
        "attention_sinks": (None, False),
        "attention_sink_bias": (None, False),
        "use_attention_sink": (None, False),
        "add_swa_attention_sink_bias": (None, False),
        "add_full_attention_sink_bias": (None, False),
        "attention_value_scale": (None, 1.0),
        "norm_before_fc": (None, False),
        "fc_norm": (None, False),
        "projector_type": (None, "dflash"),
        "shift_label": (None, False),
    }
    read_inside: ClassVar[frozenset[str]] = _READ_EITHER | {
        *("target_layer_ids", "causal", "use_swa", "swa_window_size")
    }
    neutral_inside: ClassVar[Allowed] = {
        "use_aux_hidden_state": (None, True),
        "projector_type": (None, "dflash"),
    }
    read_beside: ClassVar[frozenset[str]] = _READ_EITHER | {
        *("aux_hidden_state_layer_ids", "is_causal", "sliding_window_non_causal")
    }

    @classmethod
    def of(cls, model: ModelConfig) -> Self:
        """As the base; raises ConfigError naming the method that a draft belongs to, if another."""
        options = model.huggingface_config
        nested = section(options, SECTION, "the draft's")
        for method, names in _MARKS.items():
            found = [name for name in names if name in nested or option(options, name) is not None]
            if found:
                raise _other(method, f"config has {', '.join(found)}")
        return super().of(model)

    @classmethod
    def name_of(cls, options: Any) -> str:
        """As the base; more architectures than one are refused."""
        name, names = super().name_of(options), architecture_names(options)
        if len(set(names)) > 1:
            raise ConfigError(
                f"the draft's architectures are {list(names)}; wanted one: take out the wrong ones"
            )
        return name

    def option(self, name: str) -> Any:
        """An option inside `dflash_config`, else beside it, else of the layers; None if nowhere.

        Raises ConfigError where the first two are given and differ.
        """
        nested, found = self.section.get(name), option(self.options, name)
        if nested is None:
            return super().option(name)
        if found is not None and found != nested:
            raise ConfigError(
                f"the draft's dflash_config has {name} = {nested!r} and its config.json {found!r} "
                "beside it; wanted one: take out the wrong one"
            )
        return nested

    @property
    def block_size(self) -> int:
        """Rows of a block, the anchor included."""
        given = self.option("block_size")
        given = _BLOCK_SIZE[self.name] if given is None else given
        size = whole_number("block_size", given, whose=WHOSE)
        if size > MOST_BLOCK:
            raise ConfigError(
                f"{WHOSE} has block_size = {size}; wanted at most {MOST_BLOCK}, the rows of a block"
            )
        return size

    @property
    def mask_token_id(self) -> int:
        """What the rows after the anchor read. Raises ConfigError when the config has none."""
        given = self.option("mask_token_id")
        if given is None:
            raise ConfigError(
                "the draft's config has no mask_token_id; wanted the id of the token that stands "
                "for one not yet known: set it in dflash_config (or beside it)"
            )
        return whole_number("mask_token_id", given, least=0, whose=WHOSE)

    def factor(self, name: str) -> float | None:
        """A factor of the maths, above 0; None where the config does not give one."""
        given = self.option(name)
        return None if given is None else real_number(name, given, above=0, whose=WHOSE)

    @property
    def softcap(self) -> float | None:
        """c of `c tanh(logits / c)`; None where the config has none, or 0, which is off."""
        name = "final_logit_softcapping"
        return real_number(name, self.option(name) or 0, least=0, whose=WHOSE) or None

    def format_layers(self, num_target_layers: int) -> tuple[tuple[int, ...], str]:
        """z-lab's ids name blocks, after which the stream is taken; speculators' are boundaries."""
        name = _LAYER_IDS[self.name]
        shift = 1 if self.name == DFLASH else 0
        given = self.option(name)
        if given is not None:
            layers = tuple(i + shift for i in layer_ids(name, given))
            return layers, f"{name}: " + ("after blocks" if shift else "boundaries")
        if shift:
            layers = tuple(i + 1 for i in _spread(num_target_layers, self.layer.num_hidden_layers))
            return layers, f"no {name} in the config: spread over the target, after blocks"
        layers = reference_layers(num_target_layers)
        return layers, f"no {name} in the config: the format's own, boundaries"

    def mask_specs(self) -> tuple[LayerMaskSpec, ...]:
        """What each layer sees.

        Full layers see the whole block, sliding ones are causal in it, unless the config says
        otherwise: `is_causal` or `dflash_config.causal` for all layers, `sliding_window_non_causal`
        (speculators) for the sliding ones. `dflash_config.use_swa` makes all layers slide, not
        causal.
        """
        kinds, nested = self.layer_types(), self.section
        causal = [kind == SLIDING for kind in kinds]
        if self.flag("sliding_window_non_causal"):
            causal = [False] * len(kinds)
        if draft_flag("use_swa", nested.get("use_swa")) and SLIDING not in kinds:
            kinds, causal = (SLIDING,) * len(kinds), [False] * len(kinds)
        for given in (nested.get("causal"), option(self.options, "is_causal")):
            if given is not None:
                causal = [draft_flag("is_causal", given)] * len(kinds)
        window = self._window() if SLIDING in kinds else None
        return tuple(
            LayerMaskSpec(window=window if kind == SLIDING else None, is_causal=is_causal)
            for kind, is_causal in zip(kinds, causal, strict=True)
        )

    def _window(self) -> int:
        """Keys that a sliding layer sees, itself included; a default is another model's."""
        given = self.section.get("swa_window_size")
        if given is not None:
            return whole_number("swa_window_size", given, whose="the draft's dflash_config")
        is_packed = self.name == SPECULATORS
        said = self.options.transformer_layer_config if is_packed else written(self.model)
        is_written = said.get("sliding_window") is not None
        given = option(self.layer, "sliding_window")
        if is_written and given is not None:
            return whole_number("sliding_window", given, whose=WHOSE)
        off = ", with use_sliding_window true" if is_written else ""
        raise ConfigError(
            "the draft has sliding layers (layer_types, or use_swa) and no window; wanted "
            f"sliding_window in its config.json{off}, or swa_window_size in its dflash_config"
        )


def refuse_other_tensors(names: Iterable[str]) -> None:
    """Raises ConfigError naming the method that tensors belong to, if it is not this one."""
    for name in names:
        for method, marks in _TENSOR_MARKS.items():
            if any(mark in name for mark in marks):
                raise _other(method, f"file has {name}")


def _other(method: str, why: str) -> ConfigError:
    return ConfigError(
        f"the draft's {why}: it is a {method} draft, another model; the method dflash reads DFlash "
        "drafts only"
    )


def _spread(num_target_layers: int, count: int) -> list[int]:
    """z-lab's default ids: spread evenly over blocks 1 to L - 3; one layer reads the middle."""
    if count == 1:
        return [num_target_layers // 2]
    first, last = 1, num_target_layers - 3
    return [round(first + i * (last - first) / (count - 1)) for i in range(count)]
