"""A row's bits are its own in drawn models: alone, beside others, in chunks, with any threads.

Knows: drawn_models.py's models, and schedules. Does not know: any kernel; see the tests of each.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import attrs
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from kernels.native_cases import instruction_set, instruction_sets, needs_library, threads
from native.drawn_models import DTYPES, DrawnModel, models
from pilotfish import CacheConfig, load_registry
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.testing.session import Session

pytestmark = needs_library

REGISTRY = load_registry()
CHUNKS = (1, 1, 2, 3, 7, 8, 9, 16, 17, 31, 33, 64, 100, 257, 600)
ROOM = 2048
"""Tokens of all pages."""


@attrs.frozen(kw_only=True)
class Drawn:
    """model: and how it is run. counts: tokens of each request. seed: of the schedule.

    sets: which instruction sets the two runs use, by number.
    """

    model: DrawnModel
    dtype: str
    cache_dtype: str | None
    arithmetic: str
    page_size: int
    counts: list[int]
    threads: tuple[int, int]
    sets: tuple[int, int]
    seed: int


@st.composite
def runs(draw: st.DrawFn) -> Drawn:
    """One of 1 to 600 rows, and up to three shorter ones."""
    longest = draw(st.integers(1, 40) | st.integers(1, 600))
    sets, counts = st.sampled_from(range(len(instruction_sets()))), st.sampled_from((1, 2, 3, 8))
    return Drawn(
        model=draw(models()),
        dtype=draw(st.sampled_from(DTYPES)),
        cache_dtype=draw(st.sampled_from((None, None, *DTYPES))),
        arithmetic=draw(st.sampled_from(("invariant", "portable"))),
        page_size=draw(st.sampled_from((1, 4, 16, 128))),
        counts=[longest, *draw(st.lists(st.integers(1, 40), max_size=3))],
        threads=(draw(counts), draw(counts)),
        sets=(draw(sets), draw(sets)),
        seed=draw(st.integers(0, 2**16)),
    )


def prepared(drawn: Drawn, path: Path, which: int) -> Prepared:
    """Loaded for one of the two instruction sets."""
    cache = CacheConfig(
        dtype=drawn.cache_dtype,
        page_size_tokens=drawn.page_size,
        num_pages=ROOM // drawn.page_size,
        prefix_caching=False,
    )
    options: dict[str, Any] = {"dtype": drawn.dtype, "arithmetic": drawn.arithmetic, "cache": cache}
    with instruction_set(instruction_sets()[drawn.sets[which]]):
        made = prepare_from_options(str(path), registry=REGISTRY, backend="native", **options)
        made.model.load_model(made.weights)
    return made


def texts(drawn: Drawn) -> dict[str, list[int]]:
    """Tokens of each request."""
    rng = Random(drawn.seed)
    vocab = drawn.model.vocab
    return {str(i): [rng.randrange(vocab) for _ in range(n)] for i, n in enumerate(drawn.counts)}


def alone(drawn: Drawn, made: Prepared) -> dict[str, torch.Tensor]:
    """Each request in a pass of its own: [T, V] logits."""
    session = Session(made.model, made.allocate(poison=True))
    found = {}
    for name, tokens in texts(drawn).items():
        session.add(name, tokens)
        found[name] = session.run({name: len(tokens)})[name]
        session.drop(name)
    return found


def together(drawn: Drawn, made: Prepared) -> dict[str, torch.Tensor]:
    """Some rows of some requests in each pass, in any order."""
    session, rng = Session(made.model, made.allocate(poison=True)), Random(drawn.seed + 1)
    found: dict[str, list[torch.Tensor]] = {}
    for name, tokens in texts(drawn).items():
        session.add(name, tokens)
        found[name] = []
    for number in range(1000):
        waiting = [name for name in found if session.left(name)]
        if not waiting:
            break
        chosen = rng.sample(waiting, rng.randint(1, len(waiting)))
        least = 0 if number < 8 else 64  # soon in large steps
        rows = {name: min(session.left(name), max(least, rng.choice(CHUNKS))) for name in chosen}
        for name, logits in session.run(rows).items():
            found[name].append(logits)
    return {name: torch.cat(parts) for name, parts in found.items()}


def check(drawn: Drawn) -> None:
    """The same bits, and numbers at all."""
    with TemporaryDirectory(prefix="pilotfish-") as folder:
        path = drawn.model.write(Path(folder))
        first = prepared(drawn, path, 0)
        with instruction_set(instruction_sets()[drawn.sets[0]]), threads(drawn.threads[0]):
            wanted = alone(drawn, first)
        second = prepared(drawn, path, 1)
        with instruction_set(instruction_sets()[drawn.sets[1]]), threads(drawn.threads[1]):
            found = together(drawn, second)
    for name, logits in wanted.items():
        assert logits.isfinite().all(), name
        differs = (logits.view(torch.int32) != found[name].view(torch.int32)).any(1).nonzero()[:, 0]
        assert differs.tolist() == [], f"request {name}: rows with other bits"


@settings(max_examples=100)
@given(runs())
def test_rows_have_their_bits_in_drawn_models(drawn: Drawn) -> None:
    note(repr(drawn))
    check(drawn)


@pytest.mark.slow
@settings(max_examples=2000)
@given(runs())
def test_rows_have_their_bits_in_many_more(drawn: Drawn) -> None:
    note(repr(drawn))
    check(drawn)
