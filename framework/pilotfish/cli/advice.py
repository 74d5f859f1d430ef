"""What is said of other programs' flags, and messages in the command line's words.

Knows: names. Does not know: verbs.
"""

from __future__ import annotations

import re

from pilotfish.cli.parser import flag_of
from pilotfish.cli.rank_flags import PARALLEL

_SHORT = {
    "-m": "the model stands first, without a flag",
    "--model": "the model stands first, without a flag",
    "-p": "wanted --prompt, or the text without a flag",
    "-n": "wanted --max-tokens; --n is how many answers",
    "-c": "wanted --max-length",
    "-t": "wanted OMP_NUM_THREADS=N in the environment",
    "--threads": "wanted OMP_NUM_THREADS=N in the environment",
    "-ngl": "wanted --device: a model runs whole on one",
    "-s": "wanted --seed",
    "--verbose": "wanted --json, whose timing tells the speed; of chat --stats",
}
"""Flags of other programs, and what there is instead."""


def flag_of_ours(name: str) -> str:
    """What a flag that other engines have is here; "" for others."""
    from pilotfish.config.peers import LOADING, NOTHING, SAMPLING

    if name in _SHORT:
        return _SHORT[name]
    answer = {**LOADING, **SAMPLING}.get(name.lstrip("-").replace("-", "_"))
    if answer is None:
        return ""
    is_flag = answer.ours not in ("", NOTHING)
    return f"wanted {flag_of(answer.ours)}" if is_flag else answer.says


_SIZES = ("max_length", "max_batch_size", "max_batch_tokens", "num_pages", *PARALLEL)
_IN_PYTHON = {
    "pass token ids": "give prompt_token_ids in a line of --input-file",
    "as chat_template": "with --chat-template",
    "so close this model and make another one": "so run the command again",
    "ask again, and another one answers": "give it again",
    "pass another with": "give another with",
    "pass one of the names with": "give one of the names with",
    "pass a plain prompt": "give a plain prompt (generate --prompt)",
    "or plain prompts": "or plain prompts (generate --prompt)",
    "take generation_config 'none'": "give --generation-config none",
    "use stop_token_ids": "give --stop-token-ids",
    "cache=CacheConfig(memory_bytes=...)": "--num-pages",
    "cache=CacheConfig(dtype=...)": "--cache-dtype",
    "cache=CacheConfig(page_size_tokens=...)": "--page-size",
    "draft= and speculative=; see SpeculativeConfig": "--draft and --speculative",
    "draft=, and speculative= for the method": "--draft, and --speculative for the method",
    "device='cuda:0' for instance": "--device cuda:0 for instance",
    "backend='native', 'torch' or 'triton'": "--backend native, torch or triton",
}
"""Advice for callers of `LLM` -> the command line's."""


def with_flags(text: str) -> str:
    """A message in which sizes that have flags are called by them, and so is advice."""
    for said, meant in _IN_PYTHON.items():
        text = text.replace(said, meant)
    for name in _SIZES:
        flag = flag_of(name)
        text = re.sub(rf"({flag}, )?(?<![\w./-]){name}(?![\w/-])", flag, text)
    return text
