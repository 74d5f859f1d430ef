"""docs/pictures: each is what its script makes today, stands alone, and can be read."""

from __future__ import annotations

import re
import shutil
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import attrs
import pytest

from kernels.native_cases import needs_library
from pilotfish import ArchitectureSpec
from pilotfish.plugins import load_registry
from pilotfish.registry import Plugin

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "pictures"
sys.path.append(str(FOLDER))
make, drawing, pairs, ratios, request_life = (
    import_module(name) for name in ("make", "drawing", "pairs", "ratios", "request_life")
)

FILES = sorted(FOLDER.glob("*.svg"))
SVG = f"{{{drawing.NAMESPACE}}}"
SIZES = ("width", "height")
PARTS = {"svg", "title", "desc", "style", "defs", "marker", "path", "rect", "text"}


def faults(svg: str) -> Iterator[str]:
    """Why a picture is not one that stands alone and speaks to screen readers."""
    root = ET.fromstring(svg)
    for node in root.iter():
        if node.tag not in {SVG + part for part in PARTS}:
            yield f"has {node.tag}"
        for text in (*node.attrib.values(), node.text or ""):
            if re.search(r"url\((?!#)|@import|@font-face|//|javascript:", text):
                yield f"names something outside: {text}"
        yield from (f"has {name}" for name in node.attrib if name.endswith("href"))
        yield from (f"has {name}" for name in node.attrib if name.startswith("on"))
    if root.get("role") != "img" or root.get("aria-labelledby") != "title desc":
        yield "is no image with a title and a description"
    for name in ("title", "desc"):
        if not [node for node in root.findall(SVG + name) if node.get("id") == name and node.text]:
            yield f"has no {name}"
    ground = root.find(SVG + "rect")
    if ground is None or not {"paper", "screen"} & set(ground.get("class", "").split()):
        yield "begins without a ground"
    elif any(float(ground.get(size, 0)) < float(root.get(size, 0)) - 1 for size in SIZES):
        yield "has a ground that is smaller than itself"


@pytest.mark.parametrize("name", sorted(set(make.PICTURES) - {"chat"}))
def test_a_picture_is_what_is_made_today(name: str) -> None:
    made = make.PICTURES[name]()
    assert made == (FOLDER / f"{name}.svg").read_text(), f"python docs/pictures/make.py {name}"


@needs_library
def test_the_recording_is_what_the_demo_model_says() -> None:
    shown = (FOLDER / "chat.svg").read_text()
    assert 'class="screen-green mono"' in shown
    assert 'class="screen-red struck mono"' in shown
    assert make.PICTURES["chat"]() == shown, "python docs/pictures/make.py chat"


def test_every_picture_has_a_maker() -> None:
    assert [file.stem for file in FILES] == sorted(make.PICTURES)


def test_a_figure_that_changes_changes_the_picture() -> None:
    page = make.BENCHMARKS.read_text()
    changed = re.sub(r"(\| llama\.cpp \| )[\d.]+", r"\g<1>7.77", page, count=1)
    assert ">7.77<" in ratios.draw(changed)
    assert ">7.77<" not in ratios.draw(page)


def test_a_page_of_benchmarks_is_read_whole() -> None:
    head = f"| {' | '.join(ratios.COLUMNS)} |\n|---|---:|---:|---|---:|---|---|\n"
    rows = "| load | 1 | 2 | peer | 2.00 | s | - |\n| load | 1 | 2 | peer b | 0.50 | s | - |\n"
    own = "| load | 1 | 2 | pilotfish plain | 9.00 | s | - |\n"
    page = f"# CPU\n\n## One, beside peer\n\n{head}{rows}{own}\ntext\n\n{head}{rows}"
    page += f"## Two\n\n{head}{rows}## Ours\n\n{head}{own}"
    both = [ratios.Row("load", "peer", (2.0, 2.0)), ratios.Row("load", "peer b", (0.5, 0.5))]
    found = ratios.sections(page)
    assert list(found) == ["One, beside peer", "Two, beside peer"]
    assert found["One, beside peer"] == both
    assert list(ratios.labels(both)) == ["load", "the same, beside peer b"]
    with pytest.raises(ValueError, match="no table beside another system"):
        ratios.sections(f"# CPU\n\n## Ours\n\n{head}{own}")
    with pytest.raises(ValueError, match="could not convert"):
        ratios.sections(page.replace("2.00", "two"))


