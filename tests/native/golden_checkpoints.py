"""Tiny checkpoints whose every number comes from formula.py: the same on every machine.

Knows: names and shapes. Does not know: what is computed with them.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from eagle.checkpoints import SMALL_VOCAB
from kimi_k25.cases import PACKED, with_tensors
from native.compiled import CACHE, alone
from native.formula import by_formula
from native.formula_files import LlamaSizes, packed_experts, write_llama
from pilotfish.testing.checkpoints import examples_of, save_with_transformers, tiny_config
from pilotfish.weights.formats.safetensors import SINGLE_FILE
from pilotfish.weights.stored_rows import PACKED_KINDS
from pilotfish_kimi_k25.examples import TEXT
from speculation.pairs import Shelf, registry

FOLDER = CACHE / "golden"
DRAFTS = ("eagle-1", "eagle-3", "dflash")
FILES = (
    "golden_checkpoints.py",
    "formula.py",
    "formula_files.py",
    "../speculation/pairs.py",
    "../support/gguf_files.py",
)
TARGET = "LlamaForCausalLM-plain"
SOFTCAP = "dflash-softcap"
"""The draft `dflash` with a cap on its logits."""
INT4 = "INT4"
DRAFT_VOCAB = SMALL_VOCAB["draft_vocab_size"]
GGUF = LlamaSizes(
    width=256, inner=512, vocab=96, layers=2, heads=4, kv_heads=2, head=64, context=128
)


def checkpoints() -> Path:
    """The folder with all of them, written where a source of theirs has changed."""
    here = Path(__file__).parent
    text = "".join((here / name).read_text() for name in FILES) + transformers.__version__
    plugins = here.parents[1] / "plugins"
    text += "".join(path.read_text() for path in sorted(plugins.glob("*/*/examples.py")))
    folder = FOLDER / hashlib.sha256(text.encode()).hexdigest()[:16]
    with alone("golden"):
        if not folder.exists():
            shutil.rmtree(FOLDER, ignore_errors=True)
            making = folder.with_suffix(".new")
            _write(making)
            making.rename(folder)
    return folder


def _write(folder: Path) -> None:
    folder.mkdir(parents=True)
    served = registry()
    shelf = Shelf(folder, served)
    for architecture, example in examples():
        shelf.target(architecture, example)
    for draft in DRAFTS:
        shelf.draft(draft)
    experts = folder / "experts"
    experts.mkdir()
    options = {**TEXT, "moe_intermediate_size": 32}
    save_with_transformers(tiny_config("DeepseekV3ForCausalLM", options), experts)
    for file in folder.glob(f"*/{SINGLE_FILE}"):
        tensors = {name: _replaced(name, tensor) for name, tensor in load_file(file).items()}
        save_file(tensors, file, metadata={"format": "pt"})
    _write_capped(folder / "dflash", folder / SOFTCAP)
    tensors = packed_experts(load_file(experts / SINGLE_FILE))
    with_tensors(experts, folder / INT4, tensors, quantization_config=PACKED)
    for kind in PACKED_KINDS:
        write_llama(folder / f"{kind}.gguf", GGUF, lambda name, columns, kind=kind: kind)


def examples() -> Iterator[tuple[str, str]]:
    """Every example of every architecture that is served."""
    served = registry()
    for architecture in served.architectures:
        for example in examples_of(architecture, served).configs:
            yield architecture, example


def _replaced(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_floating_point():
        return by_formula(name, tensor.shape)
    if name == "d2t":  # token i of the draft is token i + d2t[i] of the target: 2 i + 5
        return torch.arange(len(tensor)) + 5
    if name == "t2d":
        place = torch.arange(len(tensor))
        return (place % 2 == 1) & (place >= 5) & (place < 5 + 2 * DRAFT_VOCAB)
    raise AssertionError(f"{name}: no formula for {tensor.dtype}")


def _write_capped(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    config["dflash_config"]["final_logit_softcapping"] = 1.5
    (target / "config.json").write_text(json.dumps(config))
