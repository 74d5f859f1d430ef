"""The tokenizer of a GGUF file, built from its metadata.

Knows: how vocabularies, merges and scores lie in the metadata. Does not know: chat or requests.
Built here because going through transformers took seconds for a vocabulary of 49 thousand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pilotfish.errors import CheckpointError
from pilotfish.weights import PreTokenizer
from pilotfish.weights.gguf_tokens import special_id

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
    model, has_merges = metadata.get(_KEY + "model"), _KEY + "merges" in metadata
    if model == "gpt2" and has_merges:
        split = _split_of(metadata, pretokenizers)
        backend = _byte_level(tokens, _merges_in(metadata), split)
        add_bos = split.add_bos
    elif _is_byte_fallback(metadata) and (has_merges or _KEY + "scores" in metadata):
        backend = _sentence_piece(metadata)
        add_bos = True  # what such a file means when it does not say
    else:
        raise CheckpointError(
            f"the GGUF file has a tokenizer of model {model!r}; read: byte-level merges ('gpt2'), "
            "and SentencePiece pieces with byte tokens: take the model's safetensors"
        )
    _add_special(backend, tokens, metadata.get(_KEY + "token_type") or ())
    _add_ends(backend, metadata, add_bos)
    return backend


def _byte_level(
    tokens: Sequence[str], merges: list[tuple[str, str]], split: PreTokenizer
) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=split.ignore_merges))
    cuts = [*split.cuts, *([] if split.pattern is None else [split.pattern])]
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split.pattern is None)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*(pre_tokenizers.Split(Regex(cut), behavior="isolated") for cut in cuts), letters]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def _merges_in(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The file's merges. Raises CheckpointError for one whose parts, or whole, are no tokens."""
    tokens = set(metadata[_KEY + "tokens"])
    pairs: list[tuple[str, str]] = []
    for number, merge in enumerate(metadata[_KEY + "merges"]):
        left, _, right = merge.partition(" ")
        if not tokens.issuperset((left, right, left + right)):
            raise CheckpointError(
                f"the GGUF file's merge {number} is {merge!r:.60}; wanted two tokens of its "
                "vocabulary with a space between them, whose join is a token: get the file again"
            )
        pairs.append((left, right))
    return pairs


def _split_of(
    metadata: Mapping[str, Any], pretokenizers: Mapping[str, PreTokenizer]
) -> PreTokenizer:
    name = metadata.get(_KEY + "pre", "default")
    if name not in pretokenizers:
        raise CheckpointError(
            f"the GGUF file's {_KEY}pre is {name!r}; read: {', '.join(sorted(pretokenizers))}. "
            "Cutting text in another way would give the model other tokens: take its safetensors, "
            "or a plugin whose spec has this one in `gguf_pretokenizers`"
        )
    return pretokenizers[name]


def _is_byte_fallback(metadata: Mapping[str, Any]) -> bool:
    kinds = metadata.get(_KEY + "token_type") or ()
    return _BYTE in kinds and _KEY + "precompiled_charsmap" not in metadata


def _sentence_piece(metadata: Mapping[str, Any]) -> Tokenizer:
    """Merging by score is byte-pair merging with every split of every piece as a merge.

    The first letter of a text, and of what follows a token that is kept whole, gets a space before
    it. Files that have merges too are merged by them, and a run of line ends apart from the rest.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokens: list[str] = metadata[_KEY + "tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = special_id(metadata, "unknown")
    has_merges = _KEY + "merges" in metadata
    if has_merges:
        merges = _merges_in(metadata)
    else:
        merges = _merges_of(tokens, metadata[_KEY + "scores"])
    model = models.BPE(
        vocab=vocab,
        merges=merges,
        unk_token=None if unknown is None else tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    add_space = metadata.get(_KEY + "add_space_prefix", not has_merges)
    spaces = normalizers.Replace(" ", _SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if add_space else spaces
    )
    if has_merges:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), behavior="isolated")
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
        index = special_id(metadata, name)
        if metadata.get(f"{_KEY}add_{name}_token", default) and index is not None:
            ends[name] = (tokens[index], index)
    if not ends:
        return
    parts = ([ends["bos"][0]] if "bos" in ends else []) + ["$A"]
    parts += [ends["eos"][0]] if "eos" in ends else []
    backend.post_processor = TemplateProcessing(
        single=parts, pair=[*parts, "$B:1"], special_tokens=list(ends.values())
    )
