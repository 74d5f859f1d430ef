"""A row's bits are its own: every mixture, chunking, page size and verify pass, in both dtypes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from kimi_k25.cases import check_long, subject, write_shape
from pilotfish import LLM
from pilotfish.testing import Subject
from pilotfish.testing.compare import want_near

LENGTH = 125
DTYPES = ("float32", "bfloat16")
SHAPES = (
    "latent queries, two groups, yarn",
    "plain queries, biased, half-split, tied",
    "four groups of two, no dense layer, wide latent",
)


@pytest.fixture(scope="module", params=SHAPES)
def one(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Subject]:
    with subject(write_shape(request.param, tmp_path_factory.mktemp("invariance"))) as found:
        yield found


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_is_claimed(one: Subject, dtype: str) -> None:
    model = one.load(dtype)
    assert model.is_invariant  # type: ignore[attr-defined]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 7, 16])
def test_chunks(one: Subject, dtype: str, size: int) -> None:
    tokens = one.tokens(LENGTH)
    session = one.session(dtype, page_size=16)
    session.add("a", tokens)
    found = session.finish("a", [size] * LENGTH)
    assert torch.equal(found, one.alone(tokens, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mixtures_with_verify_rows(one: Subject, dtype: str) -> None:
    """Prefills, chunks, single rows and rows that are rejected, in passes of many requests."""
    texts = {f"{length}": one.tokens(length, length) for length in (60, 33, 90, 5)}
    wanted = {name: one.alone(tokens, dtype) for name, tokens in texts.items()}
    session, drawn = one.session(dtype, page_size=4, num_pages=128), random.Random(0)
    found: dict[str, list[torch.Tensor]] = {name: [] for name in texts}
    for name, tokens in texts.items():
        session.add(name, tokens)
    while left := [name for name in texts if session.left(name)]:
        chosen = drawn.sample(left, drawn.randint(1, len(left)))
        rows = {n: min(session.left(n), drawn.choice((1, 1, 2, 5, 30))) for n in chosen}
        keep = {n: drawn.randint(1, count) for n, count in rows.items()}
        for name, logits in session.run(rows, keep=keep).items():
            start = sum(map(len, found[name]))
            assert torch.equal(logits, wanted[name][start : start + rows[name]])
            found[name].append(logits[: keep[name]])


@pytest.mark.parametrize("dtype", DTYPES)
def test_fastest_expands_long_prompts_and_is_as_right(one: Subject, dtype: str) -> None:
    tokens = one.tokens(LENGTH)
    with LLM(one.model, dtype=dtype, arithmetic="fastest") as llm:
        scores = llm.score(tokens)
    exact, eager = one.oracle.exact(tokens, dtype), one.oracle.eager(tokens, dtype)
    check_long(scores, exact, eager, dtype)


def test_fastest_takes_the_expanded_form(one: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """And only it may: where bits matter, the forms would differ in their last ones."""
    from pilotfish_kimi_k25 import mla

    calls: list[int] = []
    real = mla.attend_expanded

    def counted(q: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        calls.append(q.shape[0])
        return real(q, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(mla, "attend_expanded", counted)
    one.alone(one.tokens(LENGTH))
    assert calls == []
    with LLM(one.model, dtype="float32", arithmetic="fastest") as llm:
        llm.score(one.tokens(LENGTH))
    assert calls


def test_the_whole_model_in_triton(tmp_path: Path) -> None:
    """Interpreted where there is no GPU: the same logits, and the same bits in chunks."""
    path = write_shape(SHAPES[0], tmp_path)
    with subject(path, ("float32",)) as one:
        tokens = one.tokens(9)
        one.backend = "triton"
        exact = one.oracle.exact(tokens, "float32")
        found = one.alone(tokens)
        want_near(found.cpu(), exact, one.oracle.eager(tokens, "float32"), "triton")
        session = one.session()
        session.add("a", tokens)
        assert torch.equal(session.finish("a", [1, 5]), found)
