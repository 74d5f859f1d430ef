"""The formats in which EAGLE drafts are published, as data: names, options, layer ids.

Knows: what a format says and how it spells it. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from pilotfish.config.hf_options import (
    TRAINING_ONLY,
    option,
    refuse_all,
    shortened,
    unserved,
    whole_number,
)
from pilotfish.config.quantization import refuse_quantized
from pilotfish.errors import ConfigError
from pilotfish.weights.hf_config import config_of_section

EAGLE1_ARCHITECTURES = ("LlamaForCausalLM", "EagleLlamaForCausalLM", "LlamaForCausalLMEagle")
EAGLE3_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
SPECULATORS_ARCHITECTURES = ("Eagle3Speculator", "Eagle3DraftModel")
DRAFT_ARCHITECTURES = (*EAGLE1_ARCHITECTURES, *EAGLE3_ARCHITECTURES, *SPECULATORS_ARCHITECTURES)

Version = Literal[1, 3]

SPECULATORS = "speculators"
"""Name of the format of the speculators package."""

FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""EAGLE-3 options that this plugin reads, beside the config or inside `eagle_config`."""
_LAYER_IDS = "eagle_aux_hidden_state_layer_ids"
_OVERRIDE = "hidden_state_boundaries"

SLIDING, FULL = "sliding_attention", "full_attention"
WHOSE = "the draft's config"

_EAGLE_CONFIG_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "use_aux_hidden_state": (None, True),
    "use_input_layernorm_in_first_layer": (None, True),
    "use_last_layernorm": (None, True),
    "use_mtp_layernorm": (None, False),
    "next_layer_regular": (None, True),
    "has_lm_head": (None, True, False),
    "parallel_draft_step": (None, 1),
}
"""Options inside `eagle_config` that are not read: values that change nothing."""
_EAGLE_CONFIG_NO_MATTER = ("parallel_draft_heads_num_layers",)
"""Of the heads that `parallel_draft_step` counts; with one step there are none."""

_SPECULATORS_KNOWN = frozenset(
    {
        *FLAGS,
        *("eagle_config", _LAYER_IDS, _OVERRIDE, "architectures", "auto_map", "draft_vocab_size"),
        *("torch_dtype", "dtype", "speculators_config", "speculators_model_type"),
        *("target_hidden_size", "transformer_layer_config", "transformers_version", "model_type"),
        *("speculators_version", "tie_word_embeddings", *TRAINING_ONLY),
    }
)

_REFUSED: Mapping[str, tuple[object, ...]] = {
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "use_qk_norm": (None, False),
    "qk_layernorm": (None, False),
    "is_causal": (None, True),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "parallel_drafting": (None, False),
    "logit_softcap": (None,),
    "logits_soft_cap": (None,),
    "mup_width": (None,),
    "num_nextn_predict_layers": (None, 0),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "mrope_section": (None,),
    "hidden_act": (None, "silu", "swish"),
}
"""Options of a draft's layers that would change the maths and are not read."""


@attrs.frozen(kw_only=True)
class DraftFormat:
    """What a draft's config.json says, whatever its spelling. Made by `read_format`.

    version: 1 for EAGLE-1 and EAGLE-2, which differ only in how they search; 3 for EAGLE-3.
    name: "eagle", "eagle3" or "speculators". layer: options of the transformer layers, as a
        Hugging Face config. options: the whole config.
    """

    version: Version
    name: str
    layer: Any = attrs.field(repr=False)
    options: Any = attrs.field(repr=False)

    def flag(self, name: str) -> bool:
        """An option of EAGLE-3; inside `eagle_config` it wins over beside it."""
        return bool(self._written_flag(name))

    def _written_flag(self, name: str) -> bool | None:
        nested = eagle_section(self.options).get(name)
        found = option(self.options, name) if nested is None else nested
        return None if found is None else boolean(name, found)

    def option(self, name: str) -> Any:
        """An option of the draft as a whole, else of its layers; None where it is in neither."""
        return option(self.options, name, option(self.layer, name))

    @property
    def recycles_normed(self) -> bool:
        """Whether the next row gets the output after the norm; only speculators trains so."""
        return self.name == SPECULATORS and self.flag("norm_output")

    @property
    def norms_head(self) -> bool:
        """Whether a norm stands before the draft's head: what others call `norm_output`."""
        if self.name == SPECULATORS or self.version == 1:
            return True
        return self._written_flag("norm_output") is not False


def read_format(options: Any, written: Mapping[str, Any]) -> DraftFormat:
    """Finds version and format of a draft. Raises ConfigError naming what is not understood.

    options: the draft's Hugging Face config; never changed. written: what its file says, without
        defaults.
    """
    kind = option(options, "speculators_model_type")
    if kind is not None:
        if kind != "eagle3":
            raise ConfigError(
                f"the draft's speculators_model_type is {kind!r}; the method eagle reads 'eagle3'"
            )
        layer = config_of_section(options, "transformer_layer_config", ("llama",), "the draft's")
        found = DraftFormat(version=3, name=SPECULATORS, layer=layer, options=options)
    else:
        version = _version(options)
        name = "eagle" if version == 1 else "eagle3"
        found = DraftFormat(version=version, name=name, layer=options, options=options)
    _refuse_unread(found, written)
    return found


def eagle_section(options: Any) -> Mapping[str, Any]:
    """The `eagle_config` of a draft, empty where there is none."""
    raw = option(options, "eagle_config") or {}
    if isinstance(raw, Mapping):
        return raw
    if isinstance(raw, str | int | float | Sequence):
        raise ConfigError(f"the draft's eagle_config is {raw!r}; wanted an object of options")
    fields: Mapping[str, Any] = vars(raw)
    return fields


