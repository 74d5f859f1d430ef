"""`portable` is claimed where it holds: what calls show of it, what an author says, two processors.

Here a second processor is a process that may use AVX2 and no more.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.native_cases import needs_library
from pilotfish import LLM
from pilotfish.config import CacheConfig
from pilotfish.errors import PluginError
from pilotfish.invariance.exact_calls import EXACT
from pilotfish.invariance.own_operations import OwnOperations
from pilotfish.kernels import KernelBackend
from pilotfish.kernels.elementwise import softmax, tanh
from pilotfish.layers.layer import Layer
from pilotfish.loading.arithmetic import probe_arithmetic
from pilotfish.loading.prepare import prepare_from_options
from pilotfish_kimi_k25.kernels.native import LIBRARY
from support.own_arithmetic import (
    HandMade,
    gated,
    model_with,
    registry_of,
    with_feed_forward,
    write_checkpoint,
)

WIDTH = 64
TOKENS = [(7 * i * i + i) % 200 for i in range(90)]
NATIVE = KernelBackend("native")
PORTABLE = "portable: a row's bits are its own, and the same on every processor"
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "PILOTFISH_INSTRUCTIONS": "avx2",
}
pytestmark = needs_library


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_checkpoint(tmp_path_factory.mktemp("narrow") / "model", width=WIDTH)


def described(path: str, model: Any) -> str:
    setattr(sys.modules["support.own_arithmetic"], model.__name__, model)
    made = prepare_from_options(
        path,
        registry=registry_of(model),
        cache=CacheConfig(page_size_tokens=16, num_pages=32),
        dtype="float32",
        backend="native",
        arithmetic="portable",
    )
    return probe_arithmetic(made).described


def halved(x: torch.Tensor) -> torch.Tensor:
    """[T, D] -> [T, 1], a sum of halves, of functions of the library's and what rounds once."""
    x = softmax(tanh(x.float(), backend=NATIVE), backend=NATIVE) / 0.3
    while (width := x.shape[1]) > 1:
        x = x[:, : width // 2] + x[:, width // 2 :]
    return x


def product(x: torch.Tensor) -> torch.Tensor:
    """[T, D] -> [T, 1], of each row by itself as torch multiplies it."""
    row = torch.linspace(-1, 1, x.shape[1])
    return torch.stack([torch.mv(row[None], one) for one in x.float()])


GATES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], str]] = {
    "halves": (halved, ""),
    "moved": (lambda x: x[:, :1].abs() + x[:, 1:2] * 2, ""),
    "exp in float64": (lambda x: x[:, :1].double().exp(), "exp of"),
    "root": (lambda x: x[:, :1].abs().sqrt(), "sqrt of"),
    "product": (product, "linspace"),
    "left": (lambda x: torch.tensor(x[:, :1].tolist()), "tolist of"),
    "kernel": (lambda x: LIBRARY.address("head_linear") * 0 + x[:, :1], "its own native"),
}


@pytest.mark.parametrize("name", GATES)
def test_what_a_part_calls_says_whether_it_is_portable(narrow: str, name: str) -> None:
    gate, told = GATES[name]
    said = described(narrow, with_feed_forward(gated(gate, keeps_bits=True)))
    print(said)
    if not told:
        assert said == PORTABLE
        return
    assert said.startswith(f"NOT portable: Own computes {told}")
    assert "test_claims_portable:" in said
    assert 'say `keeps_bits = "portable"` in Own' in said
    assert described(narrow, with_feed_forward(gated(gate, keeps_bits="portable"))) == PORTABLE


def test_who_says_nothing_of_rows_and_computes_what_is_exact_is_believed(narrow: str) -> None:
    assert described(narrow, with_feed_forward(gated(halved))) == PORTABLE


def test_the_run_warns_as_inspect_says(narrow: str) -> None:
    model: Any = with_feed_forward(gated(GATES["root"][0], keeps_bits=True))
    told = described(narrow, model).removeprefix("NOT portable: ").partition("; a row's")[0]
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        options: dict[str, Any] = {"arithmetic": "portable", "dtype": "float32", "max_length": 128}
        with LLM(narrow, registry=registry_of(model), **options) as llm:
            llm.score(TOKENS)
    (said,) = [str(one.message) for one in seen if "arithmetic" in str(one.message)]
    assert told in said
    assert "between processors" in said


