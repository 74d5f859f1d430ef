"""Every target and every drafter of the M x N table: tiny checkpoints, and how each is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from dflash import checkpoints as dflash
from eagle.checkpoints import SMALL_VOCAB, DraftCase, draft_config, draft_tensors, write_draft
from pilotfish import LLM, CacheConfig, SamplingParams, SpeculativeConfig, load_registry
from pilotfish.config.speculative import Acceptance
from pilotfish.registry import Registry
from pilotfish.testing import SMALL, save_tiny
from pilotfish.testing.checkpoints import examples_of
from pilotfish.testing.drafters import METHOD, scripted_plugin

WIDTH, VOCAB = SMALL["hidden_size"], SMALL["vocab_size"]
DTYPES = ("float32", "bfloat16")
ADVERSARIES = (
    "silent", "repeats", "random", "out of vocabulary", "always right", "always wrong",
    "right until 2",
)  # fmt: skip
DRAFTERS = ("eagle-1", "eagle-3", "dflash", "ngram", "small model", *ADVERSARIES)
METHODS = {
    **{"eagle-1": "eagle", "eagle-3": "eagle", "dflash": "dflash", "ngram": "ngram"},
    "small model": "small_model",
}

PROMPTS = [[1, 2, 3], [5], [7, 8, 9] * 5, [9, 8, 7, 6], [3] * 11, [*range(30, 46)]]
PLAIN: dict[str, Any] = {"max_tokens": 14}
CUT: dict[str, Any] = {
    **PLAIN,
    **{"top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3, "frequency_penalty": 0.4},
    **{"presence_penalty": 0.2, "logit_bias": {4: 1.5}, "logprobs": 2, "min_tokens": 5},
    "stop_token_ids": [11, 12, 13],
}
PARAMS = [
    SamplingParams(temperature=temperature, seed=number, **options)
    for number, (temperature, options) in enumerate(
        (temperature, options) for options in (PLAIN, CUT) for temperature in (0.0, 0.7, 1.3)
    )
]


def registry() -> Registry:
    """The installed plugins, and the adversaries'."""
    return Registry(plugins=(*load_registry().plugins, scripted_plugin()))


def targets(of: Registry) -> list[tuple[str, str]]:
    """Architecture and example: the first of each, and those whose rows depend on lengths."""
    found = []
    for architecture in of.architectures:
        names = list(examples_of(architecture, of).configs)
        extra = [name for name in names[1:] if "depends" in name or "longrope" in name]
        found += [(architecture, name) for name in (names[0], *extra)]
    return found


@attrs.frozen
class Shelf:
    """Checkpoints on disk, each written once."""

    folder: Path
    registry: Registry

    def target(self, architecture: str, example: str) -> Path:
        """A tiny checkpoint of an architecture."""
        path = self.folder / f"{architecture}-{example}"
        return (
            path if path.exists() else save_tiny(architecture, example, self.folder, self.registry)
        )

    def draft(self, drafter: str) -> Path | None:
        """The draft's checkpoint; None for a drafter without one."""
        if drafter == "small model":
            return self.target("LlamaForCausalLM", "plain")
        if drafter == "dflash":
            return self._block_draft()
        if drafter not in ("eagle-1", "eagle-3"):
            return None
        path = self.folder / drafter
        if not path.exists():
            sizes = {"hidden_size": WIDTH, "vocab_size": VOCAB, "target_hidden_size": WIDTH}
            case = DraftCase(
                version=1,
                options=sizes,
                aux_hidden_state_layers=(),
                own_head=False,
                offsets=False,
                fc_bias=True,
                first="layers.0.",
            )
            if drafter == "eagle-3":
                aux_hidden_state_layers = {"eagle_aux_hidden_state_layer_ids": [2, 0, 2]}
                case = DraftCase(
                    options={**SMALL_VOCAB, **sizes, **aux_hidden_state_layers},
                    aux_hidden_state_layers=(2, 0, 2),
                )
            write_draft(path, draft_config(case), draft_tensors(case), case)
        return path

    def _block_draft(self) -> Path:
        """Layers that slide and layers that do not, taps in no order, one of them twice."""
        path = self.folder / "dflash"
        if not path.exists():
            sizes = {"hidden_size": WIDTH, "vocab_size": VOCAB, "num_target_layers": None}
            layers = {**dflash.SLIDING, "layer_types": [dflash.S, dflash.F, dflash.S]}
            case = dflash.DraftCase(
                options={**layers, **sizes},
                inside={
                    "mask_token_id": VOCAB - 1,
                    "target_layer_ids": [1, -1, 1],
                    "block_size": 5,
                },
            )
            dflash.write_draft(path, dflash.draft_config(case), dflash.draft_tensors(case))
        return path

    def llm(
        self,
        target: Path,
        drafter: str | None,
        dtype: str,
        acceptance: Acceptance = "coupled",
        **options: Any,
    ) -> LLM:
        """The target with a drafter, with so few pages and rows that requests get in each other's
        way.
        """
        method = METHODS.get(drafter or "", METHOD)
        draft, speculative = None, None
        if drafter is not None:
            draft = self.draft(drafter)
            speculative = SpeculativeConfig(method=method, width=3, acceptance=acceptance)
        options.setdefault("cache", CacheConfig(page_size_tokens=4, num_pages=24))
        return LLM(
            str(target),
            draft=None if draft is None else str(draft),
            speculative=speculative,
            dtype=dtype,
            registry=self.registry,
            max_batch_tokens=13,
            max_batch_size=4,
            **options,
        )