def boolean(name: str, value: object) -> bool:
    """An option that is on or off; None is off. Raises ConfigError for anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigError(f"the draft's {name} is {value!r}; wanted true or false")


def read_taps(draft: DraftFormat, num_target_layers: int) -> tuple[tuple[int, ...], str]:
    """The target's boundaries that an EAGLE-3 draft reads, and how they were found.

    Boundary i is the residual stream after block i-1. Ids beside the config (speculators, vLLM)
    are boundaries; ids inside `eagle_config` (SpecForge) name blocks, after which the stream is
    taken, unless they cannot: the last boundary is no block, and the reference's own three are
    boundaries wherever they stand. No ids, or an empty list of them, mean the reference's three.
    `hidden_state_boundaries` overrides all of it.
    Raises ConfigError when one is outside of the target.
    """
    count = num_target_layers
    default = (2, count // 2, count - 3)
    nested = eagle_section(draft.options).get(_LAYER_IDS)
    beside, override = (option(draft.options, name) for name in (_LAYER_IDS, _OVERRIDE))
    if override is not None:
        taps, source = _ids(override, _OVERRIDE), f"{_OVERRIDE}: boundaries"
    elif nested:
        ids = _ids(nested, _LAYER_IDS)
        blocks = ids != default and count not in ids
        taps = tuple(i + 1 for i in ids) if blocks else ids
        source = f"eagle_config.{_LAYER_IDS}: " + ("after blocks" if blocks else "boundaries")
    elif beside:
        taps, source = _ids(beside, _LAYER_IDS), f"{_LAYER_IDS}: boundaries"
    else:
        taps, source = default, "not in the config: the reference's boundaries"
    if any(not 0 <= tap <= count for tap in taps):
        raise ConfigError(
            f"the draft reads the target's boundaries {list(taps)} ({source}); the target has "
            f"{count} layers, so 0 to {count}: give the draft of this target"
        )
    return taps, source


def _ids(value: Any, name: str) -> tuple[int, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(type(item) is int for item in value):
        raise ConfigError(
            f"the draft's {name} is {value!r}; wanted a list of whole numbers, one at least"
        )
    return tuple(value)


def read_windows(draft: DraftFormat) -> tuple[int | None, ...]:
    """Keys that each layer's rows see, themselves included; None for all.

    `layer_types` says which layers slide. A `sliding_window` alone is no more than a leftover of
    the target's config: no trainer reads it. Raises ConfigError for `use_sliding_window` without
    `layer_types`, which does not say which layers.
    """
    layer = draft.layer
    count = whole_number("num_hidden_layers", layer.num_hidden_layers, whose=WHOSE)
    given = option(layer, "layer_types")
    kinds = (FULL,) * count if given is None else tuple(given)
    if len(kinds) != count or not set(kinds) <= {SLIDING, FULL}:
        raise ConfigError(
            f"the draft's layer_types are {list(kinds)}; wanted {count} of {FULL!r} or {SLIDING!r}"
        )
    uses = boolean("use_sliding_window", option(layer, "use_sliding_window"))
    if given is None and uses and option(layer, "sliding_window") is not None:
        raise ConfigError(
            f"{WHOSE} has use_sliding_window = True and no layer_types, which say which layers "
            f"slide; wanted {count} of {FULL!r} or {SLIDING!r}"
        )
    if SLIDING not in kinds:
        return (None,) * count
    window = option(layer, "sliding_window")
    if window is None:
        raise ConfigError(f"{WHOSE} has layer_types that slide and no sliding_window; wanted both")
    window = whole_number("sliding_window", window, whose=WHOSE)
    return tuple(window if kind == SLIDING else None for kind in kinds)


def _version(options: Any) -> Version:
    names = tuple(option(options, "architectures") or ("",))
    has_fields = option(options, "draft_vocab_size") is not None or bool(eagle_section(options))
    if names[0] in EAGLE3_ARCHITECTURES or (names[0] in EAGLE1_ARCHITECTURES and has_fields):
        return 3
    if names[0] in EAGLE1_ARCHITECTURES:
        return 1
    raise ConfigError(
        f"the draft's architecture is {names[0]!r}; the method eagle reads "
        f"{', '.join(DRAFT_ARCHITECTURES)}"
    )


def _refuse_unread(draft: DraftFormat, written: Mapping[str, Any]) -> None:
    """Raises ConfigError for all that would change the maths and is not read.

    Options of the speculators format are off by default: an unknown one that is set matters.
    """
    for config in (draft.options, draft.layer):
        refuse_quantized(config, "the draft")
    found = unserved({name: draft.option(name) for name in _REFUSED}, _REFUSED)
    nested = {
        name: value
        for name, value in eagle_section(draft.options).items()
        if name not in (*FLAGS, _LAYER_IDS, *_EAGLE_CONFIG_NO_MATTER, *TRAINING_ONLY)
    }
    allowed = {name: _EAGLE_CONFIG_NEUTRAL.get(name, (None, False)) for name in nested}
    found += [(f"eagle_config.{said}", wanted) for said, wanted in unserved(nested, allowed)]
    if draft.name == SPECULATORS:
        found += [
            (f"{name} = {shortened(value)}", "it absent")
            for name, value in sorted(written.items())
            if value and name not in _SPECULATORS_KNOWN and name not in _REFUSED
        ]
    if draft.version == 1:
        found += [
            (f"{name} = True", "it absent: it is an option of EAGLE-3, not of EAGLE-1")
            for name in FLAGS
            if draft.flag(name)
        ]
    refuse_all(found, WHOSE)