def test_a_table_that_is_made_with_the_part_counts(narrow: str) -> None:
    def change(network: Any) -> None:
        for block in network.layers:
            block.mlp.__class__ = WithTable
            block.mlp.table = WithTable.made()

    class WithTable(HandMade):
        keeps_bits = True
        table: torch.Tensor

        @classmethod
        def made(cls) -> torch.Tensor:
            return torch.arange(8.0).cos()

        def gate(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :1] * self.table[3]

    said = described(narrow, model_with(change))
    assert "computes cos of [8] float32" in said
    assert said.startswith("NOT portable")


def test_a_word_that_there_is_not_is_refused() -> None:
    with pytest.raises(PluginError, match=r"Wrong\.keeps_bits is 'portabel'; wanted True"):
        type("Wrong", (Layer,), {"keeps_bits": "portabel"})


CASES = ("normal", "ties", "tiny", "zeros")
ONE_OPERAND = ["abs", "neg", "sign", "sgn", "floor", "ceil", "round", "trunc", "isnan", "isinf"]
ONE_OPERAND += ["isfinite", "reciprocal", "square", "relu"]
TWO_OPERANDS = ["add", "sub", "mul", "div", "true_divide", "maximum", "minimum", "eq", "lt"]
OF_ROWS = ["sort", "argsort", "max", "min", "amax", "amin", "argmax", "argmin"]


def bits_of_exact_calls() -> dict[str, str]:
    """Digests of what torch's calls give that are said to be alike everywhere."""
    drawn, found = torch.Generator().manual_seed(0), {}
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        for case in CASES:
            x, y = torch.randn(2, 37, 333, generator=drawn, dtype=torch.float64)
            if case == "ties":
                x, y = (2 * x).round(), (2 * y).round() + 0.5
            elif case == "tiny":
                x = x * torch.finfo(dtype).tiny
            elif case == "zeros":
                x = x.round() * 0
            x, y = x.to(dtype), y.to(dtype)
            made = {name: getattr(torch, name)(x) for name in ONE_OPERAND}
            made |= {name: getattr(torch, name)(x, y) for name in TWO_OPERANDS}
            made |= {name: getattr(torch, name)(x, dim=-1) for name in OF_ROWS}
            made |= {"topk": torch.topk(x, 9), "clamp": x.clamp(-0.5, 0.5), "to": x.bfloat16()}
            for name, given in made.items():
                assert name in EXACT, name
                parts = [given] if isinstance(given, torch.Tensor) else list(given)
                raw = b"".join(one.contiguous().view(-1).view(torch.uint8).numpy() for one in parts)
                found[f"{name}, {dtype}, {case}"] = hashlib.sha256(raw).hexdigest()
    return found


def said_here_and_there(path: str) -> dict[str, Any]:
    """Claims, and digests of what is computed; run in a process of its own."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"exact": bits_of_exact_calls()}
    for name in ("halves", "product"):
        model: Any = with_feed_forward(gated(GATES[name][0], keeps_bits=True))
        claim = described(path, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with LLM(
                path, registry=registry_of(model), arithmetic="portable", dtype="float32"
            ) as llm:
                rows = llm.score(TOKENS)
        found[name] = [claim, hashlib.sha256(rows.numpy().tobytes()).hexdigest()]
    return found


PROGRAM = "import json, sys\n\
from invariance.test_claims_portable import said_here_and_there as said\n\
print(json.dumps(said(sys.argv[1])))"


def test_what_is_claimed_holds_on_another_processor(narrow: str) -> None:
    tests = str(Path(__file__).parents[1])
    said = []
    for settings in ({}, AVX2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, narrow],
            env={**os.environ, "PYTHONPATH": tests, **settings},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        said.append(json.loads(done.stdout.splitlines()[-1]))
    here, there = said
    assert here["exact"] == there["exact"]
    assert here["halves"] == there["halves"]
    assert here["halves"][0] == PORTABLE
    for one in said:
        assert one["product"][0].startswith("NOT portable")


def test_only_what_may_be_unlike_is_noted_and_its_part_named() -> None:
    class Said(Layer):
        keeps_bits = "portable"

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return unlike(x)

    class Silent(Said):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return unlike(x)

    def unlike(x: torch.Tensor) -> torch.Tensor:
        torch.arange(4) * 2
        torch.arange(4.0)
        torch.arange(0, 1, 0.1)
        return x.exp()

    own, x = OwnOperations(), torch.ones(3)
    with own.watching():
        Said()(x)
        Silent()(x)
        Silent()(x.repeat(2))
        unlike(x)
    assert [(call.part, call.told.partition(" (")[0]) for call in own.elsewhere.values()] == [
        (Silent.__qualname__, "arange"),
        (Silent.__qualname__, "exp of [3] float32"),
        ("", "arange"),
        ("", "exp of [3] float32"),
    ]
