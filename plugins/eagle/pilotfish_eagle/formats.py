"""The formats in which EAGLE drafts are published, as data: names, options, layer ids.

Knows: what a format says and how it spells it. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from pilotfish.config.hf_options import want_value
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

_EAGLE_CONFIG_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "use_aux_hidden_state": (None, True),
    "use_input_layernorm_in_first_layer": (None, True),
    "use_last_layernorm": (None, True),
    "use_mtp_layernorm": (None, False),
    "parallel_draft_step": (None, 1),
}
"""Options inside `eagle_config` that are not read: values that change nothing."""

_SPECULATORS_KNOWN = frozenset(
    {
        *FLAGS,
        *(
            "eagle_config",
            _LAYER_IDS,
            _OVERRIDE,
            "architectures",
            "auto_map",
            "draft_vocab_size",
            "dtype",
        ),
        *("torch_dtype", "speculators_config", "speculators_model_type", "speculators_version"),
        *("target_hidden_size", "transformer_layer_config", "transformers_version", "model_type"),
        *("embed_requires_grad", "has_no_defaults_at_init", "enable_sp_ulysses"),
        *("draft_attn_kernel", "tie_word_embeddings"),
    }
)

_REFUSED: Mapping[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "final_logit_softcapping": (None,),
    "attn_logit_softcapping": (None,),
    "query_pre_attn_scalar": (None,),
    "sliding_window": (None,),
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
        nested = eagle_section(self.options).get(name)
        found = _option(self.options, name) if nested is None else nested
        return boolean(name, found)

    def option(self, name: str) -> Any:
        """An option of the draft as a whole, else of its layers; None where it is in neither."""
        found = _option(self.options, name)
        return _option(self.layer, name) if found is None else found


def read_format(options: Any, written: Mapping[str, Any]) -> DraftFormat:
    """Finds version and format of a draft. Raises ConfigError naming what is not understood.

    options: the draft's Hugging Face config; never changed. written: what its file says, without
        defaults.
    """
    kind = _option(options, "speculators_model_type")
    if kind is not None:
        if kind != "eagle3":
            raise ConfigError(
                f"the draft's speculators_model_type is {kind!r}; the method eagle reads 'eagle3'"
            )
        _refuse_unknown_speculators(written)
        layer = config_of_section(options, "transformer_layer_config", ("llama",), "the draft's")
        found = DraftFormat(version=3, name=SPECULATORS, layer=layer, options=options)
    else:
        version = _version(options)
        name = "eagle" if version == 1 else "eagle3"
        found = DraftFormat(version=version, name=name, layer=options, options=options)
    _refuse_unread(found)
    return found


def eagle_section(options: Any) -> Mapping[str, Any]:
    """The `eagle_config` of a draft, empty where there is none."""
    raw = _option(options, "eagle_config") or {}
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
    boundaries wherever they stand. `hidden_state_boundaries` overrides all of it.
    Raises ConfigError when one is outside of the target.
    """
    count = num_target_layers
    default = (2, count // 2, count - 3)
    nested = eagle_section(draft.options).get(_LAYER_IDS)
    beside, override = (_option(draft.options, name) for name in (_LAYER_IDS, _OVERRIDE))
    if override is not None:
        taps, source = _ids(override, _OVERRIDE), f"{_OVERRIDE}: boundaries"
    elif nested is not None:
        ids = _ids(nested, _LAYER_IDS)
        blocks = ids != default and count not in ids
        taps = tuple(i + 1 for i in ids) if blocks else ids
        source = f"eagle_config.{_LAYER_IDS}: " + ("after blocks" if blocks else "boundaries")
    elif beside is not None:
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


def _option(options: Any, name: str) -> Any:
    return getattr(options, name, None)


def _version(options: Any) -> Version:
    names = tuple(_option(options, "architectures") or ("",))
    has_fields = _option(options, "draft_vocab_size") is not None or bool(eagle_section(options))
    if names[0] in EAGLE3_ARCHITECTURES or (names[0] in EAGLE1_ARCHITECTURES and has_fields):
        return 3
    if names[0] in EAGLE1_ARCHITECTURES:
        return 1
    raise ConfigError(
        f"the draft's architecture is {names[0]!r}; the method eagle reads "
        f"{', '.join(DRAFT_ARCHITECTURES)}"
    )


def _refuse_unknown_speculators(values: Mapping[str, Any]) -> None:
    """Options are off by default there: an unknown one that is set changes something."""
    unknown = sorted(
        name for name, value in values.items() if value and name not in _SPECULATORS_KNOWN
    )
    if unknown:
        raise ConfigError(
            f"the draft's config sets {', '.join(unknown)}, which the method eagle does not read; "
            "wanted a draft without"
        )


def _refuse_unread(draft: DraftFormat) -> None:
    for name, allowed in _REFUSED.items():
        want_value(name, draft.option(name), allowed, "the draft's config")
    kinds = _option(draft.layer, "layer_types") or ()
    if any(kind != "full_attention" for kind in kinds):
        raise ConfigError(
            f"the draft's layer_types are {list(kinds)}; the method eagle reads 'full_attention'"
        )
    activation = _option(draft.layer, "hidden_act")
    want_value("hidden_act", activation, (None, "silu", "swish"), "the draft's config")
    for name, value in eagle_section(draft.options).items():
        if name in FLAGS or name == _LAYER_IDS:
            continue
        if value not in _EAGLE_CONFIG_NEUTRAL.get(name, (None, False)):
            raise ConfigError(
                f"the draft's eagle_config has {name} = {value!r}, which the method eagle does not "
                "read; wanted a draft without"
            )
    if draft.version == 1 and any(draft.flag(name) for name in FLAGS):
        set_flags = ", ".join(name for name in FLAGS if draft.flag(name))
        raise ConfigError(
            f"the draft's config has {set_flags}, an option of EAGLE-3, and its architecture is "
            f"EAGLE-1's; wanted one of {', '.join(EAGLE3_ARCHITECTURES)}"
        )
