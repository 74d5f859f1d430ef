"""The conformance kit: our own architectures keep every promise, and the kit says what it finds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from kernels.native_cases import needs_library
from pilotfish import load_registry
from pilotfish.cli import main
from pilotfish.errors import ConfigError, RouteError, UserError
from pilotfish.kernels.rms_norm import native as rms_norm_native
from pilotfish.models.native_pass import NativePass
from pilotfish.plugin_specs import ArchitectureSpec, Plugin
from pilotfish.registry import Registry
from pilotfish.testing import (
    PROMISES,
    Broken,
    NotApplicable,
    Promise,
    Subject,
    check,
    promise_named,
    promises_for,
    run,
    save_tiny,
    tiny_subjects,
)
from pilotfish.testing.compare import want_near, want_same_bits
from support.toy_model import toy_registry

pytest_plugins = ["pytester"]

NARROW = [
    "parity with the oracle",
    "greedy tokens are the oracle's",
    "any mixture equals singles",
    "any history equals committed only",
    "every tensor counts",
    "options are read or refused",
]
"""For families that differ in their options only."""


@pytest.mark.pilotfish("LlamaForCausalLM")
def test_llama(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("Lfm2ForCausalLM")
def test_lfm2(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("DeepseekV3ForCausalLM")
def test_deepseek_v3(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("KimiK25ForConditionalGeneration")
def test_kimi_k25(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("Kimi_K25ForConditionalGeneration", promises=NARROW[:3])
def test_kimi_k25_of_transformers(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("MistralForCausalLM", promises=NARROW)
def test_mistral(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("GraniteForCausalLM", promises=NARROW)
def test_granite(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("OlmoForCausalLM", promises=NARROW)
def test_olmo(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("Phi3ForCausalLM")  # its rows depend on the length of their request
def test_phi3(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("Qwen2ForCausalLM", promises=NARROW)
def test_qwen2(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("Qwen3ForCausalLM", promises=NARROW)
def test_qwen3(promise: Any) -> None:
    promise.keep()


@pytest.mark.pilotfish("SmolLM3ForCausalLM", promises=NARROW)
def test_smollm3(promise: Any) -> None:
    promise.keep()


def test_every_registered_architecture_is_tested_here() -> None:
    source = Path(__file__).read_text()
    missing = [a for a in load_registry().architectures if f'pilotfish("{a}"' not in source]
    assert missing == []


# The verb


def verify(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, str, str]:
    code = main(["verify", *flags])
    out, err = capsys.readouterr()
    return code, out, err


def test_verify_prints_one_line_a_promise(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--promise", "batch equals singles", "--promise", "buffers are in declared order"]
    code, out, err = verify(capsys, "--architecture", "GraniteForCausalLM", *flags)
    assert code == 0
    lines = [line.partition(" (")[0] for line in out.splitlines()]
    assert lines == [
        "ok             batch equals singles",
        "ok             buffers are in declared order",
    ]
    assert err.splitlines()[-1] == "every promise is kept: 2 ok"


def test_a_broken_promise_is_1_and_says_what_was_got(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pilotfish.models.decoder import Decoder

    real = Decoder.logits
    monkeypatch.setattr(
        Decoder, "logits", lambda self, x, backend: real(self, x, backend) + x.shape[0]
    )
    flags = ["--architecture", "GraniteForCausalLM", "--promise", "batch equals singles"]
    code, out, err = verify(capsys, *flags)
    assert code == 1
    assert out.startswith("FAILED         batch equals singles")
    assert "multipliers: got float32, the request of 1 tokens in a batch of 6" in out
    assert "wanted the same bits in every row" in out
    assert "a promise is broken" in err
    code, out, _ = verify(capsys, *flags, "--json")
    assert code == 1
    (line,) = out.splitlines()
    record = json.loads(line)
    assert (record["promise"], record["status"]) == ("batch equals singles", "FAILED")
    assert [one["subject"] for one in record["subjects"]] == ["multipliers"]
    assert record["subjects"][0]["said"].startswith("got float32")


def test_a_checkpoint_is_verified_in_its_own_dtype(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = save_tiny("GraniteForCausalLM", "multipliers", tmp_path, load_registry())
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    code, out, _ = verify(
        capsys,
        str(path),
        *("--promise", "parity with the oracle", "--promise", "greedy tokens are the oracle's"),
    )
    assert code == 0
    assert out.startswith("ok             parity with the oracle")
    assert "not applicable greedy tokens are the oracle's" in out
    assert "float32 is not tested" in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "wanted MODEL or --architecture NAME"),
        (["here", "--architecture", "LlamaForCausalLM"], "one of the two"),
        (["--architecture", "LlamaForCausalML"], "did you mean LlamaForCausalLM"),
        (["no/such/dir.gguf"], "no such file or directory"),
        (
            ["--architecture", "LlamaForCausalLM", "--speculative", "x"],
            "no plugin offers the method 'x'",
        ),
        (["--architecture", "LlamaForCausalLM", "--promise", "batch equal"], "did you mean batch"),
    ],
)
def test_a_mistake_is_2_and_one_line(
    flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = verify(capsys, *flags)
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]


def test_a_draft_that_does_not_fit_an_example_is_told_of_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab_size": 50}
    draft = save_tiny("LlamaForCausalLM", "plain", tmp_path, load_registry(), sizes)
    flags = ["--architecture", "LlamaForCausalLM", "--speculative", "small_model"]
    code, out, err = verify(capsys, *flags, "--draft", str(draft))
    assert (code, out) == (2, "")
    said = err.splitlines()[-1]
    assert "has 50 token ids and the target" in said
    assert (
        "the tiny example 'plain': `pilotfish verify MODEL` tests a draft on a checkpoint" in said
    )


def test_the_promises_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verify(capsys, "--list")
    assert code == 0
    assert len(out.splitlines()) == len(PROMISES)
    assert all(promise.says.endswith(".") for promise in PROMISES)


# The pytest plugin


def test_three_lines_of_pytest_run_the_kit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.pilotfish("GraniteForCausalLM", promises=[
            "batch equals singles", "buffers are in declared order"])
        def test_conformance(promise):
            promise.keep()

        @pytest.mark.pilotfish("GraniteForCausalLM")
        def test_all(promise):
            pass
        """
    )
    done = pytester.runpytest_inprocess("-v")
    done.assert_outcomes(passed=2 + len(promises_for(with_drafter=False)))
    done.stdout.fnmatch_lines(["*::test_conformance[[]batch equals singles[]] PASSED*"])


