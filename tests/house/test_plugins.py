"""Discovery with real distributions and fresh processes: broken plugins never sink the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.distributions import Site

HOOK = "from pilotfish import ArchitectureSpec, hookimpl\n"
SPEC = 'ArchitectureSpec(names=("{name}ForCausalLM",), config="a:B", model="a:C"{more})'


def hook(name: str, more: str = "", function: str = "pilotfish_architectures") -> str:
    spec = SPEC.format(name=name, more=more)
    return f"{HOOK}@hookimpl\ndef {function}():\n    return [{spec}]\n"


def test_pilotfish_architectures(tmp_path: Path) -> None:
    """The hook: called once a discovery; what it returns is what the registry serves."""
    source = hook("Red", ", api_version=2").replace("return", "print('called'); return")
    site = Site(tmp_path).add("red-fish", source)
    said = site.python(
        "from pilotfish import load_registry\n"
        "route = load_registry().route('RedForCausalLM')\n"
        "print(route.architecture.config, route.plugin)"
    )
    assert said == "called\na:B red_fish (red-fish 1.0)\n"


def test_pilotfish_speculators(tmp_path: Path) -> None:
    """The hook: its methods fit the targets of other plugins."""
    source = (
        "from pilotfish import SpeculatorSpec, hookimpl\n\n\n"
        "@hookimpl\ndef pilotfish_speculators():\n"
        "    return [SpeculatorSpec(method='swim', config='a:B', model='a:C')]\n"
    )
    said = (
        Site(tmp_path)
        .add("red-fish", hook("Red"))
        .add("swim-fish", source)
        .python(
            "from pilotfish import load_registry\n"
            "route = load_registry().route('RedForCausalLM', 'swim')\n"
            "print(route.plugin, route.speculator.model, route.speculator_plugin)"
        )
    )
    assert said == "red_fish (red-fish 1.0) a:C swim_fish (swim-fish 1.0)\n"


BROKEN = {
    "fails to import": ("import no_such_module\n", "ModuleNotFoundError: No module named"),
    "exits": ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
    "misspells a hook": (
        hook("Bad", function="pilotfish_architecture"),
        "implements 'pilotfish_architecture', which is no hook "
        "(did you mean pilotfish_architectures",
    ),
    "takes an argument that the hook has not": (
        hook("Bad").replace("ures():", "ures(torch):"),
        "PluginValidationError",
    ),
    "forgets the marker": (
        hook("Bad").replace("@hookimpl\n", ""),
        "'pilotfish_architectures' is not marked @pilotfish.hookimpl",
    ),
    "has no hook": ("", "implements no hook; wanted one of: pilotfish_architectures, "),
    "forgets to return": (
        f"{HOOK}@hookimpl\ndef pilotfish_architectures():\n    return [None]\n",
        "pilotfish_architectures returned [None]; wanted a list of ArchitectureSpec",
    ),
    "raises in a hook": (
        f"{HOOK}@hookimpl\ndef pilotfish_architectures():\n    return 1 // 0\n",
        "ZeroDivisionError",
    ),
    "makes a malformed spec": (
        hook("Bad").replace("a:B", "a.B"),
        "ArchitectureSpec.config is 'a.B'; wanted a lazy reference 'module:name'",
    ),
    "is too new": (
        hook("Bad", ", api_version=99"),
        "written for plugin API 99; this Pilotfish has 2",
    ),
    "is too old": (hook("Bad", ", api_version=1"), "written for plugin API 1"),
    "imports an old module": (
        f"import pilotfish.layers.model\n{hook('Bad')}",
        "No module named 'pilotfish.layers.model'; this Pilotfish has plugin API 2, and docs/hooks",
    ),
    "imports an old name": (
        f"from pilotfish.state import EmbeddingCache\n{hook('Bad')}",
        "this Pilotfish has plugin API 2, and docs/hooks.md (Names that have moved) says",
    ),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """Two good plugins, and one broken in every way."""
    site = Site(tmp_path_factory.mktemp("site")).add("good-fish").add("quick-fish", version="2.5")
    for number, (source, _) in enumerate(BROKEN.values()):
        site.add(f"broken-{number}", source)
    return site


def test_a_broken_plugin_is_recorded_and_the_others_load(site: Site) -> None:
    listing = site.plugins()
    loaded = {plugin["name"]: plugin for plugin in listing["plugins"]}
    assert loaded["quick_fish"]["distribution"] == "quick-fish"
    assert loaded["quick_fish"]["version"] == "2.5"
    assert loaded["good_fish"]["architectures"][0]["names"] == ["GoodFishForCausalLM"]
    failed = {failure["name"]: failure for failure in listing["failures"]}
    for number, (how, (_, said)) in enumerate(BROKEN.items()):
        failure = failed[f"broken_{number}"]
        prefix = f"plugin broken_{number} (broken-{number} 1.0) failed to load: "
        assert failure["error"].startswith(prefix), how
        assert said in failure["error"], how
        assert failure["traceback"].startswith("Traceback"), how


def test_a_failed_plugin_is_chained_when_its_architecture_is_asked_for(tmp_path: Path) -> None:
    site = Site(tmp_path).add("good-fish").add("broken-fish", "import no_such_module\n")
    done = site.run(
        "-c",
        "from pilotfish import load_registry\n"
        "load_registry().route('GoodFishForCausalLM')\n"
        "load_registry().route('BrokenFishForCausalLM')",
    )
    assert done.returncode == 1
    own, recorded, refused = done.stderr.split("direct cause of the following exception")
    assert "ModuleNotFoundError: No module named 'no_such_module'" in own
    assert "broken_fish.py" in own
    assert "PluginError: plugin broken_fish (broken-fish 1.0) failed to load" in recorded
    assert "RouteError: no plugin serves the architecture 'BrokenFishForCausalLM'" in refused
    assert "plugin broken_fish (broken-fish 1.0) failed to load: ModuleNotFoundError" in refused
    assert "docs/write-a-plugin.md writes one, and `pilotfish plugins` lists plugins" in refused


def test_two_distributions_with_one_plugin_name_are_both_named(tmp_path: Path) -> None:
    site = Site(tmp_path).add("red-fish", plugin="fish").add("blue-fish", plugin="fish")
    done = site.cli("plugins")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "pilotfish: error: the plugin name 'fish' is claimed by blue-fish 1.0 and by red-fish "
        "1.0: uninstall one\n"
    )
    own = Site(tmp_path / "own").add("other-llama", plugin="llama3").cli("plugins")
    assert own.returncode == 2
    assert "'llama3' is claimed by other-llama 1.0 and by pilotfish" in own.stderr


def test_two_plugins_with_one_architecture_are_both_named(tmp_path: Path) -> None:
    site = Site(tmp_path).add("red-fish", hook("Fish")).add("blue-fish", hook("Fish"))
    done = site.cli("plugins")
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "the architecture 'FishForCausalLM' is claimed by plugin blue_fish (blue-fish 1.0) and by "
        "plugin red_fish (red-fish 1.0)" in done.stderr
    )
    limited = site.plugins({"PILOTFISH_PLUGINS": "red_fish"})
    assert [plugin["name"] for plugin in limited["plugins"]] == ["red_fish"]


def test_pilotfish_plugins_limits_loading(site: Site) -> None:
    listing = site.plugins({"PILOTFISH_PLUGINS": " quick_fish, good_fish,,"})
    assert [plugin["name"] for plugin in listing["plugins"]] == ["good_fish", "quick_fish"]
    assert listing["failures"] == []
    assert listing["limited_to"] == ["quick_fish", "good_fish"]
    code = "from pilotfish import load_registry; load_registry().route('GoodFishForCausalLM')"
    done = site.run("-c", code, env={"PILOTFISH_PLUGINS": "quick_fish"})
    assert "PILOTFISH_PLUGINS limits loading to quick_fish" in done.stderr


def test_pilotfish_plugins_empty_limits_nothing(tmp_path: Path) -> None:
    site = Site(tmp_path).add("good-fish")
    names = [plugin["name"] for plugin in site.plugins({"PILOTFISH_PLUGINS": ""})["plugins"]]
    assert "good_fish" in names


def test_pilotfish_plugins_with_an_unknown_name_is_an_error(site: Site) -> None:
    done = site.cli("plugins", env={"PILOTFISH_PLUGINS": "quick_fish,god_fish"})
    assert done.returncode == 2
    assert "PILOTFISH_PLUGINS names 'god_fish' (did you mean good_fish?" in done.stderr
    assert "quick_fish" in done.stderr


def test_an_unchosen_plugin_is_not_even_imported(tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    site = Site(tmp_path).add("good-fish").add("loud-fish", f"open({str(marker)!r}, 'w')")
    site.plugins({"PILOTFISH_PLUGINS": "good_fish"})
    assert not marker.exists()
    site.plugins()
    assert marker.exists()


def test_every_process_discovers_for_itself(tmp_path: Path) -> None:
    site = Site(tmp_path).add("good-fish")
    code = """
