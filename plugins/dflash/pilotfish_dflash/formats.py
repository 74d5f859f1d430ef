"""The formats in which DFlash drafts are published, as data: names, options, layer ids.

Knows: what a format says and how it spells it. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from pilotfish.config.hf_options import option, real_number, whole_number
from pilotfish.errors import ConfigError
from pilotfish.weights.hf_config import config_of_section
from pilotfish_dflash.options import WHOSE, boolean, section
from pilotfish_dflash.unread import refuse_other_methods, refuse_unread

DRAFT_ARCHITECTURES = ("DFlashDraftModel", "DFlashSpeculator")

DFLASH, SPECULATORS = "dflash", "speculators"
"""Names of the formats: z-lab's own, and the speculators package's."""

_OVERRIDE = "hidden_state_boundaries"
_LAYER_IDS = {DFLASH: "target_layer_ids", SPECULATORS: "aux_hidden_state_layer_ids"}
_BLOCK_SIZE = {DFLASH: 16, SPECULATORS: 8}
"""Defaults of the formats' own code."""

MOST_BLOCK = 1024
"""Longest block: published ones have 16 rows or fewer, and no step drafts more than 64 tokens."""

SLIDING, FULL = "sliding_attention", "full_attention"


@attrs.frozen(kw_only=True)
class LayerMaskSpec:
    """What one layer's rows see. window: keys on a side, itself included; None for all.

    is_causal: whether a row of the block sees no later ones.
    """

    window: int | None = None
    is_causal: bool = False


@attrs.frozen(kw_only=True)
class DraftFormat:
    """What a draft's config.json says, whatever its spelling. Made by `read_format`.

    name: DFLASH or SPECULATORS. layer: options of the transformer layers, as a Hugging Face config.
    options: the whole config.
    """

    name: str
    layer: Any = attrs.field(repr=False)
    options: Any = attrs.field(repr=False)

    def option(self, name: str) -> Any:
        """An option inside `dflash_config`, else beside it, else of the layers; None if nowhere.

        Raises ConfigError where the first two are given and differ.
        """
        nested = section(self.options, "dflash_config").get(name)
        found = option(self.options, name)
        if nested is None:
            return option(self.layer, name) if found is None else found
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

    @property
    def samples_anchor(self) -> bool:
        """Whether the anchor's row proposes too, and each row the token after it."""
        return boolean("sample_from_anchor", self.option("sample_from_anchor"))

    def factor(self, name: str) -> float | None:
        """A factor of the maths, above 0; None where the config does not give one."""
        given = self.option(name)
        return None if given is None else real_number(name, given, above=0, whose=WHOSE)

    @property
    def softcap(self) -> float | None:
        """c of `c tanh(logits / c)`; None where the config has none, or 0, which is off."""
        name = "final_logit_softcapping"
        return real_number(name, self.option(name) or 0, least=0, whose=WHOSE) or None


def read_format(options: Any, written: Mapping[str, Any]) -> DraftFormat:
    """Finds the format of a draft. Raises ConfigError naming what is not understood.

    options: the draft's Hugging Face config; never changed. written: what its file says, without
        defaults.
    """
    refuse_other_methods(options)
    if option(options, "speculators_model_type") is not None:
        layer = config_of_section(
            options, "transformer_layer_config", ("qwen3", "llama"), "the draft's"
        )
        found = DraftFormat(name=SPECULATORS, layer=layer, options=options)
    else:
        names = tuple(option(options, "architectures") or ("",))
        if names[0] not in DRAFT_ARCHITECTURES:
            raise ConfigError(
                f"the draft's architecture is {names[0]!r}; the method dflash reads "
                f"{', '.join(DRAFT_ARCHITECTURES)}"
            )
        if len(set(names)) > 1:
            raise ConfigError(
                f"the draft's architectures are {list(names)}; wanted one: take out the wrong ones"
            )
        found = DraftFormat(name=DFLASH, layer=options, options=options)
    refuse_unread(found.layer, found.options, written if found.name == SPECULATORS else None)
    return found


