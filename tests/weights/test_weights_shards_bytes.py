"""Bytes that a load with shards reads: a rank's share, as planned from headers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pilotfish.parallel.shard import Shard
from pilotfish.weights import (
    GGUFFile,
    Piece,
    Rule,
    SafetensorsSource,
    WeightRules,
    plan_load,
    unpermute_rope,
)
from pilotfish.weights.shards import bytes_read
from support.gguf_files import random_blocks, write_gguf
from weights.shards_cases import (
    counted,
    kept,
)

ROWS, WIDTH = 64, 512
LAYER = WeightRules(
    rules=(
        Rule("qkv", [Piece("q", transform=unpermute_rope(4)), "k", "v"]),
        Rule("out", "out"),
        Rule("experts", [f"e{number}" for number in range(4)], combine="stack"),
        Rule("embed", "embed"),
        Rule("norm", "norm"),
    ),
    ties={"head": "embed"},
)
SHAPES = {
    "qkv": (3 * ROWS, WIDTH),
    "out": (ROWS, WIDTH),
    "experts": (4, ROWS, WIDTH),
    "embed": (ROWS, WIDTH),
    "head": (ROWS, WIDTH),
    "norm": (1, WIDTH),
}
NAMES = ("q", "k", "v", "out", "e0", "e1", "e2", "e3", "embed")


def of_rank(rank: int, size: int) -> dict[str, Shard]:
    """What a rank has of a layer: heads, columns, experts and vocabulary."""
    each = ROWS // size
    rows = range(rank * each, (rank + 1) * each)
    vocabulary = Shard.rows(rows)
    wide = range(rank * WIDTH // size, (rank + 1) * WIDTH // size)
    return {
        "qkv": Shard.rows(*(range(rows.start + i * ROWS, rows.stop + i * ROWS) for i in range(3))),
        "out": Shard.columns(wide),
        "experts": Shard.rows(range(rank * 4 // size, (rank + 1) * 4 // size)),
        "embed": vocabulary,
        "head": vocabulary,
    }


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keeps", [None, kept], ids=["numbers", "kept"])
def test_a_rank_reads_its_share_of_safetensors(
    tmp_path: Path, keeps: Any, dtype: torch.dtype, size: int
) -> None:
    """To the byte as `bytes_read` says: 1/N of what is split, all of the rest; one shard is made
    at a time.
    """
    tensors = {name: torch.randn(ROWS, WIDTH) for name in NAMES} | {"norm": torch.randn(1, WIDTH)}
    save_file(tensors, tmp_path / "w.safetensors")
    source = SafetensorsSource.from_file(tmp_path / "w.safetensors")
    plan = plan_load(LAYER, source.infos, SHAPES)
    norm = source.infos["norm"].num_bytes
    assert bytes_read(plan, source.infos, {}) == plan.num_bytes
    for rank in range(size):
        shards = of_rank(rank, size)
        wanted = bytes_read(plan, source.infos, shards)
        assert wanted == (plan.num_bytes - norm) // size + norm
        touched, got = counted(plan, source, shards, dtype=dtype, keeps=keeps)
        lies = norm if keeps is None and dtype == torch.float32 else 0  # handed over as it lies
        assert got == wanted - lies
        if keeps and dtype == torch.float32:
            assert all(name.startswith("e") for name in touched.read)
        largest = max(math.prod(shard.shape(SHAPES[name])) for name, shard in shards.items())
        assert touched.most_made <= largest * dtype.itemsize


def test_a_rank_reads_its_share_of_a_gguf_file(tmp_path: Path) -> None:
    """All but experts, which are unpacked."""
    kinds = dict(zip(NAMES, ("Q4_K", "Q6_K", "Q8_0", "Q4_K", *["Q8_0"] * 5), strict=True))
    arrays: dict[str, Any] = {"norm": (np.ones((1, WIDTH), np.float32), None)}
    for seed, (name, kind) in enumerate(kinds.items()):
        number = gguf.GGMLQuantizationType[kind]
        per_row = WIDTH // gguf.GGML_QUANT_SIZES[number][0]
        arrays[name] = random_blocks(number, ROWS, per_row, seed), number
    source = GGUFFile(write_gguf(tmp_path / "w.gguf", arrays))
    plan = plan_load(LAYER, source.infos, SHAPES)
    for size in (1, 2):
        for rank in range(size):
            shards = {**of_rank(rank, size), "experts": Shard.rows()}
            _, got = counted(plan, source, shards, keeps=kept)
            assert bytes_read(plan, source.infos, shards) == got
            assert (got - 2048) * size == sum(
                source.infos[name].num_bytes for name in ("q", "k", "v", "out", "embed")
            )
