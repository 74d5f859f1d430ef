"""A tiny checkpoint with a chat template, whose answers are known."""

from __future__ import annotations

import itertools
import string
from pathlib import Path

from support.chains import chain_checkpoint
from tokenization.test_tokenizer_published import byte_level, save

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ messages[-1].content[-1] }}"
)
"""A token is a letter: "user:hi.;." is 10 of them."""
ALPHABET = string.ascii_uppercase


def talkative_checkpoint(folder: Path, max_length: int = 65536, template: str = TEMPLATE) -> Path:
    """At temperature 0 says "ok" to what ends with a full stop, and the alphabet, again and again,
    to what ends with an exclamation mark."""
    made = byte_level()
    save(folder, made, adds_bos=False, chat_template=template)
    ids = made.get_vocab()
    follow = {ids[a]: ids[b] for a, b in itertools.pairwise(ALPHABET + "A")}
    follow |= {ids[a]: ids[b] for a, b in itertools.pairwise((".", "o", "k", "</s>"))}
    follow[ids["!"]] = ids["A"]
    options = {"max_position_embeddings": max_length, "eos_token_id": ids["</s>"]}
    return chain_checkpoint(folder, made.get_vocab_size(), follow, **options)
