"""GGUF files: metadata, every tensor type bit for bit, and broken files."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.errors import CheckpointError
from pilotfish.weights import GGUFFile, unpermute_rope_rows
from pilotfish.weights.demo import find_demo
from pilotfish.weights.formats.gguf_blocks import (
    _CHUNK_NUMBERS,
    BLOCK_TYPES,
    TYPE_NAMES,
    dequantize,
)
from pilotfish.weights.stored_rows import PACKED_KINDS
from support.gguf_files import random_blocks, write_gguf

PACKED = [gguf.GGMLQuantizationType(kind) for kind, b in BLOCK_TYPES.items() if b.unpack]
METADATA = {
    "toy.block_count": 3,
    "toy.eps": 0.5,
    "toy.flag": True,
    "toy.name": "Fisch \U0001f41f",
    "toy.negative": -7,
    "toy.texts": ["a", "", "\u2581b"],
    "toy.numbers": [1, -2, 3],
    "toy.floats": [0.5, -1.5],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        "plain": (np.arange(6, dtype=np.float32).reshape(2, 3), None),
        "half": (np.arange(4, dtype=np.float16), None),
        "packed": (random_blocks(PACKED[0], 2, 3, seed=1), PACKED[0]),
    }
    return write_gguf(tmp_path / "toy.gguf", tensors, METADATA)


def test_table_is_the_packages(file: Path) -> None:
    for number, kind in BLOCK_TYPES.items():
        theirs = gguf.GGMLQuantizationType(number)
        assert kind.name == theirs.name
        assert (kind.size, kind.num_bytes) == gguf.GGML_QUANT_SIZES[theirs]
    assert {kind.name for kind in BLOCK_TYPES.values() if kind.unpack} == set(PACKED_KINDS)
    for number, name in TYPE_NAMES.items():
        assert gguf.GGMLQuantizationType(number).name == name


def test_metadata_and_shapes(file: Path) -> None:
    got = GGUFFile(file)
    assert {key: got.metadata[key] for key in METADATA} == METADATA
    assert type(got.metadata["toy.flag"]) is bool
    assert {name: info.shape for name, info in got.infos.items()} == {
        "plain": (2, 3),
        "half": (4,),
        "packed": (2, 96),
    }
    assert got.infos["packed"].dtype == "Q4_0"
    assert torch.equal(got.load("plain"), torch.arange(6.0).view(2, 3))
    assert torch.equal(got.load("half"), torch.arange(4).half())


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
@given(rows=st.integers(1, 4), blocks=st.integers(1, 5), seed=st.integers(0, 2**32))
def test_packed_numbers_have_the_bits_of_the_packages_own(
    kind: gguf.GGMLQuantizationType, rows: int, blocks: int, seed: int
) -> None:
    data = random_blocks(kind, rows, blocks, seed)
    want = gguf.dequantize(data, kind)
    got = dequantize(torch.from_numpy(data).view(-1), BLOCK_TYPES[int(kind)])
    assert np.array_equal(got.numpy().view(np.int32), want.reshape(-1).view(np.int32))


@pytest.mark.parametrize("kind", PACKED, ids=lambda kind: kind.name)
def test_numbers_of_several_chunks(kind: gguf.GGMLQuantizationType) -> None:
    """One more block than a chunk holds."""
    num_blocks = _CHUNK_NUMBERS // BLOCK_TYPES[int(kind)].size + 1
    data = random_blocks(kind, 1, num_blocks, seed=3)
    got = dequantize(torch.from_numpy(data).view(-1), BLOCK_TYPES[int(kind)])
    assert np.array_equal(got.numpy(), gguf.dequantize(data, kind).reshape(-1))


def test_bf16_is_read_as_it_is(tmp_path: Path) -> None:
    tensor = torch.randn(3, 4).bfloat16()
    data = tensor.view(torch.uint8).numpy()
    kind = gguf.GGMLQuantizationType.BF16
    got = GGUFFile(write_gguf(tmp_path / "b.gguf", {"x": (data, kind)})).load("x")
    assert got.dtype == torch.bfloat16
    assert torch.equal(got, tensor)


def test_demo_tensors_and_metadata_equal_the_packages_reader() -> None:
    ours = GGUFFile(find_demo())
    theirs = gguf.GGUFReader(find_demo())
    values = {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.metadata == values
    assert list(ours.infos) == [tensor.name for tensor in theirs.tensors]
    for tensor in [*theirs.tensors[:12], theirs.tensors[-1]]:
        want = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(ours.load(tensor.name).numpy(), want), tensor.name


def test_unpermuted_rows_equal_transformers_loading_of_the_same_file(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    width, heads, kv_heads, hidden = 32, 4, 2, 48
    rows = {"attn_q": width, "attn_k": width // 2, "attn_v": width // 2, "attn_output": width}
    rows |= {"ffn_gate": hidden, "ffn_up": hidden, "ffn_down": width}
    tensors = {"token_embd.weight": torch.randn(20, width), "output_norm.weight": torch.ones(width)}
    for name, num_rows in rows.items():
        columns = hidden if name == "ffn_down" else width
        tensors[f"blk.0.{name}.weight"] = torch.randn(num_rows, columns)
    tensors |= {f"blk.0.{name}_norm.weight": torch.ones(width) for name in ("attn", "ffn")}
    metadata = {
        "llama.block_count": 1,
        "llama.context_length": 64,
        "llama.embedding_length": width,
        "llama.feed_forward_length": hidden,
        "llama.attention.head_count": heads,
        "llama.attention.head_count_kv": kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.vocab_size": 20,
    }
    arrays = {name: (tensor.numpy(), None) for name, tensor in tensors.items()}
    path = write_gguf(tmp_path / "tiny.gguf", arrays, metadata, "llama")
    theirs = AutoModelForCausalLM.from_pretrained(
        str(tmp_path), gguf_file=path.name, dtype=torch.float32
    ).state_dict()
    ours = GGUFFile(path)
    for name, num_heads in (("q", heads), ("k", kv_heads)):
        raw = ours.load(f"blk.0.attn_{name}.weight")
        want = theirs[f"model.layers.0.self_attn.{name}_proj.weight"]
        assert torch.equal(unpermute_rope_rows(raw, num_heads), want)
        assert not torch.equal(raw, want)


@pytest.mark.parametrize("share", range(20))
def test_truncated_anywhere_is_refused(file: Path, share: int) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * share // 20])
    with pytest.raises(CheckpointError, match=r"toy.gguf"):
        GGUFFile(file)


def test_cuts_before_the_last_padding_are_refused(file: Path) -> None:
    data = file.read_bytes()
    for size in range(0, len(data) - 32, 3):
        file.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            GGUFFile(file)


@given(at=st.integers(0, 900), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_nothing_else(
    file: Path, at: int, value: int
) -> None:
    data = bytearray(file.read_bytes())
    data[at % len(data)] = value
    spoiled = file.with_name("spoiled.gguf")
    spoiled.write_bytes(data)
    try:
        source = GGUFFile(spoiled)
        source.refuse_unread()
    except CheckpointError:
        return
    for name in source:
        assert tuple(source.load(name).shape) == source.infos[name].shape


def test_types_that_are_not_read_are_named(tmp_path: Path) -> None:
    """How many of which kind: a file has hundreds of tensors."""
    kinds = [gguf.GGMLQuantizationType[kind] for kind in ("Q3_K", "IQ4_NL", "Q3_K")]
    tensors = {}
    for number, kind in enumerate(kinds):
        num_bytes = gguf.GGML_QUANT_SIZES[kind][1]
        tensors[f"t{number}"] = (np.zeros((1, num_bytes), dtype=np.uint8), kind)
    with pytest.raises(CheckpointError) as caught:
        dict(GGUFFile(write_gguf(tmp_path / "x.gguf", tensors)).infos)
    message = str(caught.value)
    assert "not read: 2 of Q3_K (t0 and the like), 1 of IQ4_NL (t1); read:" in message
    assert "F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, BF16" in message


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "an empty file"),
        (b"GGML" + bytes(40), "wanted a GGUF file"),
        (b"GGUF" + struct.pack("<I", 1) + bytes(40), "GGUF version 1;"),
        (b"GGUF" + struct.pack(">I", 3) + bytes(40), "other byte order"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(40), "more bytes than the file has"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**63) + bytes(40), "more bytes than the file has"),
    ],
)
def test_what_is_no_gguf_file(tmp_path: Path, head: bytes, said: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(head)
    with pytest.raises(CheckpointError, match=said):
        GGUFFile(path)


def test_directory_and_missing_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.gguf"):
        with pytest.raises(CheckpointError, match="cannot be read"):
            GGUFFile(path)
