"""The example distribution, built and installed beside Pilotfish like any user's, and run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch

from pilotfish import ModelConfig, PipelineConfig
from pilotfish.errors import ConfigError
from pilotfish.kernels.native import library
from pilotfish.testing import promises_for
from support import forked

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "third_party"
VOCAB_SIZE = 300
NUM_TOKENS = 24
PROMPTS = (
    "a pilot fish swims ahead",
    "Once",
    "numbers: 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144; and what comes next?",
)


@attrs.frozen
class Environment:
    """A fresh virtual environment with both wheels in it, and nothing of the working tree.

    site: the example's wheel alone, unpacked: on the path it is installed too.
    """

    bin: Path
    scratch: Path
    site: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs one of its programs, far from the repository."""
        hidden = ("PYTHONPATH", "PILOTFISH_PLUGINS")
        return subprocess.run(
            [str(self.bin / command[0]), *command[1:]],
            cwd=self.scratch,
            env={name: value for name, value in os.environ.items() if name not in hidden},
            capture_output=True,
            text=True,
            check=False,
        )

    def generate(self, model: Path, *flags: str) -> list[dict[str, Any]]:
        """What `pilotfish generate --json` prints for the prompts."""
        file = self.scratch / "prompts.jsonl"
        file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        greedy = ("--temperature", "0", "--max-tokens", str(NUM_TOKENS), "--ignore-eos", "--json")
        done = self.run(
            "pilotfish", "generate", str(model), "--input-file", str(file), *greedy, *flags
        )
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def build(source: Path, out: Path) -> Path:
    """A wheel of a source tree, without the network."""
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def install(environment: Path, wheels: Sequence[Path]) -> None:
    """Installs wheels, and lends the environment this one's other packages (torch and so on)."""
    python = str(environment / "bin" / "python")
    flags = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", *flags, *map(str, wheels)],
        check=True,
    )
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(str(Path(torch.__file__).parents[1]))


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    scratch = tmp_path_factory.mktemp("third_party")
    wheels = [build(ROOT, scratch / "core"), build(EXAMPLE, scratch / "example")]
    venv.create(scratch / "venv", with_pip=False, symlinks=True)
    install(scratch / "venv", wheels)
    zipfile.ZipFile(wheels[1]).extractall(scratch / "site")
    return Environment(scratch / "venv" / "bin", scratch, scratch / "site")


def save_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: every text has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<end>": 0, **{letter: number for number, letter in enumerate(letters, 1)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)


