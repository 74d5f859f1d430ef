"""The tokenizer of a GGUF file, built from its metadata.

Knows: how vocabularies, merges and scores lie in the metadata. Does not know: chat or requests.
Built here because going through transformers took seconds for a vocabulary of 49 thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pilotfish.errors import CheckpointError
from pilotfish.weights import PreTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_SPACE = "\u2581"


def build_backend(
    metadata: Mapping[str, Any], pretokenizers: Mapping[str, PreTokenizer]
) -> Tokenizer | None:
    """The file's tokenizer; None when the file has no vocabulary.

    pretokenizers: `tokenizer.ggml.pre` -> how text is cut before byte-level merging.
    Raises CheckpointError naming a kind of vocabulary, or a way to cut text, that is not read.
    """
    tokens = metadata.get(_KEY + "tokens")
    if not tokens:
        return None
    if _KEY + "merges" in metadata and metadata.get(_KEY + "model") == "gpt2":
        split = _split_of(metadata, pretokenizers)
        backend = _byte_level(tokens, metadata[_KEY + "merges"], split)
        add_bos = split.add_bos
    elif _KEY + "scores" in metadata and _is_byte_fallback(metadata):
        backend = _sentence_piece(metadata)
        add_bos = True  # what such a file means when it does not say
    else:
        raise CheckpointError(
            f"the GGUF file has a tokenizer of model {metadata.get(_KEY + 'model')!r}; read: "
            "byte-level merges ('gpt2'), and SentencePiece scores with byte tokens: pass token ids"
        )
    _add_special(backend, tokens, metadata.get(_KEY + "token_type") or ())
    _add_ends(backend, metadata, add_bos)
    return backend


def _byte_level(tokens: Sequence[str], merges: Sequence[str], split: PreTokenizer) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [_pair(merge) for merge in merges]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
    backend.pre_tokenizer = letters
    if split.pattern is not None:
        cut = pre_tokenizers.Split(Regex(split.pattern), behavior="isolated")
        backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    backend.decoder = decoders.ByteLevel()
    return backend


def _pair(merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    return left, right


def _split_of(
    metadata: Mapping[str, Any], pretokenizers: Mapping[str, PreTokenizer]
) -> PreTokenizer:
    name = metadata.get(_KEY + "pre", "default")
    if name not in pretokenizers:
        raise CheckpointError(
            f"the GGUF file's {_KEY}pre is {name!r}; read: {', '.join(sorted(pretokenizers))}. "
            "Cutting text in another way would give the model other tokens: pass token ids"
        )
    return pretokenizers[name]


def _is_byte_fallback(metadata: Mapping[str, Any]) -> bool:
    kinds = metadata.get(_KEY + "token_type") or ()
    return _BYTE in kinds and _KEY + "precompiled_charsmap" not in metadata


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    """Merging by score is byte-pair merging with every split of every piece as a merge."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = metadata[_KEY + "tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = metadata.get(_KEY + "unknown_token_id")
    model = models.BPE(
        vocab=vocab,
        merges=_merges_of(tokens, metadata[_KEY + "scores"]),
        unk_token=tokens[unknown] if unknown is not None else None,
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    add_space = metadata.get(_KEY + "add_space_prefix", True)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement=_SPACE, prepend_scheme="first" if add_space else "never", split=False
    )
    ends = [decoders.Strip(" ", 1, 0)] if add_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    return backend


def _merges_of(tokens: Sequence[str], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, best score of the third first."""
    vocab = {token: index for index, token in enumerate(tokens)}
    ranked = [
        ((-scores[index], vocab[left], vocab[right]), (left, right))
        for index, token in enumerate(tokens)
        for left, right in _splits(token)
        if left in vocab and right in vocab
    ]
    return [pair for _, pair in sorted(ranked)]


def _splits(token: str) -> Iterator[tuple[str, str]]:
    return ((token[:at], token[at:]) for at in range(1, len(token)))


def _add_special(backend: Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
    """Control tokens are special; user-defined ones are only kept whole."""
    from tokenizers import AddedToken

    control: list[AddedToken] = []
    whole: list[AddedToken] = []
    for token, kind in zip(tokens, kinds, strict=False):
        if token and kind == _CONTROL:
            control.append(AddedToken(token, normalized=False, special=True))
        elif token and kind == _USER_DEFINED:
            whole.append(AddedToken(token, normalized=False, special=False))
    backend.add_special_tokens(control)
    backend.add_tokens(whole)


def _add_ends(backend: Tokenizer, metadata: Mapping[str, Any], add_bos: bool) -> None:
    """Puts BOS before a text, and EOS behind it, where the file asks for them."""
    from tokenizers.processors import TemplateProcessing

    tokens: list[str] = metadata[_KEY + "tokens"]
    wanted = {"bos": add_bos, "eos": False}
    ends: dict[str, tuple[str, int]] = {}
    for name, default in wanted.items():
        index = metadata.get(f"{_KEY}{name}_token_id")
        if (
            metadata.get(f"{_KEY}add_{name}_token", default)
            and index is not None
            and 0 <= index < len(tokens)
        ):
            ends[name] = (tokens[index], index)
    if not ends:
        return
    parts = ([ends["bos"][0]] if "bos" in ends else []) + ["$A"]
    parts += [ends["eos"][0]] if "eos" in ends else []
    backend.post_processor = TemplateProcessing(
        single=parts, pair=[*parts, "$B:1"], special_tokens=list(ends.values())
    )
