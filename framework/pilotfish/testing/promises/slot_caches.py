"""The promise about caches without pages: they keep what `SlotCache` says, call by call.

Knows: the calls, and rows that must come out. Does not know: what a cache holds.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from pilotfish.engine.runner import paged_cache_name
from pilotfish.errors import StateError
from pilotfish.protocols import ModelOutputs, PipelineModel
from pilotfish.state import PagedStateSpec, SlotCache, SlotStateSpec, StateManager
from pilotfish.state.inputs import SlotInputs
from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.outcome import Broken, NotApplicable, want
from pilotfish.testing.promises.slot_cache_calls import name_of, want_calls_and_memory
from pilotfish.testing.session import Session
from pilotfish.testing.subject import LONG, NUM_PAGES, PAGE_SIZE, Subject

SLOTS = 3
LONGEST = 72
"""Tokens of a text in which a slot comes round to where it was when a page ended."""
LOOKAHEAD = 2
"""Rows by which a boundary may lie behind the committed length when it is offered."""


def slot_caches_keep_their_contract(subject: Subject) -> None:
    """A cache without pages holds what its spec says, is restored, forgets, clears and skips."""
    model = subject.load(subject.dtype)
    if not any(isinstance(spec, SlotStateSpec) for spec in model.state):
        raise NotApplicable("the config declares no SlotStateSpec")
    want_calls_and_memory(model)
    for poison in (True, False):
        for check in (_want_read, _want_kept, _want_skipped, _want_cleared):
            check(subject, _Held.of(model, poison=poison))
    _want_kept(subject, _Held.of(model, poison=True, lookahead=LOOKAHEAD))


@attrs.frozen(kw_only=True)
class _Held:
    """A state whose slot caches can be asked.

    keeps_boundaries: whether every spec says that snapshots are kept; all must be for a hit.
    """

    session: Session
    caches: Sequence[SlotCache]
    paged_caches: Sequence[str]
    keeps_boundaries: bool

    @classmethod
    def of(cls, model: PipelineModel, *, poison: bool, lookahead: int = 0) -> _Held:
        slots = [spec for spec in model.state if isinstance(spec, SlotStateSpec)]
        paged = [spec for spec in model.state if isinstance(spec, PagedStateSpec)]
        caches = [
            model.make_cache(spec, max_slots=SLOTS, num_pages=NUM_PAGES, poison=poison)
            for spec in slots
        ]
        state = StateManager(
            paged,
            num_pages=NUM_PAGES,
            page_size_tokens=PAGE_SIZE,
            device=model.device,
            prefix_caching=True,
            slot_caches=caches,
            poison=poison,
            lookahead=lookahead,
        )
        return cls(
            session=Session(model, state),
            caches=caches,
            paged_caches=[spec.name for spec in paged],
            keeps_boundaries=all(spec.boundary_shape is not None for spec in slots),
        )


def _want_read(subject: Subject, held: _Held) -> None:
    """`inputs` gives passes over one paged cache at least something, and changes nothing."""
    state = held.session.state
    state.claim("a")
    state.reserve("a", subject.tokens(3))
    for cache in held.caches:
        found = [cache.inputs(cache_name, ["a"], [3], None) for cache_name in held.paged_caches]
        for cache_name, view in zip(held.paged_caches, found, strict=True):
            want(
                view is None or isinstance(view, SlotInputs),
                f"{name_of(cache)}.inputs({cache_name!r}, ...) returned a {type(view).__name__}",
                "a record derived from pilotfish.state.inputs.SlotInputs, or None for a paged "
                "cache whose passes do not read this one",
            )
        want(
            any(view is not None for view in found),
            f"{name_of(cache)}.inputs returned None for every paged cache of the model, "
            f"{held.paged_caches}",
            "a SlotInputs for the paged cache whose passes read it, which layers find in "
            "`run.slots`: a "
            "cache that no pass reads need not be declared",
        )
        length = cache.num_committed("a")
        want(length == 0, f"{name_of(cache)} has {length} rows after `inputs`", "0: none committed")
    state.release("a")


def _want_kept(subject: Subject, held: _Held) -> None:
    """What is kept at a page's end is found, is a copy, and is forgotten when that is asked for."""
    session, length = held.session, min(LONGEST, subject.max_seq_len)
    tokens = subject.tokens(length)
    session.add("a", tokens)
    session.run({"a": min(2 * PAGE_SIZE, length)})
    session.finish("a", [1] * length)
    session.drop("a")
    wanted = subject.alone(tokens[:LONG], num_prompt=length)
    for name in ("next", "later"):
        done = session.add(name, tokens[:LONG], num_prompt=length, warm=True).num_computed
        if held.keeps_boundaries:
            want(
                done > 0,
                f"no row was restored of a text of {length} rows that ran before, in any of "
                f"{[name_of(cache) for cache in held.caches]}",
                "a prefix hit: `boundary_shape` is declared, so that the memory of snapshots is "
                "planned; keep them in `keep`, or declare None",
            )
        where = f"{done} rows restored after the request went on for {length} rows"
        want_same_bits(session.finish(name, [1, 1]), wanted[done:], where)
        session.drop(name)
    for cache in held.caches:
        for page in filter(cache.restorable, session.state.index.pages()):
            cache.forget(page)
            want(
                not cache.restorable(page),
                f"{name_of(cache)}.restorable({page}) is true after forget({page})",
                "false: `forget` drops the snapshot filed under the page",
            )


