"""A plugin's own native kernel: the page's example, compiled and called as it stands there."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from docs.page import blocks
from kernels.native_cases import DTYPES, NATIVE, guarded, in_every_way, needs_library, same_bits
from native.compiled import needs_compiler
from pilotfish.errors import ConfigError
from pilotfish.kernels.native import building, library, plugin_library
from pilotfish.layers.pass_plan import PassPlan

pytestmark = [needs_library, needs_compiler]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "kernels.md"


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The example's files where the page puts them, compiled, and its Python imported."""
    kernels = tmp_path_factory.mktemp("your_plugin") / "kernels"
    header, table, python, layer, hook = (
        b.text for b in blocks(PAGE.read_text()) if b.info in ("cpp", "py")
    )
    for name, text in (
        ("scale_rows/native.h", header),
        ("native/kernels.h", table),
        ("scale_rows.py", f"{python}\n{layer}"),
    ):
        (kernels / name).parent.mkdir(parents=True, exist_ok=True)
        (kernels / name).write_text(text)
    names: dict[str, Any] = {"Path": lambda name: kernels / Path(name).name}
    exec(compile(hook, str(PAGE), "exec"), names)
    assert names["notice"] == ""
    spec = importlib.util.spec_from_file_location("scale_rows", kernels / "scale_rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 16, 37])
def test_it_computes_with_all_threads_and_instructions(
    plugin: ModuleType, dtype: torch.dtype, width: int
) -> None:
    x, factors = guarded(torch.randn(7, width).to(dtype)), torch.randn(7)
    found = in_every_way(lambda: plugin.scale_rows(x, factors))
    assert same_bits(found, (x.float() * factors[:, None]).to(dtype))


def test_its_layer_is_planned(plugin: ModuleType) -> None:
    run = PassPlan(rotary=None, dtype=torch.bfloat16, cache_dtype=torch.bfloat16, backend=NATIVE)
    x = run.buffer(37)
    out = run.sublayer(plugin.ScaledRows(), x)
    run.plan.fill(x)
    run.plan.read(out)
    calls = run.plan.finish()
    assert calls.num_torch_steps == 0
    for count in (7, 1):
        values, factors = torch.randn(count, 37).bfloat16(), torch.randn(count)
        now: Any = SimpleNamespace(slots=(SimpleNamespace(factors=factors),))
        calls.begin({run.rows: count})
        calls.tensor(x).copy_(values)
        run.run(calls, now)
        assert same_bits(calls.tensor(out), plugin.ScaledRows()(values, now))


def test_it_is_compiled_anew_where_a_source_has_changed(plugin: ModuleType) -> None:
    built = building.of_plugin(plugin.LIBRARY.folder)
    assert plugin.LIBRARY.why_not() == ""
    assert not building.is_stale(built.path(), built)
    header = plugin.LIBRARY.folder.parent / "scale_rows" / "native.h"
    before = header.read_text()
    header.write_text(before + "\n")
    assert building.is_stale(built.path(), built)
    again = plugin_library(plugin.LIBRARY.folder / ".." / "native")  # looked at anew
    assert "from other sources than lie beside it" in again.why_not()
    with pytest.raises(ConfigError, match=r"python -m pilotfish\.kernels\.native /"):
        again.address("scale_rows")
    header.write_text(before)
    assert not building.is_stale(built.path(), built)


def test_what_is_no_library_of_this_interface_says_so(plugin: ModuleType, tmp_path: Path) -> None:
    missing = plugin_library(tmp_path / "a")
    assert "was not compiled" in missing.why_not()
    broken = building.of_plugin(tmp_path).path()
    broken.write_bytes(b"no library")
    assert "does not load" in plugin_library(tmp_path).why_not()
    core = library()
    assert core is not None

    class Older:
        """The core's library, of another interface."""

        def __getattr__(self, name: str) -> Any:
            return (lambda: 0) if name == "pf_interface" else getattr(core.lib, name)

    module: Any = sys.modules["pilotfish.kernels.native.library"]
    was = core.lib
    object.__setattr__(core, "lib", Older())
    module._load_plugin.cache_clear()
    try:
        assert "has interface 1; Pilotfish has 0" in plugin.LIBRARY.why_not()
    finally:
        object.__setattr__(core, "lib", was)
        module._load_plugin.cache_clear()