def save_checkpoint(folder: Path, **options: Any) -> Any:
    """A tiny random checkpoint, saved by transformers; returns its model."""
    from transformers import StableLmConfig, StableLmForCausalLM

    torch.manual_seed(1)
    shape = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.3,
    }
    model = StableLmForCausalLM(StableLmConfig(**{**shape, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):  # these start as ones and zeros
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def greedy(model: Any, prompt_token_ids: list[int]) -> list[int]:
    """transformers' greedy continuation, computed from the whole text at every step."""
    ids = list(prompt_token_ids)
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt_token_ids) :]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_qkv_bias": True, "tie_word_embeddings": True, "partial_rotary_factor": 0.5},
    ],
    ids=["plain", "biased and tied"],
)
def test_the_installed_example_gives_the_tokens_of_transformers(
    environment: Environment, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = save_checkpoint(tmp_path, **options)
    outputs = environment.generate(tmp_path, "--max-batch-tokens", "16")
    assert [output["index"] for output in outputs] == [0, 1, 2]
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        ids = output["prompt_token_ids"]
        assert len(ids) == len(prompt.encode())
        expected = greedy(model, ids)
        assert output["token_ids"] == expected
        assert len(set(expected)) > 4, "a text of one token would prove nothing"


def test_the_installed_example_runs_on_two_ranks_unchanged(
    environment: Environment, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, use_qkv_bias=True)
    shared = environment.generate(tmp_path, "--tensor-parallel", "2", "--max-batch-tokens", "16")
    alone = environment.generate(tmp_path, "--reduction-slices", "2")
    assert [one["token_ids"] for one in shared] == [one["token_ids"] for one in alone]


def test_the_environment_runs_the_wheels_and_not_the_working_tree(
    environment: Environment,
) -> None:
    code = "import pilotfish as a, pilotfish_stablelm as b; print(a.__file__, b.__file__)"
    done = environment.run("python", "-c", code)
    inside = str(environment.scratch / "venv")
    assert [path.startswith(inside) for path in done.stdout.split()] == [True, True]


def test_the_installed_example_is_listed(environment: Environment) -> None:
    done = environment.run("pilotfish", "plugins", "--json")
    assert done.returncode == 0, done.stderr
    listing = json.loads(done.stdout)
    assert listing["failures"] == []
    found = {plugin["name"]: plugin for plugin in listing["plugins"]}["stablelm"]
    assert (found["distribution"], found["version"]) == ("pilotfish-stablelm", "0.1.0")
    assert found["architectures"][0]["names"] == ["StableLmForCausalLM"]


def test_the_examples_own_tests_are_the_conformance_kit(environment: Environment) -> None:
    tests = environment.scratch / "tests"
    shutil.copytree(EXAMPLE / "tests", tests)
    done = environment.run("python", "-m", "pytest", str(tests), "-q", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = re.search(r"(\d+) passed, (\d+) skipped", done.stdout)
    assert counts is not None, done.stdout
    num_passed, num_skipped = map(int, counts.groups())
    assert num_passed + num_skipped == len(promises_for(with_drafter=False))
    # Of images and of caches without pages, which it has not; of plans and ranks, without the
    # library.
    assert num_skipped == 5 + 2 * (library() is None)


def refused(environment: Environment, model: Path) -> str:
    """The one line with which a checkpoint is refused."""
    clean = {name: value for name, value in os.environ.items() if name != "PILOTFISH_PLUGINS"}
    env = {**clean, **forked.SETTINGS, "PYTHONPATH": str(environment.site)}
    asked = ("generate", model, "--prompt", "x", "--json")
    done = forked.run("-m", "pilotfish.cli", *asked, cwd=environment.scratch, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.slow
def test_the_installed_core_refuses_in_one_line(environment: Environment, tmp_path: Path) -> None:
    """As the working tree's, which the tests below ask."""
    save_checkpoint(tmp_path, hidden_act="gelu")
    done = environment.run("pilotfish", "generate", str(tmp_path), "--prompt", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.rstrip() == refused(environment, tmp_path)


def test_an_option_that_the_example_does_not_read_is_refused_in_one_line(
    environment: Environment, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path, hidden_act="gelu")
    assert refused(environment, tmp_path) == (
        "pilotfish: error: the checkpoint's config has hidden_act = 'gelu', which is not served; "
        "wanted it absent or 'silu'"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qk_layernorm": True}, "qk_layernorm = True, which is not served; wanted .* False"),
        ({"use_parallel_residual": True}, "use_parallel_residual = True, which is not served"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type is 'dynamic'"),
        ({"rope_parameters": {"rope_type": "spiral"}}, "rope_type is 'spiral'"),
    ],
)
def test_every_option_that_the_example_does_not_read_is_named(
    options: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
    config_class = import_module("pilotfish_stablelm.config").StableLmConfig
    checkpoint = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        **options,
    }
    model = ModelConfig(
        model="m",
        path="m",
        weight_format="safetensors",
        huggingface_config=SimpleNamespace(**checkpoint),
    )
    with pytest.raises(ConfigError, match=said):
        config_class.initialize(PipelineConfig(model=model))


def test_a_tensor_without_a_rule_is_refused_by_name(
    environment: Environment, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    save_checkpoint(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({**load_file(file), "model.layers.1.surprise": torch.zeros(2)}, file)
    assert "model.layers.1.surprise" in refused(environment, tmp_path)


def test_the_example_stays_short() -> None:
    sources = sorted((EXAMPLE / "pilotfish_stablelm").glob("*.py"))
    assert len(sources) == 3
    assert sum(len(path.read_text().splitlines()) for path in sources) <= 150
