"""The tokenizer of a `tiktoken.model`, built from its ranks.

Knows: how ranks become merges, and where reserved tokens lie. Does not know: how the file is read,
chat or requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from pilotfish.errors import CheckpointError
from pilotfish.tokenization.byte_letters import letters_of
from pilotfish.tokenization.tiktoken_file import CONFIG_FILE, TIKTOKEN_FILE, TiktokenVocabulary
from pilotfish.weights.pretokenizer import TiktokenRules

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def build_backend(
    vocabulary: TiktokenVocabulary, rules: TiktokenRules, vocab_size: int
) -> Tokenizer:
    """The tokenizer of a vocabulary.

    Ranks order the merging, as in tiktoken: two parts are joined where the whole is a token, the
    lowest rank first. So every way to cut a token into two others is a merge. A piece that is a
    token as a whole is that token, whatever merging would give.

    vocab_size: ids that the model knows; there are no reserved tokens beyond.
    Raises CheckpointError for a special token whose name is a piece of ordinary text too.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    tokens = [letters_of(token) for token in vocabulary.tokens]
    vocab = {token: index for index, token in enumerate(tokens)}
    names = _all_names(vocabulary, rules, vocab_size)
    _check_names(vocabulary, names, vocab)
    merges = list(_merges_of(tokens, vocab))
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
    cut = pre_tokenizers.Split(Regex(rules.pattern), behavior="isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, letters])
    backend.decoder = decoders.ByteLevel()
    # They get the ids that follow, in this order.
    backend.add_tokens(
        [
            AddedToken(name, normalized=False, special=index in vocabulary.special)
            for index, name in names.items()
        ]
    )
    return backend


def _merges_of(tokens: Sequence[str], vocab: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    for token in tokens:
        for at in range(1, len(token)):
            left = token[:at]
            if left in vocab and (right := token[at:]) in vocab:
                yield left, right


def _all_names(
    vocabulary: TiktokenVocabulary, rules: TiktokenRules, vocab_size: int
) -> dict[int, str]:
    """id -> name of every token behind the ranks, in order and without a gap."""
    first = len(vocabulary.tokens)
    end = max([min(first + rules.num_reserved, vocab_size), *(i + 1 for i in vocabulary.names)])
    return {
        index: vocabulary.names.get(index, rules.reserved_name.format(id=index))
        for index in range(first, end)
    }


def _check_names(
    vocabulary: TiktokenVocabulary, names: Mapping[int, str], vocab: Mapping[str, int]
) -> None:
    ids: dict[str, int] = {}
    for index, name in names.items():
        other = vocab.get(name, ids.get(name))
        if other is not None:
            raise CheckpointError(
                f"{vocabulary.directory / CONFIG_FILE} names id {index} {name!r}, which is the "
                f"text of id {other} too; wanted a name that is no token of {TIKTOKEN_FILE} and no "
                "other's"
            )
        ids[name] = index