def test_a_plugin_that_is_new_is_in_the_picture_and_one_from_elsewhere_is_not() -> None:
    registry = load_registry({})
    spec = ArchitectureSpec(names=("NewForCausalLM",), config="new:Config", model="new:Model")
    new = Plugin(name="new", distribution="pilotfish", architectures=(spec,))
    more = attrs.evolve(registry, plugins=(*registry.plugins, new))
    num_targets, num_methods = len(registry.architectures) + 1, len(registry.methods)
    num_pairs = num_targets * num_methods
    made = pairs.draw(pairs.of_the_house(more))
    assert ">NewForCausalLM<" in made
    assert f"{num_targets} architectures + {num_methods} drafters" in made
    assert f"{num_pairs - num_methods} of {num_pairs} pairs run" in made  # it offers nothing

    elsewhere = attrs.evolve(new, distribution="other")
    more = attrs.evolve(registry, plugins=(*registry.plugins, elsewhere))
    assert pairs.draw(pairs.of_the_house(more)) == (FOLDER / "plugins.svg").read_text()


def test_every_file_in_the_life_of_a_request_is_there() -> None:
    steps = [*request_life.STEPS, request_life.DELTA]
    files = {ROOT / "framework" / "pilotfish" / step.file for step in steps}
    assert {file for file in files if not file.is_file()} == set()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_picture_stands_alone(file: Path) -> None:
    svg = file.read_text()
    assert list(faults(svg)) == []
    assert len(svg) < 20_000


@pytest.mark.parametrize(
    ("there", "planted"),
    [
        ("<defs>", '<image href="https://example.org/a.png" /><defs>'),
        ("text{", "@import 'x.css';text{"),
        ("text{", "@font-face{src:url(https://example.org/a.woff)}text{"),
        ("url(#head)", "url(other.svg#head)"),
        ("<defs>", "<script>1</script><defs>"),
        ('<path class="line"', '<path onload="1" class="line"'),
        ('<desc id="desc">', '<desc id="other">'),
        ('role="img"', 'role="none"'),
        ('<rect class="paper edge"', '<rect class="box edge"'),
        ('width="1048"', 'width="999"'),
    ],
)
def test_a_picture_that_does_not_is_found(there: str, planted: str) -> None:
    svg = (FOLDER / "life-of-a-request.svg").read_text()
    assert there in svg
    assert list(faults(svg.replace(there, planted)))


def luminance(color: str) -> float:
    """WCAG 2.2, relative luminance."""
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("which", [0, 1], ids=["light", "dark"])
def test_texts_can_be_read_in_both_themes(which: int) -> None:
    """WCAG 2.2, 1.4.3: a contrast of at least 4.5."""
    colors = {name: pair[which] for name, pair in drawing.COLORS.items()}
    low = []
    for name in set(colors) - {"paper", "box", "edge", "screen"}:
        for ground in ["screen"] if name.startswith("screen-") else ["paper", "box"]:
            dark, light = sorted(luminance(colors[one]) for one in (name, ground))
            if (light + 0.05) / (dark + 0.05) < 4.5:
                low.append((name, ground))
    assert low == []


def test_a_text_without_room_is_not_drawn() -> None:
    sheet = drawing.Drawing(100, 100, "title", "desc")
    sheet.text(0, 20, "a" * 10, size=10)
    for anchor, x in (("start", 50), ("middle", 20), ("end", 50)):
        with pytest.raises(ValueError, match="60 pixels wide; wanted at most"):
            sheet.text(x, 20, "a" * 10, size=10, anchor=anchor)


def test_check_names_what_would_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["make.py", *arguments])
        return int(make.main())

    shutil.copy(FOLDER / "plugins.svg", tmp_path)
    monkeypatch.setattr(make, "FOLDER", tmp_path)
    assert run("plugins", "--check") == 0
    assert capsys.readouterr().out == ""
    (tmp_path / "plugins.svg").write_text("")
    assert run("plugins", "benchmarks", "--check") == 1
    said = capsys.readouterr().out
    assert "make.py plugins" in said
    assert "make.py benchmarks" in said
    assert run("plugins") == 0
    assert run("plugins", "--check") == 0
    with pytest.raises(SystemExit):
        run("plugin")
    assert "no picture 'plugin'; wanted one of" in capsys.readouterr().err
