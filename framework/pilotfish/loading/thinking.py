"""The tokens that begin and end a thinking phase, where a checkpoint names them.

Knows: how configs and chat templates spell them. Does not know: what acceptance does with them.
"""

from __future__ import annotations

import attrs

from pilotfish.config import SpeculativeConfig
from pilotfish.config.hf_options import option, text_config
from pilotfish.errors import ConfigError
from pilotfish.tokenization.tokenizer import Tokenizer, load_tokenizer
from pilotfish.weights import Checkpoint

_FIELDS = (
    ("think_start_token_id", "think_end_token_id"),
    ("thinking_start_token_id", "thinking_end_token_id"),
)
_TEXTS = (("<think>", "</think>"), ("◁think▷", "◁/think▷"))


def with_thinking_tokens(options: SpeculativeConfig, checkpoint: Checkpoint) -> SpeculativeConfig:
    """The options with the checkpoint's own thinking tokens where they are wanted and not given.

    Raises ConfigError where the checkpoint names none.
    """
    if options.acceptance != "relaxed" or options.thinking_tokens is not None:
        return options
    found = _named_in_configs(checkpoint) or _named_in_template(load_tokenizer(checkpoint))
    if found is None:
        raise ConfigError(
            "acceptance 'relaxed' applies to a thinking phase only, thinking_tokens is None, and "
            f"{checkpoint.model} names none: neither its configs ({' with '.join(_FIELDS[0])}) nor "
            f"its chat template ({' with '.join(_TEXTS[0])}, a token each); wanted the token ids "
            "that start and end one: (start, end)"
        )
    return attrs.evolve(options, thinking_tokens=found)


def _named_in_configs(checkpoint: Checkpoint) -> tuple[int, int] | None:
    config = checkpoint.huggingface_config
    for names in _FIELDS:
        in_file = [checkpoint.generation_config.get(name) for name in names]
        for start, end in (
            in_file,
            *([option(one, name) for name in names] for one in (config, text_config(config))),
        ):
            if type(start) is int and type(end) is int and start >= 0 and end >= 0 and start != end:
                return start, end
    return None


def _named_in_template(tokenizer: Tokenizer | None) -> tuple[int, int] | None:
    """Tokens of their own that stand in the chat template."""
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    for texts in _TEXTS:
        if not all(text in tokenizer.chat_template.source for text in texts):
            continue
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        if all(len(one) == 1 for one in ids) and ids[0] != ids[1]:
            return ids[0][0], ids[1][0]
    return None
