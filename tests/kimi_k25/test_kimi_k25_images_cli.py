"""Images on the command line: flags, lines of a file, and one clear line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kimi_k25.towers import image, save_with_tokenizer
from pilotfish import LLM, SamplingParams
from pilotfish.cli import main
from pilotfish.cli.requests import Reading
from pilotfish.errors import RequestError

GREEDY = ["--temperature", "0", "--max-tokens", "5", "--ignore-eos", "--dtype", "float32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_with_tokenizer(tmp_path_factory.mktemp("seeing"))
    for name, size in {"a": (16, 16), "b": (24, 40)}.items():
        Image.fromarray(image(*size).permute(1, 2, 0).numpy()).save(path / f"{name}.png")
    (path / "cut.png").write_bytes((path / "a.png").read_bytes()[:60])
    return path


@pytest.fixture(scope="module")
def wanted(folder: Path) -> dict[str, list[int]]:
    """Answers from Python."""
    greedy = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True)
    a, b = (str(folder / f"{name}.png") for name in "ab")
    with LLM(str(folder), dtype="float32") as llm:
        prompts: list[Any] = [
            {"prompt": "see <|media_pad|> or <|media_pad|>", "images": [a, b]},
            llm.image_chat_prompt("which?", [b, a]),
            "just text",
        ]
        found = [list(output.token_ids) for output in llm.generate(prompts, greedy)]
    return dict(zip(("prompt", "chat", "text"), found, strict=True))


def answered(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, list[Any], str]:
    code = main(["generate", *map(str, argv), "--json"])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_images_are_given_by_flags(
    folder: Path, wanted: dict[str, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (("--image", folder / f"{name}.png") for name in "ab")
    prompt = ("--prompt", "see <|media_pad|> or <|media_pad|>")
    code, (output,), _ = answered(capsys, folder, *prompt, *a, *b, *GREEDY)
    assert (code, output["token_ids"]) == (0, wanted["prompt"])
    code, (output,), _ = answered(capsys, folder, "--chat", "which?", *b, *a, *GREEDY)
    assert (code, output["token_ids"]) == (0, wanted["chat"])
    # without --json it streams
    assert main(["generate", *map(str, (folder, *prompt, *a, *b, *GREEDY))]) == 0
    assert capsys.readouterr().out


def test_images_are_given_by_lines_and_a_bad_line_disturbs_nobody(
    folder: Path,
    wanted: dict[str, list[int]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    a, b, cut = (str(folder / f"{name}.png") for name in ("a", "b", "cut"))
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which?"}]
    video = [{"role": "user", "content": [{"type": "video", "video": "x.mp4"}]}]
    lines: list[dict[str, Any]] = [
        {"prompt": "see <|media_pad|> or <|media_pad|>", "images": [a, b]},
        {"chat": "see", "images": [cut]},
        {"chat": "which?", "images": [b, a]},
        {"chat": [{"role": "user", "content": parts}], "images": [b, a]},
        {"prompt": "just text"},
        {"prompt": "no place", "images": [a]},
        {"chat": video},
        {"prompt": "see <|video_pad|>"},
    ]
    file = tmp_path / "lines.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    code, outputs, said = answered(capsys, folder, "--input-file", file, *GREEDY)
    assert code == 2
    right = {0: "prompt", 2: "chat", 3: "chat", 4: "text"}
    assert {i: outputs[i]["token_ids"] for i in right} == {i: wanted[n] for i, n in right.items()}
    errors = {i: output["error"] for i, output in enumerate(outputs) if "error" in output}
    assert set(errors) == {1, 5, 6, 7}
    # pillow may notice while it opens the file, or while it decodes it
    assert "cut.png" in errors[1]
    assert "0 image placeholders (<|media_pad|>) and 1 image" in errors[5]
    assert "part of type 'video'" in errors[6]
    assert "a placeholder for video (<|video_pad|>)" in errors[7]
    assert len(said.strip().splitlines()) == 4


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--prompt", "<|media_pad|>", "--image", "nothing.png"], "nothing.png): no such file"),
        (["--prompt", "<|media_pad|>"], "1 image placeholder (<|media_pad|>) and 0 images"),
        (["--chat", "see", "--image", "film.mp4"], "a video, which is not served"),
        (["--chat", "see", "--image", "https://x.org/a.png"], "wanted a file on disk"),
        (["--prompt", "x", "--images", "a.png"], "'--images' (did you mean --image?)"),
        (["--input-file", "lines.jsonl", "--image", "a.png"], 'wanted "images" in the lines'),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    argv: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", str(folder), *argv, *GREEDY]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.strip().splitlines()
    assert line.startswith("pilotfish: error: ")
    assert said in line


def test_an_image_for_a_text_model(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before any weight is read, as is a path without a file."""
    monkeypatch.setattr("pilotfish.loading.prepared.Prepared.load", None)
    argv = ["generate", "demo", "--image", str(folder / "a.png"), "--max-tokens", "2"]
    for kind in ("--prompt", "--chat"):
        assert main([*argv, kind, "what is it?"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "LlamaForCausalLM serves text" in line
    nothing = ["generate", str(folder), "--prompt", "<|media_pad|>", "--image", "nothing.png"]
    assert main(nothing) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"images": "a.png"}, "images is 'a.png'; wanted a list of paths"),
        ({"images": [1]}, "wanted a list of paths"),
        ({"video": "a.mp4"}, "video is not served"),
        ({"image": ["a.png"]}, "unknown field 'image'"),
    ],
)
def test_lines_are_checked_before_a_model_is_loaded(fields: dict[str, Any], said: str) -> None:
    line = json.dumps({"prompt": "a", **fields}).encode()
    with pytest.raises(RequestError, match="line 1: .*" + said.replace("(", r"\(")):
        Reading(name="lines.jsonl").request(1, line)


def test_inspect_shows_what_images_take(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["modalities"] == ["image", "text"]
    assert facts["memory"]["image_bytes"]["embeddings kept"] == 256 << 20