def test_a_broken_promise_fails_its_test_by_name(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest
        from pilotfish.models.decoder import Decoder

        @pytest.fixture
        def wrong(monkeypatch):
            real = Decoder.logits
            monkeypatch.setattr(Decoder, "logits", lambda s, x, b: real(s, x, b) + x.shape[0])

        @pytest.mark.pilotfish("GraniteForCausalLM", promises=["batch equals singles"])
        def test_conformance(wrong, promise):
            promise.keep()

        def test_unmarked(promise):
            pass
        """
    )
    done = pytester.runpytest_inprocess()
    done.assert_outcomes(failed=1, errors=1)
    done.stdout.fnmatch_lines(["*Broken: batch equals singles: got float32*wanted*"])
    done.stdout.fnmatch_lines(["*wants @pytest.mark.pilotfish*"])


# Parts


def bits(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_a_comparison_names_the_first_row_that_parts() -> None:
    with pytest.raises(
        Broken, match=r"here: 2 of 3 rows differ, the first is row 1, by up to 0\.5"
    ):
        want_same_bits(bits([1], [2], [3]), bits([1], [2.5], [3.25]), "here")
    with pytest.raises(Broken, match="NaN or an infinity in row 1"):
        want_same_bits(bits([1], [float("nan")]), bits([1], [float("nan")]), "here")
    with pytest.raises(Broken, match=r"wanted \[1, 2\]"):
        want_same_bits(bits([1]), bits([1, 2]), "here")
    with pytest.raises(Broken, match=r"at most 0\.2, twice that of the oracle"):
        want_near(bits([1.3]), bits([1.0]).double(), bits([1.1]), "here")
    want_near(bits([1.2]), bits([1.0]).double(), bits([1.1]), "here")


def outcome(function: Callable[[Subject], None], subject: Subject) -> tuple[str, str]:
    result = check(Promise(name="a promise", check=function), subject)
    assert result.promise == "a promise"
    return result.status, result.said


def test_a_check_tells_broken_from_not_applicable_from_a_crash() -> None:
    subject = Subject(name="none", model="none", registry=Registry())

    def broken(_: Subject) -> None:
        raise Broken("this", "that")

    def crashing(_: Subject) -> None:
        raise ZeroDivisionError("by zero")

    def not_here(_: Subject) -> None:
        raise NotApplicable("no pages")

    assert outcome(broken, subject) == ("FAILED", "got this; wanted that")
    status, said = outcome(crashing, subject)
    assert status == "FAILED"
    assert said.startswith("got ZeroDivisionError: by zero (")
    assert outcome(not_here, subject) == ("not applicable", "no pages")
    assert outcome(lambda _: None, subject) == ("ok", "")
    with pytest.raises(Broken, match=r"^a promise: got this; wanted that$"):
        Promise(name="a promise", check=broken).keep(subject)


def test_an_architecture_that_nobody_can_write_is_refused_by_name() -> None:
    spec = ArchitectureSpec(names=("Unheard",), config="m:C", model="m:M")
    registry = Registry(plugins=(Plugin(name="p", architectures=(spec,)),))
    with (
        pytest.raises(ConfigError, match="transformers has no Unheard"),
        tiny_subjects("Unheard", registry),
    ):
        pass
    with pytest.raises(RouteError), tiny_subjects("Unheard", Registry()):
        pass
    with pytest.raises(UserError, match="no promise is named"):
        promise_named("nothing")


TOY = [
    "parity with the oracle",
    "greedy tokens are the oracle's",
    "batch equals singles",
    "any chunking equals one chunk",
    "any mixture equals singles",
    "any history equals committed only",
    "preemption is invisible",
    "tiny pools do not matter",
    "warm prefix equals cold",
    "passes write their rows only",
    "scratch is never read",
    "declared state is all",
    "buffers are in declared order",
    "same seed, same text",
    "texts are naive decodings",
    "every request ends once",
]
"""What a model that shares nothing with `DecoderModel` keeps; its logits are no network's."""


def test_a_model_built_on_nothing_of_ours_is_tested_alike() -> None:
    """With a checkpoint and an oracle of its author's: transformers knows no such model."""
    (plugin,) = toy_registry().plugins
    (spec,) = plugin.architectures
    known = attrs.evolve(spec, examples="support.toy_examples:examples")
    registry = Registry(plugins=(attrs.evolve(plugin, architectures=(known,)),))
    with tiny_subjects("ToyHashModel", registry, dtypes=("float32",)) as subjects:
        results = list(run(subjects, [promise_named(name) for name in TOY]))
        bare = attrs.evolve(subjects[0], registry=toy_registry(), models={}, oracle=None)
        (oracle,) = run([bare], [promise_named("parity with the oracle")])
    assert [attrs.astuple(r)[:4] for r in results if r.status != "ok"] == []
    assert oracle.status == "not known"
    assert "have no oracle" in oracle.said


@needs_library
def test_a_kernel_that_depends_on_the_number_of_threads_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promise = promise_named("rows are their own at real widths")
    real = rms_norm_native.run

    def run(name: str, args: Any, work: int) -> None:
        if torch.get_num_threads() == 2:
            args.eps *= 1.5
        real(name, args, work)

    # Planned calls would not pass through it.
    monkeypatch.setattr(NativePass, "of", lambda *_, **__: False)
    for planted in (real, run):
        monkeypatch.setattr(rms_norm_native, "run", planted)
        options: dict[str, Any] = {"backend": "native", "dtypes": ("float32",), "only": ["plain"]}
        with tiny_subjects("LlamaForCausalLM", load_registry(), **options) as subjects:
            found = check(promise, subjects[0])
        assert found.status == ("ok" if planted is real else "FAILED"), found.said
    assert "logits differ with 2 threads and 3" in found.said
