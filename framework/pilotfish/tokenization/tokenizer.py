"""Tokenizer: text to token ids and back, and chat messages to text.

Knows: a vocabulary and its special tokens, from an HF directory or a GGUF file. Does not know:
requests, or how text is streamed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pilotfish.config.hf_options import option, text_config
from pilotfish.errors import CheckpointError, RequestError
from pilotfish.tokenization.chat_template import ChatTemplate
from pilotfish.tokenization.files import (
    file_read,
    is_tiktoken,
    named_templates,
    templates_in,
    unread_file,
    what_to_do,
)
from pilotfish.tokenization.published import broken_file, read_published
from pilotfish.tokenization.tiktoken_file import CONFIG_FILE, TIKTOKEN_FILE, read_tiktoken
from pilotfish.weights import Checkpoint, GGUFFile, PreTokenizer, TiktokenRules
from pilotfish.weights.gguf_tokens import special_id
from pilotfish.weights.json_file import read_json_object

if TYPE_CHECKING:
    import tokenizers

_GGUF_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator"}
"""Name of a special token -> how GGUF spells it."""


class Codec(Protocol):
    """The part of a tokenizer that turns text to ids and back."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        """Ids of a text; names of special tokens in it become those tokens."""
        ...

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        """Text of ids; ids outside the vocabulary give no text."""
        ...


class Tokenizer:
    """What a request needs of a checkpoint's tokenizer.

    vocab_size: number of ids, added tokens included; a model's own may be larger.
    special_tokens: "bos_token", "eos_token", ... -> text. special_ids: ids that are no text.
    eos_token_ids: tokens that end an answer, as the checkpoint says.
    chat_template: None when the checkpoint has none.
    backend: the `tokenizers.Tokenizer` inside; None for a tokenizer that has none.
    plain_decoding: whether `decode` is the backend's own, so that its steps may be followed.
    cleans_up: whether it takes spaces from the joined text, e.g. before a full stop.
    """

    def __init__(
        self,
        codec: Codec,
        backend: tokenizers.Tokenizer | None,
        *,
        vocab_size: int,
        special_tokens: Mapping[str, str],
        special_ids: frozenset[int],
        eos_token_ids: tuple[int, ...] = (),
        chat_template: ChatTemplate | None = None,
        plain_decoding: bool = True,
    ) -> None:
        self._codec = codec
        self.backend = backend
        self.vocab_size = vocab_size
        self.special_tokens = dict(special_tokens)
        self.special_ids = special_ids
        self.eos_token_ids = eos_token_ids
        self.chat_template = chat_template
        self.plain_decoding = plain_decoding and backend is not None
        self.cleans_up = not plain_decoding
        self._texts: dict[int, str] = {}

    def __repr__(self) -> str:
        said = "with" if self.chat_template is not None else "without"
        return (
            f"Tokenizer(vocab_size={self.vocab_size}, eos_token_ids={self.eos_token_ids}, "
            f"{said} a chat template)"
        )

    @classmethod
    def from_directory(
        cls, directory: str | Path, eos_token_ids: tuple[int, ...] = ()
    ) -> Tokenizer | None:
        """The tokenizer of a Hugging Face directory; None without one.

        `tokenizer.json` is used as it was published, where there is one. Code in the directory is
        never run. Raises CheckpointError when its files cannot be read.
        """
        directory = Path(directory)
        name = file_read(directory)
        if name is None:
            return None
        try:
            found = read_published(directory)
        except CheckpointError:
            raise
        except Exception as error:  # every tokenizer class has its own exceptions
            file = broken_file(directory, name)
            raise CheckpointError(
                f"{file}: the tokenizer cannot be read: "
                f"{' '.join(str(error).split()):.200}{what_to_do(file)}"
            ) from error
        special = {key: str(value) for key, value in found.special_tokens_map.items()}
        config = directory / CONFIG_FILE
        templates = templates_in(directory, read_json_object(config) if config.is_file() else {})
        backend: tokenizers.Tokenizer | None = getattr(found, "backend_tokenizer", None)
        plain = _decodes_plainly(found, backend)
        return cls(
            _BackendCodec(backend) if plain and backend else _TransformersCodec(found),
            backend,
            vocab_size=len(found),
            special_tokens=special,
            special_ids=frozenset(found.all_special_ids) if backend is None else _special(backend),
            eos_token_ids=eos_token_ids or _eos_of(found.eos_token_id),
            chat_template=ChatTemplate(templates, special) if templates else None,
            plain_decoding=plain,
        )

    @classmethod
    def from_tiktoken(
        cls,
        directory: str | Path,
        rules: TiktokenRules,
        vocab_size: int,
        eos_token_ids: tuple[int, ...] = (),
    ) -> Tokenizer:
        """The tokenizer of a directory with a `tiktoken.model`; no token is added to a text.

        vocab_size: ids that the model knows. Raises CheckpointError when its files cannot be right.
        """
        from pilotfish.tokenization.tiktoken import build_backend

        directory = Path(directory)
        vocabulary = read_tiktoken(directory, vocab_size)
        backend = build_backend(vocabulary, rules, vocab_size)
        special = vocabulary.special_tokens
        templates = templates_in(directory, vocabulary.config)
        eos_token_ids = eos_token_ids or _eos_of(backend.token_to_id(special.get("eos_token", "")))
        return cls._of_backend(backend, special, eos_token_ids, templates)

    @classmethod
    def from_gguf(
        cls,
        file: GGUFFile,
        pretokenizers: Mapping[str, PreTokenizer],
        eos_token_ids: tuple[int, ...] = (),
    ) -> Tokenizer | None:
        """The tokenizer in a GGUF file's metadata; None without a vocabulary.

        Raises CheckpointError naming a kind of vocabulary that is not read.
        """
        from pilotfish.tokenization.gguf import build_backend

        backend = build_backend(file.metadata, pretokenizers)
        if backend is None:
            return None
        tokens = file.metadata["tokenizer.ggml.tokens"]
        special: dict[str, str] = {}
        for name, key in _GGUF_SPECIAL.items():
            index = special_id(file.metadata, key)
            if index is not None:
                special[f"{name}_token"] = tokens[index]
        return cls._of_backend(backend, special, eos_token_ids, _gguf_templates(file.metadata))

    @classmethod
    def _of_backend(
        cls,
        backend: tokenizers.Tokenizer,
        special: Mapping[str, str],
        eos_token_ids: tuple[int, ...],
        templates: Mapping[str, str],
    ) -> Tokenizer:
        """special: "bos_token", ... -> text. templates: sources of chat templates by name."""
        return cls(
            _BackendCodec(backend),
            backend,
            vocab_size=backend.get_vocab_size(with_added_tokens=True),
            special_tokens=special,
            special_ids=_special(backend),
            eos_token_ids=eos_token_ids,
            chat_template=ChatTemplate(templates, special) if templates else None,
        )

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text; names of special tokens in it become those tokens.

        add_special_tokens: whether BOS and the like are put where the checkpoint asks for them.
        """
        try:
            return self._codec.encode(text, add_special_tokens)
        except (TypeError, UnicodeError) as error:
            raise RequestError(
                f"the text cannot be encoded: {error}; wanted Unicode text without lone surrogates"
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids; bytes that are no UTF-8 become U+FFFD."""
        return self._codec.decode(ids, skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The text of one token in the midst of a text, its space included; special ones too.

        A token that is a part of a letter's bytes gives U+FFFD.
        """
        if token_id not in self._texts:
            before = self._codec.decode(self._anchor, False)
            joined = self._codec.decode([*self._anchor, token_id], False)
            lone = self._codec.decode([token_id], False)
            self._texts[token_id] = joined.removeprefix(before) if before else lone
        return self._texts[token_id]

    @cached_property
    def _anchor(self) -> list[int]:
        """Tokens of a text that another token may follow."""
        return self._codec.encode("a", False)

    def render_chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> str:
        """The text of a conversation; a string is one message of the user.

        options: see `ChatTemplate.render`.
        Raises RequestError when there is no chat template, or it refuses the messages.
        """
        if self.chat_template is None and options.get("chat_template") is None:
            raise RequestError(
                "the checkpoint has no chat template; pass a plain prompt, or a template as "
                "chat_template"
            )
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        template = self.chat_template or ChatTemplate({}, self.special_tokens)
        return template.render(messages, **options)

    def encode_chat(self, messages: str | Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of a conversation. The template writes BOS itself. Raises as `render_chat`."""
        return self.encode(self.render_chat(messages, **options), add_special_tokens=False)

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue, which has BOS once: its own, or one that is added.

        So the text of `render_chat`, which writes BOS itself, gives the ids of `encode_chat`.
        """
        bos = self.special_tokens.get("bos_token")
        ids = self.encode(text)
        if bos and text.startswith(bos) and ids[:1] == ids[1:2]:
            bare = self.encode(text, add_special_tokens=False)
            if ids[1 : 1 + len(bare)] == bare:
                return ids[1:]
        return ids

    @cached_property
    def special_texts(self) -> Mapping[str, int]:
        """Text of each special token -> id."""
        texts = {self.decode([i], skip_special_tokens=False): i for i in sorted(self.special_ids)}
        return {text: index for text, index in texts.items() if text}

    @cached_property
    def decoder_steps(self) -> tuple[Mapping[str, Any], ...] | None:
        """The backend's decoding steps as data; None when they are not known."""
        if self.backend is None or not self.plain_decoding:
            return None
        decoder = self.backend.decoder
        if decoder is None:
            return None
        spec = json.loads(decoder.__getstate__())  # the whole backend as text takes 0.2 s
        return tuple(spec["decoders"]) if spec["type"] == "Sequence" else (spec,)


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint; None when it has none: then only token ids can be prompts.

    Raises CheckpointError when there is one that cannot be read.
    """
    if checkpoint.gguf is not None:
        return Tokenizer.from_gguf(
            checkpoint.gguf, checkpoint.pretokenizers, checkpoint.eos_token_ids
        )
    if checkpoint.tiktoken is not None and is_tiktoken(checkpoint.path):
        return Tokenizer.from_tiktoken(
            checkpoint.path, checkpoint.tiktoken, _vocab_size(checkpoint), checkpoint.eos_token_ids
        )
    return Tokenizer.from_directory(checkpoint.path, checkpoint.eos_token_ids)


def need_tokenizer(tokenizer: Tokenizer | None, path: str | Path | None = None) -> Tokenizer:
    """The tokenizer, for a prompt of text. path: the checkpoint's, to say what lies there.

    Raises RequestError when there is none.
    """
    if tokenizer is None:
        unread = None if path is None else unread_file(Path(path))
        if unread is None:
            raise RequestError("the checkpoint has no tokenizer; pass token ids")
        raise RequestError(f"the checkpoint has no tokenizer that is read: {unread}")
    return tokenizer


def _vocab_size(checkpoint: Checkpoint) -> int:
    config = checkpoint.huggingface_config
    found = option(text_config(config), "vocab_size", option(config, "vocab_size"))
    if not isinstance(found, int):
        raise CheckpointError(
            f"{checkpoint.path}: {TIKTOKEN_FILE} and a config with vocab_size {found!r}; wanted "
            "the number of token ids"
        )
    return found


class _BackendCodec:
    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        backend.no_truncation()  # a file may be saved with either
        backend.no_padding()

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


class _TransformersCodec:
    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def _special(backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Ids that decoding leaves out when special tokens are skipped."""
    added = backend.get_added_tokens_decoder()
    return frozenset(index for index, token in added.items() if token.special)


def _decodes_plainly(tokenizer: Any, backend: tokenizers.Tokenizer | None) -> bool:
    """Whether decoding is the backend's own: byte-pair text is cleaned up only if forced."""
    import tokenizers.models

    if not getattr(tokenizer, "clean_up_tokenization_spaces", False):
        return True
    forced = getattr(
        tokenizer, "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False
    )
    return backend is not None and isinstance(backend.model, tokenizers.models.BPE) and not forced


def _gguf_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """A GGUF file's templates by name; those with one have it in their key."""
    key = "tokenizer.chat_template"
    named = {
        name.removeprefix(key + "."): source
        for name, source in metadata.items()
        if name.startswith(key + ".") and isinstance(source, str)
    }
    return {**named, **named_templates(metadata.get(key) or None)}


def _eos_of(value: int | None) -> tuple[int, ...]:
    return () if value is None else (value,)
