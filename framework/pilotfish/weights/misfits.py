"""What of a checkpoint's tensors does not fit an architecture, and what that is a sign of.

Knows: names of tensors that are missing, extra or of another shape. Does not know: rules, files.
"""

from __future__ import annotations

import re

import attrs

from pilotfish.errors import WeightsError
from pilotfish.weights.names import shortened
from pilotfish.weights.quantized import quantizers_of

_OTHER_PARTS: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(mtp|nextn)[._]", "of multi-token prediction, which this architecture does not read"),
    (r"(^|\.)lora_[AB]\.|^base_model\.", "of an adapter: merge it into its model, save the whole"),
    (
        r"^(model\.)?(visual|vision_tower|vision_model|mm_projector|multi_modal_projector)\.",
        "of images, which this architecture does not read",
    ),
    (r"^(score|classifier|v_head)\.", "of a head that is no language model's"),
    (
        r"^(model\.)?(fc\.weight|midlayer\..*|d2t)$",
        "of a draft, which cannot run alone: give its target as the model and this as the draft",
    ),
)
"""Patterns of extra tensors, and what they are."""
_HEAD = "lm_head.weight"


@attrs.define
class Misfits:
    """Everything that is wrong with a file's tensors, so that one error can name it all.

    missing, misshapen: descriptions. extra: description -> name. whole_numbers: names of matrices
    that hold whole numbers where floats are wanted.
    """

    missing: list[str] = attrs.field(factory=list)
    extra: dict[str, str] = attrs.field(factory=dict)
    misshapen: list[str] = attrs.field(factory=list)
    whole_numbers: list[str] = attrs.field(factory=list)

    def refuse(self) -> None:
        """Raises WeightsError where anything is wrong."""
        listed = {
            "missing": self.missing,
            "extra": list(self.extra),
            "misshapen": self.misshapen,
            "of whole numbers": self.whole_numbers,
        }
        listed = {kind: items for kind, items in listed.items() if items}
        if not listed:
            return
        self._refuse_quantized(listed)
        parts = [
            f"{len(items)} {kind}: {', '.join(shortened(items))}" for kind, items in listed.items()
        ]
        raise WeightsError(
            f"the checkpoint does not fit the architecture; {'; '.join(parts)}. {self._advice()}"
        )

    def _refuse_quantized(self, listed: dict[str, list[str]]) -> None:
        """Where the rest follows from quantized weights, they are all that is said."""
        found = quantizers_of(self.extra.values())
        if self.whole_numbers:
            found.setdefault("in whole numbers", []).extend(self.whole_numbers)
        if not found:
            return
        said = "; ".join(
            f"{maker}: {len(names)} tensors such as {names[0]}" for maker, names in found.items()
        )
        counts = ", ".join(f"{len(items)} {kind}" for kind, items in listed.items())
        raise WeightsError(
            f"the checkpoint's weights are quantized ({said}), which is not served; wanted weights "
            "of 16 or 32 bits: take the checkpoint that it was made of, or a GGUF file (of the "
            f"tensors {counts})"
        )

    def _advice(self) -> str:
        for pattern, what in _OTHER_PARTS:
            found = [name for name in self.extra.values() if re.search(pattern, name)]
            if found:
                return f"{len(found)} tensors are {what} (such as {found[0]})"
        if self.missing and not self.extra and not self.misshapen:
            if self.missing == [_HEAD]:
                return (
                    "Its config does not tie the head to the embedding, so the head was left out "
                    "when it was saved: get the whole checkpoint, or set tie_word_embeddings true "
                    "in config.json if it was trained so"
                )
            return "Check that no file is left out: get the whole checkpoint again"
        return "Check that the config belongs to these weights and that no file is left out"
