"""Methods, attributes and classes by other engines' names: a line each, and nothing more."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import pytest

import pilotfish
from pilotfish import LLM, RequestOutput, SamplingParams
from pilotfish.config.peer_attributes import OF_LLM, OF_OUTPUT, OF_PACKAGE
from support.toy_model import toy_registry, write_toy_checkpoint

OUTPUT = RequestOutput(
    index=0, prompt_token_ids=[1], token_ids=[5], text="a", finish_reason="stop", others=()
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder = write_toy_checkpoint(tmp_path_factory.mktemp("toy"))
    with LLM(str(folder), registry=toy_registry()) as made:
        yield made


def check(whose: Any, names: Mapping[str, str]) -> None:
    """Each name is answered by its line, and is not there."""
    for name, said in names.items():
        with pytest.raises(AttributeError) as raised:
            getattr(whose, name)
        assert str(raised.value).endswith(f" has no {name!r}: {said}")
        assert not hasattr(whose, name)
        assert name not in dir(whose)


def test_each_name_has_its_line(llm: LLM) -> None:
    check(llm, OF_LLM)
    check(LLM, OF_LLM)
    check(OUTPUT, OF_OUTPUT)
    check(pilotfish, OF_PACKAGE)


@pytest.mark.parametrize("name", ["_repr_svg_", "__wrapped__", "_turnz", "temprature"])
def test_any_other_name_is_answered_as_python_does(llm: LLM, name: str) -> None:
    class Plain:
        pass

    for whose, kind in ((llm, "LLM"), (OUTPUT, "RequestOutput"), (Plain(), "Plain")):
        with pytest.raises(AttributeError, match=f"^'{kind}' object has no attribute '{name}'$"):
            getattr(whose, name)
    with pytest.raises(AttributeError, match=f"^type object 'LLM' has no attribute '{name}'$"):
        getattr(LLM, name)
    with pytest.raises(AttributeError, match=f"^module 'pilotfish' has no attribute '{name}'$"):
        getattr(pilotfish, name)


def test_an_attribute_that_is_missing_inside_a_property_keeps_its_name() -> None:
    half_made = LLM.__new__(LLM)
    with pytest.raises(AttributeError, match="no attribute '_turns'"):
        _ = half_made.engine


def test_a_class_of_a_peers_is_imported_in_vain() -> None:
    with pytest.raises(ImportError, match=r"^pilotfish has no 'AsyncLLMEngine': wanted LLM, whose"):
        from pilotfish import AsyncLLMEngine  # type: ignore[attr-defined]  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'Nobody'"):
        from pilotfish import Nobody  # type: ignore[attr-defined]  # noqa: F401


def test_asking_for_a_name_imports_no_torch() -> None:
    program = (
        "import sys, pilotfish; hasattr(pilotfish, 'AsyncLLM'); "
        "from pilotfish import errors; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_an_output_is_pickled_and_copied() -> None:
    several = attrs.evolve(OUTPUT, others=(attrs.evolve(OUTPUT, sample=1),))
    assert pickle.loads(pickle.dumps(several)) == several
    assert copy.copy(several) == copy.deepcopy(several) == several
    assert not hasattr(several, "__dict__"), "it has slots alone"


def test_an_llm_stays_in_its_process(llm: LLM) -> None:
    for move in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(
            TypeError, match=r"neither pickled nor copied: .*wanted one LLM\(\.\.\."
        ):
            move(llm)


def test_an_llm_is_not_called(llm: LLM) -> None:
    call: Any = llm
    with pytest.raises(TypeError, match=r"an LLM is not called; wanted llm.generate\(prompts, Sam"):
        call("Hi", max_new_tokens=5)
    assert llm.generate([[97]], SamplingParams(max_tokens=1, ignore_eos=True))[0].token_ids


def test_no_name_of_ours_is_answered_as_a_peers(llm: LLM) -> None:
    assert not OF_LLM.keys() & {*dir(LLM), *vars(llm)}
    assert not OF_OUTPUT.keys() & set(dir(OUTPUT))
    assert not OF_PACKAGE.keys() & set(pilotfish.__all__)
