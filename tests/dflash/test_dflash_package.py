"""The oracle against z-lab's own package, which has the model as it was published.

`make test-all` runs it. Without the package: pip install --no-deps dflash
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch

from dflash.checkpoints import CASES, VOCAB
from dflash.conftest import Pair
from dflash.oracle import NaiveDraft, NaiveTarget, generate

pytestmark = pytest.mark.dflash_package

PUBLISHED = (
    *("plain", "one-layer", "default-ids", "sliding", "mixed", "not-causal", "all-causal"),
    *("biases", "theta", "linear", "llama3", "yarn", "longrope", "factors", "wide-heads"),
)
"""Options that the package knows. Its last boundary is after the final norm, ours before it, as in
the engines that serve it: such taps are left out."""
PROMPTS = ([(7 * i + 3) % VOCAB for i in range(20)], [11] * 17)
WIDTHS = (1, 3, 5)
NUM_TOKENS = 24


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """Its model module, under a name of its own: these tests are called dflash too."""
    try:
        found = importlib.metadata.distribution("dflash").locate_file("dflash/model.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("z-lab's package is not installed: pip install --no-deps dflash")
    spec = importlib.util.spec_from_file_location("zlab_dflash_model", str(found))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(package: ModuleType, path: Path) -> Any:
    """The package's own reading of a draft's directory."""
    return package.DFlashDraftModel.from_pretrained(path, dtype=torch.float32).eval()


@torch.no_grad()
def block(
    package: ModuleType, draft: Any, target: NaiveTarget, tokens: Sequence[int], width: int
) -> torch.Tensor:
    """[width, V]: the package's logits of one block, without a cache."""
    ids = torch.tensor([list(tokens[:-1])])
    hidden = target.model(ids, output_hidden_states=True).hidden_states
    features = package.extract_context_feature(hidden, draft.target_layer_ids)
    anchor_and_masks = torch.tensor([[tokens[-1]] + [draft.mask_token_id] * width])
    embedded = torch.nn.functional.embedding(anchor_and_masks, target.embedding)
    embedded = embedded * package._draft_value(draft.config, "input_embedding_scale", 1.0)
    rows = draft(
        target_hidden=features,
        noise_embedding=embedded,
        position_ids=torch.arange(len(tokens) + width)[None],
    )
    logits: torch.Tensor = draft.compute_logits(rows[:, -width:], target.model.lm_head)[0]
    return logits


@pytest.mark.parametrize("case", PUBLISHED)
def test_logits_are_those_of_the_package(package: ModuleType, pair: Pair, case: str) -> None:
    target_path, draft_path = pair(case)
    target = NaiveTarget(target_path, torch.float32)
    exact = NaiveDraft(CASES[case], NaiveTarget(target_path, torch.float64))
    eager = NaiveDraft(CASES[case], target)
    theirs = load(package, draft_path)
    aux_hidden_state_layers = tuple(i + 1 for i in theirs.target_layer_ids)
    assert aux_hidden_state_layers == CASES[case].aux_hidden_state_layers
    assert theirs.block_size == CASES[case].block_size
    ours = package_error = 0.0
    for prompt in PROMPTS:
        for width in WIDTHS:
            right = exact.block(prompt, width, len(prompt))
            found = block(package, theirs, target, prompt, width)
            package_error = max(package_error, float((found.double() - right).abs().max()))
            mine = eager.block(prompt, width, len(prompt))
            ours = max(ours, float((mine.double() - right).abs().max()))
    assert package_error <= 2 * ours
    assert ours <= 2 * package_error


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", PUBLISHED)
def test_generations_are_those_of_the_package(
    package: ModuleType, pair: Pair, case: str, width: int
) -> None:
    """Every proposal of every step, and every token; the package keeps caches and crops them."""
    target_path, draft_path = pair(case)
    target = NaiveTarget(target_path, torch.float32)
    naive = NaiveDraft(CASES[case], target)
    theirs = load(package, draft_path)
    proposed: list[list[int]] = []
    real = theirs.compute_logits

    def spy(*arguments: Any) -> torch.Tensor:
        logits: torch.Tensor = real(*arguments)
        proposed.append(logits[0].argmax(-1).tolist())
        return logits

    theirs.compute_logits = spy
    for prompt in PROMPTS:
        proposed.clear()
        steps = generate(naive, prompt, NUM_TOKENS, width, spare=0)
        found = package.dflash_generate(
            theirs, target.model, torch.tensor([prompt]), NUM_TOKENS, None, block_size=width + 1
        )
        committed = [token for step in steps for token in step.committed]
        assert found[0, len(prompt) :].tolist() == committed
        assert proposed == [step.proposed for step in steps if step.proposed]


@pytest.mark.parametrize(
    "wrong",
    [
        {"aux_hidden_state_layers": (1, 3, 5)},
        {"causal": (True, True, True)},
        {"windows": (None, None, 5)},
    ],
)
def test_a_wrong_oracle_would_be_seen(
    package: ModuleType, pair: Pair, wrong: dict[str, Any]
) -> None:
    target_path, draft_path = pair("plain")
    target = NaiveTarget(target_path, torch.float32)
    theirs = load(package, draft_path)
    naive = NaiveDraft(attrs.evolve(CASES["plain"], **wrong), target)
    found = block(package, theirs, target, PROMPTS[0], 3)
    assert (found - naive.block(PROMPTS[0], 3, len(PROMPTS[0]))).abs().max() > 1e-3
