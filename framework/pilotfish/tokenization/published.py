"""Reading the tokenizer of a Hugging Face directory: what `tokenizer.json` says is what is used.

Knows: which class of transformers reads a directory, and where it would depart from the published
file. Does not know: chat or requests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pilotfish.tokenization.tiktoken_file import CONFIG_FILE as TOKENIZER_CONFIG_FILE
from pilotfish.tokenization.token_texts import TOKENIZER_FILE
from pilotfish.warn import warn_caller
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.pretokenizer import PRE_TOKENIZERS

if TYPE_CHECKING:
    import tokenizers

_CONFIG_FILE = "config.json"
_SMALL_FILES = (TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
_MISTRAL = frozenset(
    ("mistral", "mistral3", "ministral", "ministral3", "mixtral", "pixtral", "voxtral")
)
_MISTRAL_MARK = "[INST]"
"""A token of every vocabulary that Mistral made for chat."""


def read_published(directory: Path) -> Any:
    """The directory's tokenizer, as a class of transformers. Code in the directory is never run.

    transformers builds the pipeline of some classes anew instead of reading the file's; so the file
    is read by the class that does not, and the flags of added tokens are the file's own.
    Raises CheckpointError naming a file beside it that is no JSON object, or what transformers
    raises.
    """
    import transformers

    for file in (directory / name for name in _SMALL_FILES):
        if file.is_file():
            read_json_object(file)
    if not (directory / TOKENIZER_FILE).is_file():
        found = transformers.AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        _put_spaces_first(getattr(found, "backend_tokenizer", None))
        return found
    found = transformers.PreTrainedTokenizerFast.from_pretrained(
        str(directory),
        local_files_only=True,
        trust_remote_code=False,
        fix_mistral_regex=False,  # below, by what the file says; transformers only warns
    )
    _keep_flags(found.backend_tokenizer, read_json_object(directory / TOKENIZER_FILE))
    _mend_mistral(found.backend_tokenizer, directory)
    return found


def broken_file(directory: Path, name: str) -> Path:
    """Which of the files it is, where `read_published` failed on a directory with the file `name`.

    A tokenizer.json that can be read by itself is not the one.
    """
    import tokenizers

    beside = [file for file in (directory / other for other in _SMALL_FILES) if file.is_file()]
    if name != TOKENIZER_FILE or not beside:
        return directory / name
    try:
        tokenizers.Tokenizer.from_file(str(directory / name))
    except Exception:  # the library has no class of its own for them
        return directory / name
    return beside[0]


def _put_spaces_first(backend: tokenizers.Tokenizer | None) -> None:
    """Puts a space before a text as SentencePiece does, before one that begins with a space too.

    And so before what follows a token that is kept whole.
    """
    from tokenizers import models, normalizers, pre_tokenizers

    step = None if backend is None else backend.pre_tokenizer
    if (
        backend is not None
        and isinstance(step, pre_tokenizers.Metaspace)
        and isinstance(backend.model, models.BPE)
        and step.prepend_scheme == "first"
        and not step.split
        and backend.normalizer is None
    ):
        space = step.replacement
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(space), normalizers.Replace(" ", space)]
        )
        backend.pre_tokenizer = pre_tokenizers.Sequence([])


def _keep_flags(backend: tokenizers.Tokenizer, file: Mapping[str, Any]) -> None:
    """tokenizer_config.json may give other flags to tokens that the file has."""
    from tokenizers import AddedToken

    stored = {token["id"]: token for token in file.get("added_tokens") or ()}
    read = backend.get_added_tokens_decoder()
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    backend.add_tokens(
        [
            AddedToken(token["content"], **{flag: token[flag] for flag in flags})
            for index, token in stored.items()
            if index in read and any(getattr(read[index], flag) != token[flag] for flag in flags)
        ]
    )


def _mend_mistral(backend: tokenizers.Tokenizer, directory: Path) -> None:
    """Gives the large vocabularies of Mistral's models the expression they were trained with.

    Some were published with another one. Only there the file's word does not hold.
    """
    from tokenizers import Regex, pre_tokenizers

    steps = backend.pre_tokenizer
    if not isinstance(steps, pre_tokenizers.Sequence) or backend.token_to_id(_MISTRAL_MARK) is None:
        return
    file = directory / _CONFIG_FILE
    config = read_json_object(file) if file.is_file() else {}
    text = config.get("text_config")
    kinds = {config.get("model_type"), text.get("model_type") if isinstance(text, dict) else None}
    wanted = PRE_TOKENIZERS["tekken"].pattern
    assert wanted is not None
    if not kinds & _MISTRAL or not isinstance(steps[0], pre_tokenizers.Split):
        return
    if wanted in _expressions(steps[0]):
        return
    steps[0] = pre_tokenizers.Split(Regex(wanted), behavior="isolated")
    backend.pre_tokenizer = steps
    warn_caller(
        f"{directory / TOKENIZER_FILE} was published with an expression that cuts text otherwise "
        "than in training; Mistral's own is used, so token ids are those the model knows"
    )


def _expressions(split: Any) -> list[str]:
    """The expression of a Split, as its saved form has it."""
    import json

    pattern = json.loads(split.__getstate__())["pattern"]
    return [str(value) for value in pattern.values()]
