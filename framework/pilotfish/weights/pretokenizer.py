"""How text is cut before byte-level merging: by the name a GGUF file gives it, or by a plugin.

Knows: split patterns of common vocabularies. Does not know: vocabularies, or any architecture:
plugins bring theirs in `ArchitectureSpec` (`gguf_pretokenizers`, `tiktoken`). No torch here.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class PreTokenizer:
    """What `tokenizer.ggml.pre` stands for.

    pattern: regular expression whose matches, and what lies between them, are merged separately;
        None is the expression that byte-level vocabularies began with.
    cuts: expressions that cut the text before, one after another, in the same way.
    add_bos: whether a text begins with the BOS token when the file does not say.
    ignore_merges: whether a piece that is a token as a whole is that token, whatever merging gives.
    """

    pattern: str | None = None
    cuts: tuple[str, ...] = ()
    add_bos: bool = False
    ignore_merges: bool = False


@attrs.frozen(kw_only=True)
class TiktokenRules:
    """What a `tiktoken.model` leaves to the code beside it.

    pattern: regular expression whose matches are merged separately; it must match any text.
    num_reserved: ids behind those of the file that are tokens of their own, named or not.
    reserved_name: text of one that tokenizer_config.json does not name; `{id}` is its id.
    """

    pattern: str
    num_reserved: int = 0
    reserved_name: str = "<|reserved_token_{id}|>"


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"


def contraction_split(digits: str) -> str:
    """Contractions, letters with one sign before them, runs of digits, signs, white space.

    digits: expression for one run of digits, e.g. `\\p{N}{1,3}`.
    """
    return "|".join(
        (_CONTRACTION, _BEFORE + r"\p{L}+", digits, r" ?[^\s\p{L}\p{N}]+[\r\n]*", _SPACES)
    )


def case_split(digits: str, suffix: str = "") -> str:
    """Words cut where lower case turns to upper case, runs of digits, signs, white space.

    suffix: expression that may follow a word, e.g. a contraction.
    """
    return "|".join(
        (
            f"{_BEFORE}{_UPPER}*{_LOWER}+{suffix}",
            f"{_BEFORE}{_UPPER}+{_LOWER}*{suffix}",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            _SPACES,
        )
    )


# The expression that byte-level vocabularies began with, where cuts follow it.
_FIRST = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = (r"\p{N}",)
_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_ASCII_SIGN = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_NO_PUNCTUATION = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
# Letters with case, which the "deepseek-llm" vocabularies spell out range by range.
_CASED = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1"
    "\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd"
    "\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d"
    "\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4"
    "\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec"
    "\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    "\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b"
    "\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787"
    "\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_SIGNS = "!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002"
_MARKED = (
    f"{_CONTRACTION}|{_BEFORE}[\\p{{L}}\\p{{M}}]+|\\p{{N}}"
    f"| ?[^\\s\\p{{L}}\\p{{M}}\\p{{N}}]+[\\r\\n]*|{_SPACES}"
)

_THREE_DIGITS = contraction_split(r"\p{N}{1,3}")
_QWEN2 = PreTokenizer(contraction_split(r"\p{N}"))
_GPT_4O = PreTokenizer(case_split(r"\p{N}{1,3}", f"{_CONTRACTION}?"))
_DEEPSEEK_V3 = PreTokenizer(
    rf"{_ASCII_SIGN}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    cuts=(r"\p{N}{1,3}", _HAN_AND_KANA),
)

PRE_TOKENIZERS = {
    **dict.fromkeys(
        [
            *("default", "gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4"),
            *("a.x-4.0", "mellum", "gigachat", "granite-docling"),
        ],
        PreTokenizer(),
    ),
    **dict.fromkeys(
        [
            *("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"),
            *("minerva-7b", "mellum2"),
        ],
        PreTokenizer(cuts=_DIGIT),
    ),
    "falcon": PreTokenizer("[0-9][0-9][0-9]", cuts=(r"[\p{P}\$\+<=>\^~\|`]+", _FIRST)),
    **dict.fromkeys(
        [
            *("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez"),
            *("hunyuan", "solar-open", "grok-2"),
        ],
        _QWEN2,
    ),
    "qwen35": PreTokenizer(_MARKED),
    "tekken": PreTokenizer(case_split(r"\p{N}"), add_bos=True, ignore_merges=True),
    **dict.fromkeys(("gpt-4o", "kanana2", "minimax-m2"), _GPT_4O),
    **dict.fromkeys(("chatglm-bpe", "dbrx", "smaug-bpe"), PreTokenizer(_THREE_DIGITS)),
    **dict.fromkeys(("glm4", "glm5"), PreTokenizer(_THREE_DIGITS, ignore_merges=True)),
    "minicpm5": PreTokenizer(
        contraction_split(r"\p{N}+"), cuts=(r"\p{N}{1,3}",), ignore_merges=True
    ),
    "deepseek-llm": PreTokenizer(
        r"\p{N}+",
        cuts=(r"[\r\n]", f"\\s?[{_CASED}]+", f"\\s?[{_DEEPSEEK_SIGNS}]+", r"\s+$", _CJK),
    ),
    "deepseek-coder": PreTokenizer(r"\p{N}", cuts=(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm"), _DEEPSEEK_V3),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), PreTokenizer(_NO_PUNCTUATION)),
    "viking": PreTokenizer(r"\p{N}", cuts=(_NO_PUNCTUATION,)),
}
"""The names that the core knows; what they stand for is published with the vocabularies."""
