"""Rows of a model with awkward sizes, run in passes of many lengths, as other processors run them.

The sizes are those with which rows once had other bits in some pass: a tied head that is multiplied
as it lies, one head of keys of width 256, a feed-forward whose last numbers fill no vector.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.native_cases import needs_library

PROGRAM = """
import json, sys, warnings
import torch
from pilotfish import LLM
path, backend, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
tokens = torch.randint(0, 1000, (150,), generator=torch.Generator().manual_seed(1)).tolist()
found = []
for dtype in ("float32", "bfloat16"):
    rows = []
    for most in (512, 44, 7):
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            with LLM(path, dtype=dtype, backend=backend, max_batch_tokens=most) as llm:
                rows.append(llm.score(tokens))
    warned = [str(one.message) for one in seen if "not invariant" in str(one.message)]
    differ = [int((one != rows[0]).any(1).sum()) for one in rows[1:]]
    found.append([dtype, differ, warned])
print(json.dumps(found))
"""
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}


def said_by(program: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("awkward") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=1152,
        intermediate_size=1001,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("backend", "threads", "environment"),
    [
        pytest.param("native", 2, {}, marks=needs_library),
        ("torch", 2, {}),
        ("torch", 1, AVX2),
        pytest.param("torch", 10, {}, marks=pytest.mark.slow),
        pytest.param("torch", 10, AVX2, marks=pytest.mark.slow),
    ],
    ids=["native", "torch", "torch-avx2", "torch-10-threads", "torch-avx2-10-threads"],
)
def test_rows_are_their_own_or_a_warning_says_that_they_are_not(
    awkward: Path, backend: str, threads: int, environment: dict[str, str]
) -> None:
    said = said_by(PROGRAM, str(awkward), backend, str(threads), **environment)
    for dtype, differ, warned in json.loads(said):
        print(dtype, differ, warned)
        assert warned or not any(differ), (dtype, differ)
        assert not (backend == "native" and warned)


STRICT = """
import ctypes
from pathlib import Path
import torch
from pilotfish.kernels import KernelBackend
from pilotfish.platform.mkl import AUTO_STRICT
KernelBackend.choose({backend!r}, "cpu", {arithmetic!r})
library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
print(library.mkl_serv_cbwr_get(-1) == AUTO_STRICT)
"""


@pytest.mark.skipif(not torch._C.has_mkl, reason="this build of torch multiplies without MKL")
@pytest.mark.parametrize(
    ("backend", "arithmetic"),
    [("torch", "invariant"), ("native", "invariant"), ("torch", "fastest")],
)
def test_mkl_is_strict_where_rows_are_to_be_their_own(backend: str, arithmetic: str) -> None:
    """A plugin's own products stand beside native kernels too."""
    said = said_by(STRICT.format(backend=backend, arithmetic=arithmetic), MKL_CBWR="")
    assert said == str(arithmetic == "invariant")
