"""Checkpoint: what a user's MODEL turns out to be, with its config and its weights.

Knows: where checkpoints come from and which files they have. Does not know: any architecture; a
registry says what a GGUF file's architecture means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs

from pilotfish.config.model import ModelConfig, WeightFormat
from pilotfish.errors import CheckpointError
from pilotfish.weights.config_values import check_values
from pilotfish.weights.demo import find_demo
from pilotfish.weights.directory import open_directory
from pilotfish.weights.formats.gguf import GGUFFile
from pilotfish.weights.gguf_tokens import check_vocabulary, end_ids
from pilotfish.weights.hf_config import CONFIG_FILE, PlainConfig, read_config
from pilotfish.weights.hub.snapshot import (
    HubId,
    HubSnapshot,
    RemoteGGUF,
    fetch_small_files,
    find_gguf,
    hub_id,
    meant_by,
    only_gguf,
    why_no_config,
)
from pilotfish.weights.json_file import read_json_object
from pilotfish.weights.lfs import refuse_pointers
from pilotfish.weights.pretokenizer import PRE_TOKENIZERS, PreTokenizer, TiktokenRules
from pilotfish.weights.source import WeightSource

DEMO = "demo"
GENERATION_FILE = "generation_config.json"
_FLOATS = ("float32", "bfloat16", "float16")


class GGUFSpec(Protocol):
    """What is wanted of an architecture's spec."""

    @property
    def gguf_pretokenizers(self) -> Mapping[str, PreTokenizer]:
        """`tokenizer.ggml.pre` -> how text is cut."""
        ...


class GGUFRegistry(Protocol):
    """What `open_checkpoint` wants of a registry, to read a GGUF file."""

    def gguf_config(
        self, general_architecture: str
    ) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
        """The plugin's function from metadata to a Hugging Face config. Raises RouteError."""
        ...

    def architecture_for_gguf(self, general_architecture: str) -> GGUFSpec:
        """The plugin's spec. Raises RouteError."""
        ...


