"""Options that are lists, an entry a layer say, are tried in another order."""

from __future__ import annotations

import types
from typing import Any

import pytest

from pilotfish import load_registry
from pilotfish.testing import check, promise_named, tiny_subjects
from pilotfish.testing.promises.options import _others


def test_a_list_is_turned_where_that_is_another_one() -> None:
    assert _others(["a", "b"]) == [["b", "a"]]
    assert _others([1, 2, 3]) == [[3, 2, 1], [2, 3, 1]]
    assert _others([4, 4]) == _others([7]) == _others([]) == []


@pytest.mark.parametrize("reads", [True, False])
def test_a_plugin_that_takes_a_lists_usual_order_is_noticed(
    reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example's list is the one that an interval makes, so only another order shows it."""
    from pilotfish_llama3 import config

    real = config._no_rope_layers

    def usual(hf: Any, family: Any) -> frozenset[int]:
        return real(types.SimpleNamespace(**{**vars(hf), "no_rope_layers": None}), family)

    if not reads:
        monkeypatch.setattr(config, "_no_rope_layers", usual)
    with tiny_subjects("SmolLM3ForCausalLM", load_registry(), dtypes=("float32",)) as (one, *_):
        found = check(promise_named("options are read or refused"), one)
    if reads:
        assert (found.status, found.said) == ("ok", "")
        return
    assert found.status == "FAILED"
    assert "{'no_rope_layers': [0, 1, 0, 1]} was accepted" in found.said