def _want_skipped(subject: Subject, held: _Held) -> None:
    """A pass over rows that follow others of the same step, which are not committed."""
    session, skips, counts = held.session, {"a": 3, "b": 1}, {"a": 2, "b": 4}
    texts = {name: subject.tokens(12, seed) for seed, name in enumerate(skips)}
    alone = {name: subject.alone(tokens) for name, tokens in texts.items()}
    session.add_all(texts)
    session.run({"a": 5, "b": 2})
    first = session.execute(session.inputs(skips, ahead=5))
    after = _behind(session, skips, counts)
    bounds = first.logit_offsets.tolist(), after.logit_offsets.tolist()
    rows = first.logits, after.logits
    for place, name in enumerate(skips):
        got = torch.cat([x[b[place] : b[place + 1]] for x, b in zip(rows, bounds, strict=True)])
        done = session.contexts[name].num_computed
        where = f"{skips[name]} rows and then, with skip={list(skips.values())}, {counts[name]}"
        want_same_bits(got, alone[name][done : done + len(got)], where)
    session.commit({name: skips[name] + counts[name] - 1 for name in skips})
    for name in skips:
        done = session.contexts[name].num_computed
        where = "rows after a commit of two passes of one step"
        want_same_bits(session.finish(name), alone[name][done:], where)
        session.drop(name)


@torch.inference_mode()
def _behind(session: Session, skips: dict[str, int], counts: dict[str, int]) -> ModelOutputs:
    """Outputs of a pass over rows behind those of the one before, which is not committed."""
    contexts = [session.contexts[name] for name in skips]
    for context in contexts:
        context.num_computed += skips[context.request_id]
        context.num_scheduled = counts[context.request_id]
    cache_name, rows = paged_cache_name(session.model), list(counts.values())
    assert cache_name is not None
    kv = session.state.kv_inputs(list(skips), rows, cache_name, skip=list(skips.values()))
    inputs = session.model.prepare_initial_token_inputs([contexts], kv, rows)
    outputs = session.execute(inputs)
    for context in contexts:
        context.num_computed -= skips[context.request_id]
    return outputs


def _want_cleared(subject: Subject, held: _Held) -> None:
    """After an interruption nothing is held: no request, no slot and no snapshot."""
    session, tokens = held.session, subject.tokens(LONG)
    names = [str(number) for number in range(SLOTS)]
    for name in names:
        session.add(name, tokens)
        session.run({name: 2 * PAGE_SIZE + 1})
    session.execute(session.inputs(dict.fromkeys(names, 2)))
    session.state.reset()
    for cache in held.caches:
        kept = [page for page in range(NUM_PAGES) if cache.restorable(page)]
        want(
            not kept,
            f"{name_of(cache)} can restore the pages {kept} after the state was reset",
            "none: `clear` leaves no request and no snapshot, whatever call was interrupted",
        )
    try:
        for name in names:
            session.add(name, tokens)
    except StateError as error:
        raise Broken(
            f"after the state was reset a claim raised {type(error).__name__}: {error}",
            "every slot free and no request known: `clear` of a cache drops them, whatever call "
            "was interrupted",
        ) from error
    want_same_bits(session.finish("0"), subject.alone(tokens), "a text after the state was reset")
