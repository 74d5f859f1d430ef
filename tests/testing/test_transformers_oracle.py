"""transformers' answers, of models that are built with what was read of the file."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pilotfish import load_registry
from pilotfish.testing import tiny_subjects, transformers_oracle
from pilotfish.testing.promises.options import other_options
from pilotfish.testing.subject import Subject

TOKENS = [1, 7, 3, 9, 2, 11, 5]
FEW = 8
"""Of the options that are changed; those of real widths are the others'."""


def answers(subject: Subject, changes: dict[str, Any]) -> list[torch.Tensor] | None:
    """In every dtype and both ways; None where transformers refuses the options."""
    with subject.with_config(changes) as changed:
        oracle = changed.oracle
        try:
            return [
                ask(TOKENS, dtype)
                for ask in (oracle.exact, oracle.eager)
                for dtype in ("float32", "bfloat16")
            ]
        except Exception:  # whatever the option's check raises
            return None


@pytest.mark.parametrize(
    "architecture",
    [
        *("LlamaForCausalLM", "Lfm2ForCausalLM"),
        *(
            pytest.param(one, marks=pytest.mark.slow)
            for one in ("DeepseekV3ForCausalLM", "GraniteForCausalLM", "Phi3ForCausalLM")
        ),
    ],
)
def test_a_model_that_is_built_answers_as_the_one_that_is_read(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    built, real = list[bool](), transformers_oracle._built

    def counted(*args: Any) -> Any:
        made = real(*args)
        built.append(made is not None)
        return made

    monkeypatch.setattr(transformers_oracle, "_built", counted)
    with tiny_subjects(architecture, load_registry()) as subjects:
        subject = subjects[0]
        options = [{}, *(changes for _, changes in other_options(subject))]
        for changes in options[:: max(1, len(options) // FEW)]:
            transformers_oracle._READ.clear()
            monkeypatch.setattr(transformers_oracle, "_built", lambda *_: None)
            read = answers(subject, changes)
            monkeypatch.setattr(transformers_oracle, "_built", counted)
            found = answers(subject, changes)
            assert (read is None) == (found is None)
            for one, other in zip(read or (), found or (), strict=True):
                assert torch.equal(one, other), changes
    assert sum(built) > FEW
