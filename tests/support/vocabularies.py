"""Varied text, and a SentencePiece vocabulary trained on it, as a GGUF file has it."""

from __future__ import annotations

from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

CORPUS = [
    "",
    " ",
    "Hello, world!",
    " leading and trailing ",
    "two  three   four    spaces\tand\t\ttabs\n\n\nlines\r\n",
    "   1  2 34\n  567\t\t8 9.10e-5 1,000,000 ٣٤ ½ ² Ⅷ",
    "def f(x: int) -> None:\n    if x != 0x1F:\n\t\treturn {'a': [1, 2]}  # ok\n",
    "don't we'll I'VE they're 'quoted' it's's",
    "Grüße, Übermut; naïve café — “quotes” … e\u0301",
    "日本語のテキストと中文字符、한국어 텍스트",
    "العربية עברית हिन्दी ไทย ትግርኛ",
    "🐟🦈 👨‍👩‍👧‍👦 🇨🇭 \U0001f3f4\U000e0067\U000e0062\U000e007f",
    "zero\u200bwidth\ufeff \u00a0nbsp\u3000wide \u2028line",
    "<|im_start|>user\nHi<|im_end|>\n<|endoftext|><|im_start|><repo_name>x",
    "<|im_start |> < |im_end|> <|im_end|",
    "\x00\x01\x7f control",
    "https://example.com/a_b?c=d&e=%20#f",
    "a" * 300,
    "\u0130\u0131 \u017fs \ufb01 \u212b A\u030a",
]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6


def sentence_piece_metadata(add_space_prefix: bool = True) -> dict[str, Any]:
    """`tokenizer.ggml.*` of a vocabulary with byte tokens; scores fall in the order of merging."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    # Letters beyond the alphabet below are left to byte tokens.
    texts = [t for t in CORPUS if t.isascii()] + ["naïve café 日本語 日本"]
    backend.train_from_iterator(texts * 3, trainer)
    learned = sorted(backend.get_vocab().items(), key=lambda item: item[1])
    letters = [token for token, _ in learned if len(token) == 1 and token not in "\r\n\t\0"]
    pieces = [token for token, _ in learned if len(token) > 1]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *letters, "<tool>"]
    kinds = [_UNKNOWN, _CONTROL, _CONTROL, *[_BYTE] * 256]
    kinds += [_NORMAL] * (len(pieces) + len(letters)) + [_USER_DEFINED]
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(letters))] + [0.0]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": add_space_prefix,
    }
