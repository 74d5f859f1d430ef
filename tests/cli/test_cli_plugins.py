"""The console script: its verbs, its exit codes, its one-line errors; and the verb `plugins`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from types import SimpleNamespace

import pytest

from pilotfish.cli import main
from pilotfish.cli.main import VERBS
from pilotfish.errors import CapacityError, PilotfishError, RequestError, StateError
from support.distributions import Site
from support.screens import Terminal


def mistake(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Runs a command line that is the user's mistake; returns the one line it prints."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("pilotfish: error: ")
    return err


def test_the_console_script_is_main() -> None:
    (script,) = entry_points(group="console_scripts", name="pilotfish")
    assert script.load() is main


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ((), "wanted a verb: "),
        (("plugin",), "unknown verb 'plugin' (did you mean plugins?)"),
        (("plugins", "--jsn"), "unknown flag '--jsn' (did you mean --json?)"),
        (("plugins", "--js"), "unknown flag '--js' (did you mean --json?)"),
        (("plugins", "--jsn=1"), "unknown flag '--jsn' (did you mean --json?)"),
        (("plugins", "here"), "unexpected argument 'here'; see pilotfish plugins --help"),
        (("--verison",), "unknown flag '--verison' (did you mean --version?)"),
        (("--json", "plugins"), "unknown flag '--json'"),
        (("-m", "demo", "-p", "hi"), "got -m demo; wanted a verb: generate, chat"),
        (("version",), "unknown verb 'version': wanted `pilotfish --version`"),
        (("generate", "-m", "demo", "hi"), "unknown flag '-m': the model stands first"),
        (("generate", "demo", "hi", "-n", "20"), "unknown flag '-n': wanted --max-tokens"),
        (("generate", "demo", "hi", "--temp", "0"), "unknown flag '--temp' (did you mean --tempe"),
        (
            ("generate", "demo", "hi", "--gpu-memory-utilization", "1"),
            "the plan takes what fits (pilotfish inspect shows it); wanted --num-pages",
        ),
        (("chat", "demo", "hi"), "unexpected argument 'hi': chat asks for messages itself"),
        (("plugins", "--json=1"), "--json: ignored explicit argument '1'"),
    ],
)
def test_a_mistake_is_one_line_and_2(
    argv: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in mistake(capsys, *argv)


@pytest.mark.parametrize("argv", [["--help"], ["--version"], *([verb, "-h"] for verb in VERBS)])
def test_help_and_version_go_to_stdout(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert out
    assert err == ""


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    assert all(f"\n    {verb} " in said for verb in VERBS)


def test_the_plugins_in_a_narrow_terminal() -> None:
    with Terminal("-m", "pilotfish.cli", "plugins", rows=60) as t:
        assert t.end() == 0
    assert t.lines[0] == f"dflash, of pilotfish {version('pilotfish')}"
    assert "  ngram: sequential method, reads no draft, verified against plain decoding:" in t.lines
    with Terminal("-m", "pilotfish.cli", "plugins", rows=60, columns=200) as t:
        assert t.end() == 0
    assert t.lines[0].split()[:2] == ["plugin", "distribution"]


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> int:
    """Exit code when the verb `plugins` raises this."""

    def fail() -> SimpleNamespace:
        raise error

    monkeypatch.setattr("pilotfish.plugins.load_registry", fail)
    return main(["plugins"])


@pytest.mark.parametrize("kind", [RequestError, CapacityError])
def test_a_user_error_anywhere_is_one_line_and_2(
    kind: type[PilotfishError], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(monkeypatch, kind("the first line\n  and the second")) == 2
    assert capsys.readouterr().err == "pilotfish: error: the first line and the second\n"


@pytest.mark.parametrize("error", [StateError("ours"), ValueError("ours")])
def test_any_other_error_has_a_traceback_and_1(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(monkeypatch, error) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-2].endswith("Error: ours")
    assert "please report it" in lines[-1]


def test_ctrl_c_is_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert raising(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "pilotfish: interrupted\n"


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "pilotfish", "plugins", "--json"],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_both_modules_run_as_programs() -> None:
    for module in ("pilotfish", "pilotfish.cli"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("pilotfish 0.")


SOURCE = """
from pilotfish import ArchitectureSpec, SpeculatorSpec, hookimpl


@hookimpl
def pilotfish_architectures():
    return [ArchitectureSpec(names=("RedForCausalLM", "BlueForCausalLM"), config="a:B",
                             model="a:C", gguf_architectures=("red",),
                             capabilities={"verify"}, verified_against="the sea")]


@hookimpl
def pilotfish_speculators():
    return [SpeculatorSpec(method="swim", draft_architectures=("Fin",), driver="block",
                           config="a:B", model="a:C", needs={"verify"})]
"""


def test_plugins_shows_a_table_and_the_failures(tmp_path: Path) -> None:
    site = Site(tmp_path).add("red-fish", SOURCE, version="3.2").add("sick-fish", "1 / 0")
    done = site.cli("plugins", env={"PILOTFISH_PLUGINS": "red_fish,sick_fish"})
    assert done.returncode == 0
    heading, *lines = done.stdout.splitlines()
    assert heading.split("  ")[0] == "plugin"
    assert heading.index("kind") == lines[0].index("architecture")
    assert lines == [
        "red_fish  red-fish 3.2  RedForCausalLM   architecture  safetensors, gguf  the sea",
        "                        BlueForCausalLM  architecture  safetensors, gguf  the sea",
        "                        swim             block method  Fin",
        "",
        "failed to load (pilotfish plugins --json has the tracebacks):",
        "  plugin sick_fish (sick-fish 1.0) failed to load: ZeroDivisionError: division by zero",
    ]


def test_plugins_json_has_every_field(tmp_path: Path) -> None:
    site = Site(tmp_path).add("red-fish", SOURCE, version="3.2")
    listing = site.plugins({"PILOTFISH_PLUGINS": "red_fish"})
    assert listing == {
        "plugins": [
            {
                "name": "red_fish",
                "distribution": "red-fish",
                "version": "3.2",
                "architectures": [
                    {
                        "names": ["RedForCausalLM", "BlueForCausalLM"],
                        "weight_formats": ["safetensors", "gguf"],
                        "gguf_architectures": ["red"],
                        "capabilities": ["verify"],
                        "modalities": ["text"],
                        "verified_against": "the sea",
                    }
                ],
                "methods": [
                    {
                        "method": "swim",
                        "driver": "block",
                        "draft_architectures": ["Fin"],
                        "needs": ["verify"],
                        "targets": [],
                        "verified_against": "",
                    }
                ],
            }
        ],
        "failures": [],
        "limited_to": ["red_fish"],
    }


def test_plugins_without_a_plugin_says_so(tmp_path: Path) -> None:
    Site(tmp_path).add("sick-fish", "1 / 0")
    done = Site(tmp_path).cli("plugins", env={"PILOTFISH_PLUGINS": "sick_fish"})
    assert done.stdout.startswith("no plugin is installed\n\nfailed to load")
