"""Vocabularies as `tiktoken.model` has them, and the directories around them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tiktoken

from pilotfish.tokenization.byte_letters import BYTE_LETTERS
from pilotfish.tokenization.tiktoken_file import TIKTOKEN_FILE
from pilotfish.weights import GGUFFile, TiktokenRules
from pilotfish.weights.demo import find_demo

BYTES = tuple(bytes([byte]) for byte in range(256))
NAMES = {
    **{0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>"},
    **{11: "<|tool_call_begin|>", 17: "<|im_middle|>", 22: "<think>", 23: "</think>"},
    **{254: "[UNK]", 255: "[PAD]"},
}
"""Place among the reserved ids -> name; ids of a published vocabulary, as far as they matter."""
NO_SPECIAL = ("<|tool_call_begin|>", "<think>", "</think>")
TEMPLATE = (
    "{% for message in messages %}<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>"
    "{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_assistant|>assistant<|im_middle|>{% endif %}"
)
PARTS = (
    *("中文", "你好", "世界", "々", "\u3007", "⺀", "한국", "日本ぁ", "ไทย", "हिन्दी"),
    *("a", "B", "Hello", "WORLD", "camelCase", "'s", "'LL", "'\u017f", "don't", "é"),
    *("e\u0301", "\u0301", "ǅ", "ʰ", "ß", "İ", "K", "1", "234", "٣"),
    *("½", "Ⅷ", "🐟", "👨‍👩‍👧‍👦", "𠀀", "!", "...", "/", "。", "\0"),
    *("[BOS]", "[BOS", "<|im_end|>", "<think>", " ", "  ", "\t", "\n", "\r\n", "\n\n"),
    *("\u3000", "\x85", "\u00a0", "\u2028"),
)
"""Where the pattern could cut in another way."""
_CHINESE = ("你好", "世界", "中文", "北京", "の", "。")


def demo_tokens() -> list[bytes]:
    """Bytes, then what the demo's merges make, in their order, then some Chinese."""
    tokens = dict.fromkeys(BYTES)
    for merge in GGUFFile(find_demo()).metadata["tokenizer.ggml.merges"]:
        tokens[bytes(BYTE_LETTERS[letter] for letter in merge.replace(" ", ""))] = None
    return list(dict.fromkeys([*tokens, *chinese_tokens()]))


def chinese_tokens() -> list[bytes]:
    """Merges of a few words: letters from their bytes, words from their letters."""
    found = []
    for word in _CHINESE:
        letters = [letter.encode() for letter in word]
        found += [part for letter in letters for part in (letter[:2], letter)]
        found.append(word.encode())
    return list(dict.fromkeys(token for token in found if len(token) > 1))


def lines(tokens: Sequence[bytes]) -> list[bytes]:
    """The lines of a file whose ranks are the tokens' places."""
    return [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]


def tokenizer_config(num_tokens: int, **changes: Any) -> dict[str, Any]:
    """`tokenizer_config.json` as it is published, for a vocabulary of so many ranks."""
    added = {
        str(num_tokens + place): {"content": name, "special": name not in NO_SPECIAL}
        for place, name in NAMES.items()
    }
    return {
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_end|>", "<|im_user|>"],
        "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "eos_token": "[EOS]",
        "pad_token": "[PAD]",
        "tokenizer_class": "TikTokenTokenizer",
        **changes,
    }


def write_tokenizer(directory: Path, tokens: Sequence[bytes], **changes: Any) -> Path:
    """Both files and a chat template. changes: of tokenizer_config.json."""
    directory.mkdir(exist_ok=True)
    (directory / TIKTOKEN_FILE).write_bytes(b"\n".join(lines(tokens)) + b"\n")
    config = tokenizer_config(len(tokens), **changes)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def encoding(
    tokens: Sequence[bytes], rules: TiktokenRules, names: Mapping[int, str]
) -> tiktoken.Encoding:
    """tiktoken's own tokenizer of the same vocabulary. names: place among the reserved ids."""
    first = len(tokens)
    special = {
        names.get(place, f"<|reserved_token_{first + place}|>"): first + place
        for place in range(rules.num_reserved)
    }
    return tiktoken.Encoding(
        "test",
        pat_str=rules.pattern,
        mergeable_ranks={token: rank for rank, token in enumerate(tokens)},
        special_tokens=special,
    )
