"""Fetching a checkpoint from the Hugging Face hub: small files first, weights when they are read.

Knows: hub ids, the local cache, and what may go wrong. Does not know: what configs mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import cached_property
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import attrs

from pilotfish.config.peer_attributes import NO_LIBRARY
from pilotfish.errors import CheckpointError
from pilotfish.weights.absent import NoWeightsError
from pilotfish.weights.directory import INDEX_FILES, main_file, open_directory, why_no_weights
from pilotfish.weights.formats.safetensors import (
    INDEX_FILE,
    SINGLE_FILE,
    Place,
    header_size,
    joined,
    parse_header,
    read_weight_map,
    weight_map_in,
)
from pilotfish.weights.formats.torch_headers import torch_infos
from pilotfish.weights.hub.access import RemoteFile, cached_commit, remote_commit
from pilotfish.weights.hub.download import LAST, fetch
from pilotfish.weights.hub.reasons import is_refusal
from pilotfish.weights.names import shortened
from pilotfish.weights.source import TensorInfo, WeightSource

if TYPE_CHECKING:
    import torch

S = TypeVar("S")
T = TypeVar("T")

_HUB_ID = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?"
    r"(:(?P<file>[\w.-]+))?"
)
_ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co)/")
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")
_LIBRARY_NAME = re.compile(r"[a-z0-9._-]+:[a-z0-9._-]+")
_SAFETENSORS = (SINGLE_FILE, INDEX_FILE)
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
_COPIES = ("*/*.json", "*/*.model", "*/*.txt")
"""Other formats of the same model, in folders of their own."""

_FIRST_BYTES = 100_000
"""Of a file, asked for at first: most headers are shorter."""
_AT_ONCE = 8
"""Headers."""
_LOOK_S = 0.1


@attrs.frozen
class HubId:
    """organisation/name, a branch, tag or commit, and a GGUF file or its quantization."""

    repo: str
    revision: str | None = None
    file: str | None = None


def hub_id(model: str) -> HubId | None:
    """A name of the form organisation/name, organisation/name@revision or organisation/name:FILE;
    None for any other.
    """
    match = _HUB_ID.fullmatch(model)
    return None if match is None else HubId(match["repo"], match["revision"], match["file"])


def meant_by(model: str) -> str:
    """What may have been meant by what is no model, to be put behind a phrase; "" for no idea.

    The hub id in an address; of a name:tag, as another program's library has, that it is none.
    """
    parts = _ADDRESS.sub("", model, count=1).partition("?")[0].strip("/").split("/")
    if _ADDRESS.match(model):
        parts = parts[:2]  # pages of a repository lie below it
    name = "/".join(parts)
    if name != model and hub_id(name) is not None:
        return f"; write {name}"
    if _LIBRARY_NAME.fullmatch(model):
        return f"; {NO_LIBRARY}"
    return ""


@attrs.frozen
class HubSnapshot:
    """One commit of a repository in the local cache, whose weights may still be on the hub.

    path: the directory with what is here.
    """

    repo: str
    path: Path

    def weights(self) -> WeightSource:
        """The tensors: those in the cache, else those on the hub, which are fetched when the first
        is read; shapes are known before. Raises CheckpointError, as for a directory.
        """
        here = {file.name for file in self.path.iterdir() if file.is_file()}
        name = main_file(here - set(INDEX_FILES)) or main_file(here)
        if name is not None and (name not in INDEX_FILES or self._has_all(name)):
            return open_directory(self.path)
        return HubSource(self)

    def files(self) -> list[str]:
        """Every file of the commit, those that are not here among them."""
        return list(remote_commit(self.repo, self.commit).sizes)

    def remote(self, name: str) -> RemoteFile:
        """One of them."""
        return RemoteFile(self.repo, self.commit, name)

    @property
    def commit(self) -> str:
        """Its id: the cache names directories by it."""
        return self.path.name

    def _has_all(self, index: str) -> bool:
        try:
            read_weight_map(self.path / index)
        except CheckpointError:
            return False
        return True


class HubSource(WeightSource):
    """A WeightSource over weights on the hub; the files are fetched when a tensor is read."""

    def __init__(self, snapshot: HubSnapshot) -> None:
        self._snapshot = snapshot

    @property
    def is_torchs(self) -> bool:
        """Whether they are files of torch's old format."""
        return self._main_file not in _SAFETENSORS

    @cached_property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, from a few bytes of the files; torch's old format is fetched whole."""
        name = self._main_file
        if self.is_torchs:
            of_torch = self._of_torch_files()
            return self._local.infos if of_torch is None else of_torch
        if name == SINGLE_FILE:
            return {tensor: place.info for tensor, place in self._header(name).items()}
        weight_map = weight_map_in(self._snapshot.path / name)
        shards = sorted(set(weight_map.values()))
        headers = dict(zip(shards, _at_once(self._header, shards), strict=True))
        found = joined(self._snapshot.path / name, weight_map, headers)
        return {tensor: place.info for tensor, (_, place) in found.items()}

    def _of_torch_files(self) -> Mapping[str, TensorInfo] | None:
        """None where it takes torch to read them."""
        name = self._main_file
        index = self._snapshot.path / name
        files = sorted(set(weight_map_in(index).values())) if name in INDEX_FILES else [name]
        infos: dict[str, TensorInfo] = {}
        for found in _at_once(torch_infos, [self._snapshot.remote(file) for file in files]):
            if found is None or infos.keys() & found.keys():
                return None
            infos |= found
        return infos

    def _header(self, name: str) -> dict[str, Place]:
        file = self._snapshot.remote(name)
        head, size = file.read(0, _FIRST_BYTES)
        wanted = min(header_size(head), size)
        if len(head) < wanted:
            head += file.read(len(head), wanted - len(head))[0]
        return parse_header(file, head, size)

    def load(self, name: str) -> torch.Tensor:
        """As the file's own source, once it is here. Raises KeyError."""
        return self._local.load(name)

    @cached_property
    def _main_file(self) -> str:
        repo, files = self._snapshot.repo, self._snapshot.files()
        name = main_file(files)
        if name is None:
            why = why_no_weights(self._snapshot.path, files)
            raise NoWeightsError(f"{repo}: no weights in the repository; {why}")
        if name in INDEX_FILES:
            weight_map = weight_map_in(self._snapshot.path / name)
            absent = sorted(set(weight_map.values()) - set(files))
            if absent:
                raise CheckpointError(
                    f"{repo}: {name} names files that the repository does not have: "
                    f"{', '.join(shortened(absent))}; its upload is not complete: take another"
                )
        return name

    @cached_property
    def _local(self) -> WeightSource:
        snapshot, wanted = self._snapshot, [self._main_file]
        if self._main_file in INDEX_FILES:
            wanted += sorted(set(weight_map_in(snapshot.path / self._main_file).values()))
        fetch(remote_commit(snapshot.repo, snapshot.commit), wanted, snapshot.commit)
        return open_directory(snapshot.path)