import multiprocessing
from pilotfish import load_registry

def route(_):
    return load_registry().route("GoodFishForCausalLM").plugin.distribution

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(pool.map(route, range(2)))
"""
    program = tmp_path / "program.py"
    program.write_text(code)
    done = site.run(str(program))
    assert done.stdout == "['good-fish', 'good-fish']\n", done.stderr


def test_every_call_discovers_anew(tmp_path: Path) -> None:
    Site(tmp_path / "late").add("late-fish")
    said = Site(tmp_path).python(
        "import sys\nfrom pilotfish import load_registry\n"
        "before = load_registry().architectures\n"
        f"sys.path.append({str(tmp_path / 'late')!r})\n"
        "after = load_registry().architectures\n"
        "print(set(after) - set(before))"
    )
    assert said == "{'LateFishForCausalLM'}\n"


def test_discovery_does_not_touch_what_a_plugin_imports_on_use(tmp_path: Path) -> None:
    lazy = hook("Lazy") + (
        "def __getattr__(name):\n    import torch\n    return torch.nn.Module\n\n"
        "def __dir__():\n    return ['pilotfish_architectures', 'LazyModel', 'pilotfish_x']\n"
    )
    said = (
        Site(tmp_path)
        .add("lazy-fish", lazy)
        .python(
            "import sys\nfrom pilotfish import load_registry\n"
            "print(load_registry().route('LazyForCausalLM').plugin.name, 'torch' in sys.modules)"
        )
    )
    assert said == "lazy_fish False\n"


def test_the_built_in_plugins_load(tmp_path: Path) -> None:
    listing = Site(tmp_path).plugins()
    assert listing["failures"] == []
    assert {plugin["distribution"] for plugin in listing["plugins"]} == {"pilotfish"}
