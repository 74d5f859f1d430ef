"""Reading safetensors and torch files: values, sharding, and every kind of broken file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pilotfish.errors import CheckpointError
from pilotfish.weights import SafetensorsSource
from pilotfish.weights.formats.safetensors import DTYPES
from pilotfish.weights.formats.torch_bin import TorchBinSource

TENSORS = {
    "a.weight": torch.randn(5, 3),
    "b.weight": torch.randn(4, 2, 3).bfloat16(),
    "c.weight": torch.randn(7).half(),
    "d2t": torch.arange(-3, 4),
    "t2d": torch.tensor([True, False, True]),
    "packed": torch.arange(6, dtype=torch.int32).view(2, 3),
    "scale": torch.tensor(1.5),
    "none": torch.empty(0, 3),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def test_values_shapes_and_dtypes(file: Path) -> None:
    source = SafetensorsSource.from_file(file)
    assert set(source) == set(source.infos) == set(TENSORS)
    for name, tensor in TENSORS.items():
        info = source.infos[name]
        assert info.shape == tuple(tensor.shape)
        assert info.num_bytes == tensor.nbytes
        got = source.load(name)
        assert got.dtype == tensor.dtype == getattr(torch, info.dtype)
        assert torch.equal(got, tensor)


@pytest.mark.parametrize("kind", DTYPES)
def test_every_dtype_of_the_table_is_torchs(tmp_path: Path, kind: str) -> None:
    dtype: torch.dtype = getattr(torch, DTYPES[kind])
    numbers = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1], dtype=torch.uint8).repeat(8)
    tensor = numbers.view(dtype) if dtype == torch.bool else (numbers + 60).view(dtype)
    save_file({"x": tensor}, tmp_path / "x.safetensors")
    got = SafetensorsSource.from_file(tmp_path / "x.safetensors").load("x")
    assert got.dtype == dtype
    assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))


def test_writing_to_a_loaded_tensor_does_not_change_the_file(file: Path) -> None:
    before = file.read_bytes()
    SafetensorsSource.from_file(file).load("a.weight").fill_(0)
    assert file.read_bytes() == before


def test_tensor_that_is_not_aligned_is_read(tmp_path: Path) -> None:
    """A writer that does not pad its header leaves every tensor at an odd place."""
    header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (1 - len(header) % 2)
    assert (8 + len(header)) % 4
    data = torch.tensor([1.5, -2.0]).numpy().tobytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    assert SafetensorsSource.from_file(path).load("x").tolist() == [1.5, -2.0]


def _cut_tail(data: bytes) -> bytes:
    return data[:-1]


def _cut_header(data: bytes) -> bytes:
    return data[:20]


def _append(data: bytes) -> bytes:
    return data + b"\0"


def _huge_header(data: bytes) -> bytes:
    return (2**60).to_bytes(8, "little") + data[8:]


def _not_json(data: bytes) -> bytes:
    return data[:8] + b"}" + data[9:]


def _edit(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return apply


def _header(text: bytes) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return apply


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_cut_tail, "truncated or corrupt"),
        (_cut_header, "header that does not fit"),
        (lambda data: b"", "header that does not fit"),
        (_append, "bytes where the header wants"),
        (_huge_header, "header that does not fit"),
        (_not_json, "not JSON"),
        (_edit(lambda h: h["a.weight"].update(shape=[5, 4])), "for a.weight, F32"),
        (_edit(lambda h: h["a.weight"].update(shape=[-5, -3])), "a.weight that are no whole"),
        (_edit(lambda h: h["a.weight"].update(shape=["a", 10**13])), "a.weight that are no whole"),
        (_edit(lambda h: h["a.weight"].update(data_offsets=[0, None])), "a.weight that are no"),
        (_edit(lambda h: h["a.weight"].update(data_offsets=["0", "4"])), "a.weight that are no"),
        (_edit(lambda h: h["a.weight"].update(data_offsets=[True, 4.0])), "a.weight that are no"),
        (_edit(lambda h: h["a.weight"].update(dtype=["F32"])), "a.weight has the type ['F32']"),
        (_edit(lambda h: h.update(__metadata__={"format": 1})), "__metadata__"),
        (_edit(lambda h: h.update(__metadata__=[])), "__metadata__"),
        (_header(b"[" * 100_000), "not JSON"),
        (_header(b"\xef\xbb\xbf{}"), "not JSON"),
        (_header(b"\xff{}"), "not JSON"),
        (_edit(lambda h: h["a.weight"].pop("dtype")), "bad entry for a.weight"),
        (_edit(lambda h: h["a.weight"].update(dtype="F6")), "a.weight has the type 'F6'"),
        (_edit(lambda h: h.pop("b.weight")), "gap or an overlap"),
    ],
)
def test_broken_file_is_named(file: Path, spoil: Callable[[bytes], bytes], said: str) -> None:
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(CheckpointError) as caught:
        SafetensorsSource.from_file(file)
    assert str(file) in str(caught.value)
    assert said in str(caught.value)


def test_tensors_keep_no_file_open(file: Path) -> None:
    """A model has more matrices than a process may have open files."""
    resource = pytest.importorskip("resource")
    source = SafetensorsSource.from_file(file)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free
    os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (number + 2, limits[1]))
    try:
        tensors = [source.load("a.weight") for _ in range(50)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(torch.equal(tensor, TENSORS["a.weight"]) for tensor in tensors)


def test_file_cut_after_it_was_opened(file: Path) -> None:
    source = SafetensorsSource.from_file(file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="changed after it was opened"):
        source.load("a.weight")


def shard(folder: Path) -> Path:
    """Two shards and their index."""
    names = list(TENSORS)
    weight_map = {}
    for number, part in enumerate((names[:3], names[3:])):
        save_file({name: TENSORS[name] for name in part}, folder / f"part{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"part{number}.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


def test_shards_are_one_source(tmp_path: Path) -> None:
    source = SafetensorsSource.from_index(shard(tmp_path))
    assert set(source) == set(TENSORS)
    assert all(torch.equal(source.load(name), tensor) for name, tensor in TENSORS.items())


def test_missing_shards_are_all_named(tmp_path: Path) -> None:
    index = shard(tmp_path)
    (tmp_path / "part0.safetensors").unlink()
    (tmp_path / "part1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"part0.safetensors, part1.safetensors"):
        SafetensorsSource.from_index(index)


def test_index_that_names_absent_tensors(tmp_path: Path) -> None:
    index = shard(tmp_path)
    row = json.loads(index.read_text())
    row["weight_map"] |= {"ghost": "part0.safetensors", "d2t": "part0.safetensors"}
    index.write_text(json.dumps(row))
    with pytest.raises(CheckpointError) as caught:
        SafetensorsSource.from_index(index)
    assert "d2t (in part0.safetensors)" in str(caught.value)
    assert "ghost (in part0.safetensors)" in str(caught.value)


@pytest.mark.parametrize("shard_name", ["../part0.safetensors", "/part0.safetensors", "", "."])
def test_index_that_names_files_elsewhere(tmp_path: Path, shard_name: str) -> None:
    index = shard(tmp_path)
    row = json.loads(index.read_text())
    row["weight_map"] |= {"ghost": shard_name}
    index.write_text(json.dumps(row))
    with pytest.raises(CheckpointError, match=f"names '{shard_name}'; wanted names of files"):
        SafetensorsSource.from_index(index)


def test_tensor_that_the_index_does_not_name_is_kept(tmp_path: Path) -> None:
    """Strict loading has to see it."""
    index = shard(tmp_path)
    row = json.loads(index.read_text())
    del row["weight_map"]["c.weight"]
    index.write_text(json.dumps(row))
    assert "c.weight" in SafetensorsSource.from_index(index).infos


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_index_without_a_map(tmp_path: Path, text: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        SafetensorsSource.from_index(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_file(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path, _use_new_zipfile_serialization=zipped)
    source = TorchBinSource.from_file(path)
    assert {name: info.shape for name, info in source.infos.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(source.load(name), tensor) for name, tensor in TENSORS.items())


class Trap:
    """What a hostile pickle would do."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return (Path.mkdir, (Path("pilotfish_was_here"),))  # type: ignore[return-value]


def test_pickled_code_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.ones(2), "b": Trap()}, "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled code is never run"):
        TorchBinSource.from_file(tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "pilotfish_was_here").exists()


@pytest.mark.parametrize("data", [b"root:x:0:0", b"<html>", b"\x80\x02.", b"{}", b""])
def test_a_file_that_is_no_torch_file_is_corrupt(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="corrupt"):
        TorchBinSource.from_file(path)


def test_broken_torch_files(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: truncated or corrupt"):
        TorchBinSource.from_file(path)
    path.write_bytes(b"not a torch file")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin"):
        TorchBinSource.from_file(path)
    torch.save([torch.ones(2)], path)
    with pytest.raises(CheckpointError, match="wanted a dict of tensors"):
        TorchBinSource.from_file(path)


def test_sharded_torch_files(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "p0.bin")
    torch.save({"b": torch.zeros(2)}, tmp_path / "p1.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "p0.bin", "b": "p1.bin"}}))
    assert set(TorchBinSource.from_index(index)) == {"a", "b"}
    (tmp_path / "p1.bin").unlink()
    with pytest.raises(CheckpointError, match=r"p1.bin"):
        TorchBinSource.from_index(index)
