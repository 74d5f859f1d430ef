"""What a person sees of an output: its repr, a notebook's HTML, the texts of tokens, the bar."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pilotfish import LLM, RequestOutput, SamplingParams
from pilotfish.engine import progress as progress_module
from pilotfish.weights import open_checkpoint
from support import forked
from support.toy_model import toy_registry, write_toy_checkpoint


def output(**fields: object) -> RequestOutput:
    given: dict[str, object] = {"index": 0, "prompt_token_ids": [1], "token_ids": [5, 6]}
    return RequestOutput(**{**given, "text": "a <b>", "finish_reason": "stop", **fields})  # type: ignore[arg-type]


def test_the_text_comes_first() -> None:
    assert repr(output()) == "RequestOutput(text='a <b>', finish_reason='stop', token_ids=[5, 6])"
    long = repr(output(token_ids=list(range(500)), text=""))
    assert long.endswith("token_ids=[0, 1, 2, 3, 4, 5, 6, 7, ... 500 in all])")
    failed = output(finish_reason="error", error="too long", token_ids=[], text="")
    assert "error='too long'" in repr(failed)
    assert repr(output(others=(output(sample=1),))).endswith("others=1)")


def test_a_notebook_shows_the_text() -> None:
    shown = output()._repr_html_()
    assert "a &lt;b&gt;" in shown
    assert "2 tokens, stop" in shown
    assert (
        "error: too &amp; long" in output(finish_reason="error", error="too & long")._repr_html_()
    )


def test_log_probabilities_name_their_tokens(demo: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=2, logprobs=2, prompt_logprobs=1)
    (found,) = demo.generate("The capital of France", params)
    assert found.logprobs is not None
    assert found.prompt_logprobs is not None
    first = found.logprobs[0]
    assert (first.text, first.top_texts) == (" is", (" is", ","))
    assert [record.text for record in found.prompt_logprobs if record] == [
        " capital",
        " of",
        " France",
    ]
    plain = found.to_json()["logprobs"][0]
    assert plain["text"] == " is"
    assert [one["text"] for one in plain["top"]] == [" is", ","]
    deltas = [delta for delta in demo.stream("The capital of France", params) if delta.logprobs]
    assert [record.text for delta in deltas for record in delta.logprobs or ()] == [
        record.text for record in found.logprobs
    ]


def test_what_is_shown_says_what_it_is(demo: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=1)
    (found,) = demo.generate("The capital of France", params)
    assert found.logprobs is not None
    assert repr(found.logprobs[0]).endswith("text=' is', top_texts=(' is',))")
    assert repr(demo.tokenizer) == (
        "Tokenizer(vocab_size=49152, eos_token_ids=(2, 0), with a chat template)"
    )
    plan = repr(demo.memory_plan)
    assert "weights={'model': " in plan
    assert "mappingproxy" not in plan


def test_texts_of_tokens(demo: LLM) -> None:
    tokenizer = demo.tokenizer
    assert tokenizer is not None
    assert tokenizer.token_text(tokenizer.eos_token_ids[0]) == "<|im_end|>"
    for text in (" Paris", "the", "\n"):
        (token,) = tokenizer.encode(text)
        assert tokenizer.token_text(token) == text


@pytest.fixture(scope="module")
def demo() -> LLM:
    return LLM("demo", max_length=64)


def test_without_a_tokenizer_tokens_have_no_texts(tmp_path: Path) -> None:
    params = SamplingParams(max_tokens=1, logprobs=1, ignore_eos=True)
    folder = write_toy_checkpoint(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    with LLM(str(folder), registry=toy_registry()) as llm:
        (found,) = llm.generate([[97]], params)
    assert found.logprobs is not None
    assert found.logprobs[0].text is None
    assert "text" not in found.to_json()["logprobs"][0]


def test_the_bar_says_how_much_of_the_prompts_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "SILENT_S", 0.0)
    with LLM(
        str(write_toy_checkpoint(tmp_path)), registry=toy_registry(), max_batch_tokens=8
    ) as llm:
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        llm.generate([[97] * 20, [98] * 20], params, progress=True)
    said = capsys.readouterr().err
    assert "reading prompts, 8/40 tokens" in said
    assert said.rstrip(" ").endswith("\r"), "nothing is left behind"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_counts_the_weights_that_are_read(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "SILENT_S", 0.0)
    monkeypatch.setattr("tqdm.tqdm.monitor_interval", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: is_terminal)
    updates: list[int] = []
    monkeypatch.setattr("tqdm.tqdm.update", lambda bar, n=1: updates.append(n))
    LLM("demo", draft="demo", speculative="small_model", max_length=64).close()
    sizes = [info.num_bytes for info in open_checkpoint("demo").weights().infos.values()]
    assert sorted(updates) == sorted(sizes * 2 * is_terminal)
    said = capsys.readouterr().err
    assert ("loading:   0%" in said) == is_terminal
    assert said == "" or said.rstrip(" ").endswith("\r"), "nothing is left behind"


def test_a_notebook_gets_a_bar(tmp_path: Path) -> None:
    """As Jupyter runs code: stderr is no terminal, and IPython is there."""
    program = """
import sys, types
sys.modules["ipywidgets"] = None  # without its widgets it gets one of text, and no warning
shell = type("ZMQInteractiveShell", (), {})()
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
from pilotfish.engine.progress import open_bar
print(open_bar(total=1) is not None)
del sys.modules["IPython"]
print(open_bar(total=1) is not None)
"""
    done = forked.run("-c", program)
    assert done.stdout.split() == ["True", "False"], done.stderr
    assert "Warning" not in done.stderr
