"""The formats in which EAGLE drafts are published, as data: names, options, layer ids.

Knows: what a format says and how it spells it. Does not know: tensors; imports no torch.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import attrs

from pilotfish.config.hf_options import Allowed, option, section, whole_number
from pilotfish.errors import ConfigError
from pilotfish.speculation.draft_format import (
    FULL,
    SLIDING,
    SPECULATORS,
    WHOSE,
    DraftFormat,
    architecture_names,
    draft_flag,
    layer_ids,
    reference_layers,
)

EAGLE1_ARCHITECTURES = ("LlamaForCausalLM", "EagleLlamaForCausalLM", "LlamaForCausalLMEagle")
EAGLE3_ARCHITECTURES = ("LlamaForCausalLMEagle3", "Eagle3LlamaForCausalLM")
SPECULATORS_ARCHITECTURES = ("Eagle3Speculator", "Eagle3DraftModel")
DRAFT_ARCHITECTURES = (*EAGLE1_ARCHITECTURES, *EAGLE3_ARCHITECTURES, *SPECULATORS_ARCHITECTURES)

Version = Literal[1, 3]

SECTION = "eagle_config"
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "norm_output")
"""EAGLE-3 options that this plugin reads, beside the config or inside `eagle_config`."""
LAYER_IDS = "eagle_aux_hidden_state_layer_ids"


@attrs.frozen(kw_only=True)
class EagleFormat(DraftFormat):
    """name: "eagle" for EAGLE-1 and EAGLE-2, which differ only in how they search, "eagle3" or
    SPECULATORS. Of ModelOpt's options, those of the heads that `parallel_draft_step` counts say
    nothing where there is one step.
    """

    method: ClassVar[str] = "eagle"
    architectures: ClassVar[tuple[str, ...]] = DRAFT_ARCHITECTURES
    speculators_type: ClassVar[str] = "eagle3"
    layer_model_types: ClassVar[tuple[str, ...]] = ("llama",)
    section_name: ClassVar[str] = SECTION
    refused: ClassVar[Allowed] = {
        "final_logit_softcapping": (None,),
        "use_qk_norm": (None, False),
        "qk_layernorm": (None, False),
        "is_causal": (None, True),
        "parallel_drafting": (None, False),
        "mup_width": (None,),
        "num_nextn_predict_layers": (None, 0),
    }
    read_inside: ClassVar[frozenset[str]] = frozenset(
        {*FLAGS, LAYER_IDS, "parallel_draft_heads_num_layers"}
    )
    neutral_inside: ClassVar[Allowed] = {
        "use_aux_hidden_state": (None, True),
        "use_input_layernorm_in_first_layer": (None, True),
        "use_last_layernorm": (None, True),
        "use_mtp_layernorm": (None, False),
        "next_layer_regular": (None, True),
        "has_lm_head": (None, True, False),
        "parallel_draft_step": (None, 1),
    }
    read_beside: ClassVar[frozenset[str]] = frozenset({*FLAGS, LAYER_IDS})

    @classmethod
    def name_of(cls, options: Any) -> str:
        """By the architecture, and by options that only EAGLE-3 has."""
        [first, *_] = architecture_names(options)
        is_third = option(options, "draft_vocab_size") is not None or section(
            options, SECTION, "the draft's"
        )
        if first in EAGLE1_ARCHITECTURES:
            return "eagle3" if is_third else "eagle"
        return "eagle3" if first in EAGLE3_ARCHITECTURES else super().name_of(options)

    @property
    def version(self) -> Version:
        """3, or 1 for EAGLE-1 and EAGLE-2."""
        return 1 if self.name == "eagle" else 3

    def eagle_flag(self, name: str, default: bool = False) -> bool:
        """One of FLAGS; inside `eagle_config` it wins over beside it."""
        nested = self.section.get(name)
        found = option(self.options, name) if nested is None else nested
        return draft_flag(name, found, default)

    @property
    def target_hidden_size(self) -> Any:
        """By default its own: the stream is handed on to the draft's next row."""
        return self.option("target_hidden_size") or self.layer.hidden_size

    @property
    def feeds_normed_states(self) -> bool:
        """Whether the next row gets the output after the norm; only speculators trains so."""
        return self.name == SPECULATORS and self.eagle_flag("norm_output")

    @property
    def norms_head(self) -> bool:
        """Whether a norm stands before the draft's head: what others call `norm_output`."""
        return self.name != "eagle3" or self.eagle_flag("norm_output", True)

    def aux_hidden_state_layers(self, num_target_layers: int) -> tuple[tuple[int, ...], str]:
        """None for EAGLE-1, which reads the target's normed output."""
        return super().aux_hidden_state_layers(num_target_layers) if self.version == 3 else ((), "")

    def format_layers(self, num_target_layers: int) -> tuple[tuple[int, ...], str]:
        """Ids beside the config (speculators, vLLM) are boundaries; ids inside `eagle_config`
        (SpecForge) name blocks, after which the stream is taken, unless they cannot: the last
        boundary is no block, and the reference's own three are boundaries wherever they stand. No
        ids, or an empty list of them, mean the reference's three.
        """
        nested, beside = self.section.get(LAYER_IDS), option(self.options, LAYER_IDS)
        if nested:
            ids = layer_ids(LAYER_IDS, nested)
            blocks = ids != reference_layers(num_target_layers) and num_target_layers not in ids
            layers = tuple(i + 1 for i in ids) if blocks else ids
            said = "after blocks" if blocks else "boundaries"
            return layers, f"{SECTION}.{LAYER_IDS}: {said}"
        if beside:
            return layer_ids(LAYER_IDS, beside), f"{LAYER_IDS}: boundaries"
        return super().format_layers(num_target_layers)

    def windows(self) -> tuple[int | None, ...]:
        """Keys that each layer's rows see, themselves included; None for all.

        `layer_types` says which layers slide. A `sliding_window` alone is no more than a leftover
        of the target's config: no trainer reads it. Raises ConfigError for `use_sliding_window`
        without `layer_types`, which does not say which layers.
        """
        layer, kinds = self.layer, self.layer_types()
        window = option(layer, "sliding_window")
        uses = self.layer_flag("use_sliding_window")
        if uses and window is not None and not option(layer, "layer_types"):
            raise ConfigError(
                f"{WHOSE} has use_sliding_window = True and no layer_types, which say which layers "
                f"slide; wanted {len(kinds)} of {FULL!r} or {SLIDING!r}"
            )
        if SLIDING not in kinds:
            return (None,) * len(kinds)
        if window is None:
            raise ConfigError(
                f"{WHOSE} has layer_types that slide and no sliding_window; wanted both"
            )
        window = whole_number("sliding_window", window, whose=WHOSE)
        return tuple(window if kind == SLIDING else None for kind in kinds)

    def unread(self) -> list[tuple[str, str]]:
        """The base's, and options of EAGLE-3 on EAGLE-1."""
        found = super().unread()
        if self.version == 1:
            wanted = "it absent: it is an option of EAGLE-3, not of EAGLE-1"
            found += [(f"{name} = True", wanted) for name in FLAGS if self.eagle_flag(name)]
        return found