def read_taps(draft: DraftFormat, num_target_layers: int) -> tuple[tuple[int, ...], str]:
    """The target's boundaries that the draft reads, in fc's order, and how they were found.

    Boundary i is the residual stream after block i-1. z-lab's ids name blocks, after which the
    stream is taken; those of speculators are boundaries. `hidden_state_boundaries` overrides both.
    Raises ConfigError when one is outside of the target.
    """
    name = _LAYER_IDS[draft.name]
    shift = 1 if draft.name == DFLASH else 0
    override, given = option(draft.options, _OVERRIDE), draft.option(name)
    if override is not None:
        taps, source = _ids(override, _OVERRIDE), f"{_OVERRIDE}: boundaries"
    elif given is not None:
        taps = tuple(i + shift for i in _ids(given, name))
        source = f"{name}: " + ("after blocks" if shift else "boundaries")
    elif draft.name == DFLASH:
        taps = tuple(i + 1 for i in _spread(num_target_layers, draft.layer.num_hidden_layers))
        source = f"no {name} in the config: spread over the target, after blocks"
    else:
        taps = (2, num_target_layers // 2, num_target_layers - 3)
        source = f"no {name} in the config: the format's own, boundaries"
    if not taps or any(not 0 <= tap <= num_target_layers for tap in taps):
        raise ConfigError(
            f"the draft reads the target's boundaries {list(taps)} ({source}); the target "
            f"has {num_target_layers} layers, so 0 to {num_target_layers}: give the draft of this "
            "target"
        )
    return taps, source


def read_mask_specs(draft: DraftFormat, written: Mapping[str, Any]) -> tuple[LayerMaskSpec, ...]:
    """What each layer sees. written: as `read_format`: a window by default is another model's.

    Full layers see the whole block, sliding ones are causal in it, unless the config says
    otherwise: `is_causal` or `dflash_config.causal` for all layers, `sliding_window_non_causal`
    (speculators) for the sliding ones. `dflash_config.use_swa` makes all layers slide, not causal.
    """
    count = draft.layer.num_hidden_layers
    kinds = tuple(option(draft.layer, "layer_types") or (FULL,) * count)
    if len(kinds) != count or not set(kinds) <= {SLIDING, FULL}:
        raise ConfigError(
            f"the draft's layer_types are {list(kinds)}; wanted {count} of {FULL!r} or {SLIDING!r}"
        )
    causal = [kind == SLIDING for kind in kinds]
    if boolean("sliding_window_non_causal", draft.option("sliding_window_non_causal")):
        causal = [False] * count
    nested = section(draft.options, "dflash_config")
    if boolean("use_swa", nested.get("use_swa")) and SLIDING not in kinds:
        kinds, causal = (SLIDING,) * count, [False] * count
    for given in (nested.get("causal"), option(draft.options, "is_causal")):
        if given is not None:
            causal = [boolean("is_causal", given)] * count
    window = _window(draft, nested, written) if SLIDING in kinds else None
    return tuple(
        LayerMaskSpec(window=window if kind == SLIDING else None, is_causal=is_causal)
        for kind, is_causal in zip(kinds, causal, strict=True)
    )


def _window(draft: DraftFormat, nested: Mapping[str, Any], written: Mapping[str, Any]) -> int:
    """Keys that a sliding layer sees, itself included."""
    given = nested.get("swa_window_size")
    if given is not None:
        return whole_number("swa_window_size", given, whose="the draft's dflash_config")
    if draft.name == SPECULATORS:
        written = section(draft.options, "transformer_layer_config")
    given = option(draft.layer, "sliding_window")
    if written.get("sliding_window") is not None and given is not None:
        return whole_number("sliding_window", given, whose=WHOSE)
    off = "" if written.get("sliding_window") is None else ", with use_sliding_window true"
    raise ConfigError(
        "the draft has sliding layers (layer_types, or use_swa) and no window; wanted "
        f"sliding_window in its config.json{off}, or swa_window_size in its dflash_config"
    )


def _spread(num_target_layers: int, count: int) -> list[int]:
    """z-lab's default ids: spread evenly over blocks 1 to L - 3; one layer reads the middle."""
    if count == 1:
        return [num_target_layers // 2]
    first, last = 1, num_target_layers - 3
    return [round(first + i * (last - first) / (count - 1)) for i in range(count)]


def _ids(value: Any, name: str) -> tuple[int, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(type(item) is int for item in value):
        raise ConfigError(
            f"the draft's {name} is {value!r}; wanted a list of whole numbers, one at least"
        )
    return tuple(value)