def _at_once(read: Callable[[S], T], files: list[S]) -> list[T]:
    """Of each file, in their order; the threads keep nobody waiting who leaves early."""
    with ThreadPool(_AT_ONCE) as pool:
        found = pool.map_async(read, files, chunksize=1)
        while not found.ready():  # Ctrl-C just before a wait without end would not end it
            found.wait(_LOOK_S)
        return found.get()


def fetch_small_files(model: HubId) -> HubSnapshot:
    """Config, tokenizer, templates and the index; no weights.

    Where the hub cannot be reached, it is what the cache has of the commit that was last fetched.
    Raises CheckpointError saying what to do, with the hub's own exception as its cause.
    """
    repo, revision = model.repo, model.revision
    try:
        commit = remote_commit(repo, revision)
    except CheckpointError as error:
        here = None if is_refusal(error) else cached_commit(repo, revision)
        if here is None or not ((here / LAST).is_file() or _ggufs_in(here)):
            raise
        return HubSnapshot(repo, here)
    names = [
        name for name in commit.sizes if _fits(name, _SMALL_FILES) and not _fits(name, _COPIES)
    ]
    return HubSnapshot(repo, fetch(commit, names, revision))


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _ggufs_in(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob("*.gguf")]


def find_gguf(model: HubId) -> tuple[Path, RemoteGGUF | None]:
    """The GGUF file that `model.file` names, or the only one of that quantization -> where it is,
    or will be, in the cache; and where it comes from, None where it is there.

    Where the hub cannot be reached, it is what the cache has of the commit that was last fetched.
    Raises CheckpointError.
    """
    assert model.file is not None
    repo, revision = model.repo, model.revision
    try:
        commit = remote_commit(repo, revision)
    except CheckpointError as error:
        here = None if is_refusal(error) else cached_commit(repo, revision)
        ggufs = [] if here is None else _ggufs_in(here)
        found = [name for name in ggufs if name in _fitting(model.file, ggufs)]
        if here is None or len(found) != 1:
            raise
        return here / found[0], None
    ggufs = [name for name in commit.sizes if name.endswith(".gguf")]
    fitting = _fitting(model.file, ggufs)
    parts = [
        name
        for name in ggufs
        if name in fitting or _fitting(model.file, [_PART.sub(".gguf", name)])
    ]
    if parts and all(map(_PART.search, parts)):
        raise CheckpointError(
            f"{repo}: {model.file!r} is in parts, which are not read: {', '.join(parts)}; fetch "
            "all parts, merge them into one file (gguf-split --merge) and give that"
        )
    if len(fitting) != 1:
        what = f"{len(fitting)} of its files are" if fitting else "none of its files is"
        raise CheckpointError(
            f"{repo}: {what} {model.file!r}; wanted one of "
            f"{', '.join(ggufs) or 'its GGUF files: none'}"
        )
    remote = RemoteGGUF(RemoteFile(repo, commit.id, fitting[0]), revision)
    return remote.file.place, None if remote.file.place.is_file() else remote


def _fitting(wanted: str, ggufs: list[str]) -> list[str]:
    """Those of these files that a user may mean: one by its name, else those of a quantization."""
    exact = [name for name in ggufs if name == wanted]
    ending = re.compile(rf"(^|[-._/]){re.escape(wanted)}\.gguf", re.IGNORECASE)
    return exact or [name for name in ggufs if ending.search(name)]


@attrs.frozen
class RemoteGGUF:
    """A GGUF file that is not in the cache. revision: by which the user asked for its commit."""

    file: RemoteFile
    revision: str | None

    def fetch(self) -> None:
        """Puts it there. Raises CheckpointError."""
        fetch(remote_commit(self.file.repo, self.file.commit), [self.file.name], self.revision)


def only_gguf(snapshot: HubSnapshot) -> str | None:
    """The one GGUF file of a repository, which it then stands for; None for none or several.

    An image part (mmproj) is none of them.
    """
    try:
        names = snapshot.files()
    except CheckpointError:
        names = _ggufs_in(snapshot.path)
    found = [name for name in names if name.endswith(".gguf") and "mmproj" not in name.lower()]
    return found[0] if len(found) == 1 else None


def why_no_config(snapshot: HubSnapshot) -> str:
    """What a repository without config.json holds, to be put behind a phrase; "" for no idea."""
    ggufs = [name for name in snapshot.files() if name.endswith(".gguf")]
    if not ggufs:
        return ""
    return f"; it has {', '.join(ggufs)}: name one, as in {snapshot.repo}:{ggufs[0]}"
