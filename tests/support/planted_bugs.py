"""Bugs planted on purpose, each with the promise of the conformance kit that must notice it.

Numbered bugs are ones that real systems shipped; one without a number shows that a promise can
fail. They stand in `planted_state`, `planted_caches`, `planted_texts`, `planted_maths`,
`planted_images` and `planted_drafts`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest

Patch = pytest.MonkeyPatch


@attrs.frozen(kw_only=True)
class Bug:
    """number: of the pitfall, 0 for none. what: in words. promise: that notices it.

    subject: architecture and the name of its example. plant: puts the bug in. is_native: it is
    planted in what native calls are made of.
    """

    number: int
    what: str
    promise: str
    plant: Callable[[Patch], None]
    subject: tuple[str, str] = ("LlamaForCausalLM", "plain")
    is_native: bool = False


def around(target: str, make: Callable[[Any], Any]) -> Callable[[Patch], None]:
    """Replaces `module:name` or `module:Class.name` by what `make` makes of it."""

    def plant(patch: Patch) -> None:
        module, _, path = target.partition(":")
        owner: Any = __import__(module, fromlist=["_"])
        *outer, name = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        patch.setattr(owner, name, make(getattr(owner, name)))

    return plant


BUGS: list[Bug] = []


def bug(
    number: int,
    what: str,
    promise: str,
    target: str,
    subject: tuple[str, str] = ("LlamaForCausalLM", "plain"),
    *,
    is_native: bool = False,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Lists a bug: the decorated function makes the wrong thing of the right one."""

    def enlist(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
        BUGS.append(
            Bug(
                number=number,
                what=what,
                promise=promise,
                plant=around(target, make),
                subject=subject,
                is_native=is_native,
            )
        )
        return make

    return enlist


MISTRAL = ("MistralForCausalLM", "window")
CONV = ("Lfm2ForCausalLM", "attention between")
EXPERTS = ("DeepseekV3ForCausalLM", "latent queries")
BIASED = ("LlamaForCausalLM", "biased, tied, llama3 rope")
DYNAMIC = ("LlamaForCausalLM", "rope that depends on the prompt")
MODEL = "pilotfish.models.decoder_model:DecoderModel"
MANAGER = "pilotfish.state.manager:StateManager"
HISTORY, WARM = "any history equals committed only", "warm prefix equals cold"
CHUNKS, NAIVE = "any chunking equals one chunk", "texts are naive decodings"