@attrs.frozen(kw_only=True)
class Checkpoint:
    """One checkpoint, opened: the config is read, the weights are not. Made by `open_checkpoint`.

    model: what the user asked for. path: the directory or file on disk.
    weight_format: "safetensors" (Hugging Face names, torch files too) or "gguf".
    huggingface_config: attribute access to the config; not to be changed.
    generation_config: the values of generation_config.json; empty without one.
    gguf: the open file of a GGUF checkpoint, for its metadata. hub: where a directory of the local
        cache came from, for what of it is not there yet.
    pretokenizers: how a GGUF file's text is cut, by the name it gives. tiktoken: how the text of a
        `tiktoken.model` is; None until the architecture's plugin is known, or where it has none.
    """

    model: str
    path: Path
    weight_format: WeightFormat
    huggingface_config: Any = attrs.field(repr=False)
    generation_config: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    gguf: GGUFFile | None = attrs.field(default=None, repr=False)
    hub: HubSnapshot | None = attrs.field(default=None, repr=False)
    pretokenizers: Mapping[str, PreTokenizer] = attrs.field(factory=dict, repr=False)
    tiktoken: TiktokenRules | None = attrs.field(default=None, repr=False)

    def model_config(self, max_length: int | None = None) -> ModelConfig:
        """The record that a PipelineConfig takes. max_length: the user's limit in tokens."""
        return ModelConfig(
            model=self.model,
            path=str(self.path),
            weight_format=self.weight_format,
            huggingface_config=self.huggingface_config,
            max_length=max_length,
        )

    def weights(self) -> WeightSource:
        """The tensors; only headers are read. Raises CheckpointError naming what is wrong."""
        if self.gguf is not None:
            self.gguf.refuse_unread()
            return self.gguf
        return open_directory(self.path) if self.hub is None else self.hub.weights()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: generation_config's if it has any, else the config's."""
        if self.gguf is not None:
            return end_ids(self.gguf.metadata)
        found = _token_ids(self.generation_config.get("eos_token_id"))
        for config in (self.huggingface_config, _text_config(self.huggingface_config)):
            found = found or _token_ids(getattr(config, "eos_token_id", None))
        return found

    def dtype(self, weights: WeightSource) -> str:
        """The dtype that "auto" means: the config's, else the one most of the weights have.

        Packed weights of a GGUF file count as bfloat16. Raises CheckpointError for a config whose
        dtype is none that weights are computed in.
        """
        for config in (self.huggingface_config, _text_config(self.huggingface_config)):
            for key in ("dtype", "torch_dtype"):
                name = str(getattr(config, key, None)).removeprefix("torch.")
                if name in _FLOATS:
                    return name
                if name not in ("None", "auto"):
                    raise CheckpointError(
                        f"{self.path}: config.json has {key} {name!r}; wanted "
                        f"{', '.join(sorted(_FLOATS))}: give --dtype"
                    )
        sizes: dict[str, int] = {}
        for info in weights.infos.values():
            name = info.dtype if info.dtype in _FLOATS else "bfloat16"
            sizes[name] = sizes.get(name, 0) + info.num_bytes
        return max(sizes, key=sizes.__getitem__) if sizes else "float32"


def open_checkpoint(model: str, registry: GGUFRegistry | None = None) -> Checkpoint:
    """Finds and opens a checkpoint; reads configs and headers, no weights.

    model: a directory with config.json; a `.gguf` file; "demo"; else a hub id, organisation/name
        with @revision or :FILE.gguf (or :Q4_K_M and the like) behind it.
    registry: says what a GGUF file's architecture means; without one a GGUF checkpoint has an
        empty config. Not needed for other formats.

    Raises CheckpointError naming the path and what is wrong with it, RouteError for a GGUF file of
    an architecture that no plugin reads.
    """
    if not model.strip():
        raise CheckpointError(
            f"the model's name is empty; wanted a directory with config.json, a .gguf file, a hub "
            f"id (organisation/name) or {DEMO!r}"
        )
    path = find_demo() if model == DEMO else Path(model).expanduser()
    if path.is_file():
        return _open_gguf(model, path, registry)
    if path.is_dir():
        refuse_pointers(path)
        return _of_directory(model, path)
    wanted = hub_id(model)
    if wanted is None or (path.suffix == ".gguf" and wanted.file is None):
        raise CheckpointError(
            f"{model}: no such file or directory; wanted a directory with config.json, a .gguf "
            f"file, a hub id (organisation/name) or {DEMO!r}{meant_by(model)}"
        )
    if wanted.file is not None:
        place, remote = find_gguf(wanted)
        return _open_gguf(model, place, registry, remote)
    return _from_hub(model, wanted, registry)


def _from_hub(model: str, wanted: HubId, registry: GGUFRegistry | None) -> Checkpoint:
    snapshot = fetch_small_files(wanted)
    if not (snapshot.path / CONFIG_FILE).is_file() and (name := only_gguf(snapshot)) is not None:
        place, remote = find_gguf(attrs.evolve(wanted, file=name))
        return _open_gguf(model, place, registry, remote)
    refuse_pointers(snapshot.path)
    try:
        return _of_directory(model, snapshot.path, snapshot)
    except CheckpointError as error:
        if (snapshot.path / CONFIG_FILE).is_file():
            raise
        raise CheckpointError(f"{model}: {error}{why_no_config(snapshot)}") from error


def _of_directory(model: str, path: Path, hub: HubSnapshot | None = None) -> Checkpoint:
    generation = path / GENERATION_FILE
    return Checkpoint(
        model=model,
        path=path,
        weight_format="safetensors",
        huggingface_config=read_config(path),
        generation_config=read_json_object(generation) if generation.is_file() else {},
        hub=hub,
    )


def _open_gguf(
    model: str, path: Path, registry: GGUFRegistry | None, remote: RemoteGGUF | None = None
) -> Checkpoint:
    if path.suffix != ".gguf":
        raise CheckpointError(
            f"{path}: a {path.suffix or 'plain'} file; wanted a .gguf file, or the directory that "
            "holds config.json and the weights"
        )
    file = GGUFFile(path, remote)
    architecture = file.metadata.get("general.architecture")
    if not isinstance(architecture, str):
        raise CheckpointError(f"{path}: no general.architecture; wanted a model's GGUF file")
    if file.metadata.get("split.count", 1) != 1:
        raise CheckpointError(
            f"{path}: one of {file.metadata['split.count']} parts; merge them into one file first"
        )
    pretokenizers = dict(PRE_TOKENIZERS)
    config_of = None if registry is None else registry.gguf_config(architecture)
    if registry is not None:
        pretokenizers.update(registry.architecture_for_gguf(architecture).gguf_pretokenizers)
    check_vocabulary(file.metadata, path)
    config = {} if config_of is None else config_of(file.metadata)
    check_values(config, str(path))
    return Checkpoint(
        model=model,
        path=path,
        weight_format="gguf",
        huggingface_config=PlainConfig(config),
        gguf=file,
        pretokenizers=pretokenizers,
    )


def _text_config(config: Any) -> Any:
    return getattr(config, "text_config", None)


def _token_ids(value: Any) -> tuple[int, ...]:
    """Ids from an id, a list of ids or None; each once, in order."""
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(dict.fromkeys(item for item in items if type(item) is int))
