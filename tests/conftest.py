"""Shared set-up: options, hypothesis, Triton's interpreter without a GPU, one thread, Ctrl-C."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read with torch: tests share their cores
os.environ.setdefault("HF_DEACTIVATE_ASYNC_LOAD", "1")  # threads cost more than tiny models take
os.environ["PILOTFISH_CACHE_DIR"] = "none"  # what a test plants is never the user's
# Read with NumPy, with which Triton's interpreter multiplies: see platform/openblas.py.
if os.uname().machine == "x86_64":
    os.environ.setdefault("OPENBLAS_CORETYPE", "Sandybridge")

import pytest
import torch
from hypothesis import HealthCheck, settings

from pilotfish.platform.mkl import ask_for_strict_products
from slow import mark_slow
from support.interpreter import hasten

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    hasten()
ask_for_strict_products()  # as an LLM does, and before any test multiplies
torch.set_num_threads(1)  # toy sizes: a second thread costs more than it gives

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's jobs in the background get none
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "pilotfish",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    max_examples=50,
)
settings.load_profile("pilotfish")


def pytest_addoption(parser: pytest.Parser) -> None:
    soak = parser.getgroup("soak")
    soak.addoption("--histories", type=int, default=100, help="how many the soak test plays")
    soak.addoption("--first", type=int, default=0, help="the number of its first history")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark_slow(items)


def pytest_collection_finish() -> None:
    """What is imported by then stays, and is not looked through for garbage again and again."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    configs = sys.modules.get("transformers.configuration_utils")
    if configs is not None:  # every config that is read is written out, for a log that nobody reads
        configs.PreTrainedConfig.__repr__ = object.__repr__


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For toy-sized tensors: a second thread costs more than it gives, most when busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def kept_probes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What probes find is found once a session: for rooms that plant nothing in what they try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PILOTFISH_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "kept-probes"))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of a few kilobytes, without a tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    directory = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory
