"""Promises about state: what commit, release, sharing and failure leave behind.

Knows: claim, reserve, commit, release. Does not know: schedulers or sampling.
"""

from __future__ import annotations

import copy
import random

import torch

from pilotfish.config import SamplingParams
from pilotfish.protocols import PipelineModel
from pilotfish.state import PagedStateSpec
from pilotfish.testing.compare import same_memory, want_same_answer, want_same_bits
from pilotfish.testing.faults import PlantedError, RaiseAt
from pilotfish.testing.outcome import NotApplicable, want, want_raised
from pilotfish.testing.session import Session
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

NUM_HISTORIES = 6
OFFERS = (0, 1, 1, 2, 3, 5, 8)
"""Rows of a step beyond the one that is certain: drafted tokens."""
FILL = 1e3
"""A finite number to be read by mistake."""


def history_equals_committed(subject: Subject) -> None:
    """After any appends and commits the state is what feeding only the committed tokens leaves."""
    for dtype in subject.dtypes:
        texts = {"a": subject.tokens(LONG + 7), "b": subject.tokens(LONG, seed=1)}
        prompts = {"a": 5, "b": 2 * PAGE_SIZE}
        alone = {
            name: subject.alone(texts[name], dtype, num_prompt=n) for name, n in prompts.items()
        }
        for number in range(NUM_HISTORIES):
            # Poisoning may itself tidy a cache up, and so hide a bug: every other time without.
            session = subject.session(dtype, poison=number % 2 == 0)
            session.add_all(texts, prompts)
            session.run(prompts)
            drawn = random.Random(number)
            while any(session.left(name) for name in texts):
                _one_step(session, texts, alone, drawn, f"{dtype}, history {number}")


def _one_step(
    session: Session,
    texts: dict[str, list[int]],
    alone: dict[str, torch.Tensor],
    drawn: random.Random,
    where: str,
) -> None:
    """One pass as a verify step makes it: some of the last rows offered are wrong and dropped."""
    rows, right = {}, {}
    for name, tokens in texts.items():
        context = session.contexts[name]
        done = context.num_computed
        if done == len(tokens):
            continue
        right[name] = drawn.randint(0, min(1 + drawn.choice(OFFERS), len(tokens) - done))
        wrong = [token ^ 1 for token in reversed(tokens)][: drawn.choice(OFFERS)]
        if right[name] + len(wrong) == 0:
            right[name] = 1
        context.tokens = tokens[: done + right[name]] + wrong
        rows[name] = right[name] + len(wrong)
    starts = {name: session.contexts[name].num_computed for name in rows}
    got = session.run(rows, keep=right)
    for name, start in starts.items():
        session.contexts[name].tokens = list(texts[name])
        committed, wanted = session.state.num_committed(name), start + right[name]
        want(committed == wanted, f"{where}: {committed} rows after a commit", f"{wanted}")
        want_same_bits(
            got[name][: right[name]],
            alone[name][start:wanted],
            f"{where}, request {name}, rows {start} to {wanted}",
        )


def preemption_is_invisible(subject: Subject) -> None:
    """A request that gave its state up and was computed again, at any point, changes no bit."""
    num_pages = 2 * -(-LONG // PAGE_SIZE)
    for dtype in subject.dtypes:
        tokens = subject.tokens(LONG)
        whole = subject.alone(tokens, dtype)
        for poison in (True, False):
            session = subject.session(dtype, num_pages=num_pages, poison=poison)
            for stop in (1, PAGE_SIZE, 10, LONG - 1):
                session.add("a", tokens)
                session.run({"a": stop})
                session.drop("a")
                session.add("thief", subject.tokens(LONG, seed=stop))
                session.finish("thief", [stop])
                session.drop("thief")
                session.add("a", tokens)
                rows = session.finish("a", [5])
                want_same_bits(rows, whole, f"{dtype}, preempted after {stop} rows")
                session.drop("a")
            session.state.check()


def tiny_pools_do_not_matter(subject: Subject) -> None:
    """With so few pages that requests are preempted, every text and log probability is the same."""
    prompts = [subject.tokens(10, seed) for seed in range(4)]
    params = [SamplingParams(max_tokens=14, seed=i, ignore_eos=True, logprobs=2) for i in range(4)]
    pages = -(-24 // PAGE_SIZE) + 2
    for dtype in subject.dtypes:
        with subject.llm(dtype) as llm:
            wanted = llm.generate(prompts, params, progress=False)
        with subject.llm(dtype, num_pages=pages, max_batch_tokens=16) as llm:
            got = llm.generate(prompts, params, progress=False)
            num_preemptions = llm.num_preemptions
        for ours, theirs in zip(got, wanted, strict=True):
            where = f"{dtype}, {pages} pages"
            want_same_answer(ours, theirs, where, "as with many pages")
        want(num_preemptions > 0, f"no preemption with {pages} pages", "at least one")


def warm_equals_cold(subject: Subject) -> None:
    """A request that found its beginning in the prefix cache gives the same bits as a cold one."""
    for dtype in subject.dtypes:
        first = subject.tokens(LONG)
        parting = [token ^ 1 for token in first]
        for shared in (PAGE_SIZE, 2 * PAGE_SIZE + 2, LONG - LONG % PAGE_SIZE, LONG):
            tokens = first[:shared] + parting[shared:]
            _want_warm(subject, dtype, first, tokens, f"{dtype}, {shared} tokens shared")
        _want_warm(subject, dtype, first, first[: 2 * PAGE_SIZE], f"{dtype}, a whole prompt")


def _want_warm(
    subject: Subject, dtype: str, first: list[int], tokens: list[int], where: str
) -> None:
    # One number of prompt tokens: where angles depend on it, only equal ones may share.
    num_prompt = len(first)
    cold = subject.alone(tokens, dtype, num_prompt=num_prompt)
    session = subject.session(dtype, prefix_caching=True, num_pages=20)
    session.add("a", first)
    rejected = _offer_and_reject(session, first)
    session.finish("a", [5])
    published = _published(session)
    for place, name in enumerate(("beside", "after", "again")):
        if place == 1:
            session.drop("a")
        done = session.add(name, tokens, num_prompt=num_prompt, warm=True).num_computed
        want(done < len(tokens), f"{where}: all {done} rows restored", "one left to compute")
        rows = session.finish(name, [3] if place == 1 else [])
        want_same_bits(rows, cold[done:], f"{where}, {name}, {done} rows restored")
        session.drop(name)
    for page, (layer, before) in published:
        now = _blocks(session)[layer][page]
        want(
            bool(same_memory(now, before).all()),
            f"{where}: page {page} of layer {layer} was written after it was published",
            "published pages to be read-only",
        )
    done = session.add("wrong", rejected, num_prompt=num_prompt, warm=True).num_computed
    wanted = subject.alone(rejected, dtype, num_prompt=num_prompt)
    want_same_bits(session.finish("wrong"), wanted[done:], f"{where}, a text that was rejected")
    session.drop("wrong")
    _evict(session, subject)
    done = session.add("late", tokens, num_prompt=num_prompt, warm=True).num_computed
    want_same_bits(session.finish("late"), cold[done:], f"{where}, after evictions")
    session.state.check()


def _offer_and_reject(session: Session, tokens: list[int]) -> list[int]:
    """Rows of wrong tokens over a page's end, none kept; returns the text they would have made."""
    done, wrong = 5, [token ^ 2 for token in tokens[: 2 * PAGE_SIZE]]
    session.run({"a": done})
    session.contexts["a"].tokens = tokens[:done] + wrong
    session.run({"a": len(wrong)}, keep={"a": 0})
    session.contexts["a"].tokens = list(tokens)
    return tokens[:done] + wrong + tokens[:1]


def _blocks(session: Session) -> tuple[torch.Tensor, ...]:
    paged = [spec.name for spec in session.model.state if isinstance(spec, PagedStateSpec)]
    return tuple(block for name in paged for block in session.state.paged_cache(name).blocks)


def _published(session: Session) -> list[tuple[int, tuple[int, torch.Tensor]]]:
    """Copies of the pages that may be shared: page, (layer, content)."""
    pages = sorted(session.state.index.pages())
    return [
        (page, (layer, block[page].clone()))
        for layer, block in enumerate(_blocks(session))
        for page in pages
    ]


def _evict(session: Session, subject: Subject) -> None:
    """Another request takes most pages, cached ones too, and leaves."""
    count = (session.state.num_available_pages - 1) * PAGE_SIZE
    session.add("large", subject.tokens(min(count, subject.max_seq_len), seed=9), warm=True)
    session.finish("large")
    session.drop("large")


def passes_write_their_rows_only(subject: Subject) -> None:
    """A pass writes the cache rows it reserved, all of them, and no other."""
    for dtype in subject.dtypes:
        session = subject.session(dtype)
        lengths = {"a": 2 * PAGE_SIZE + 1, "b": 1, "c": PAGE_SIZE}
        for seed, (name, length) in enumerate(lengths.items()):
            session.add(name, subject.tokens(length + 5, seed))
        session.add("bystander", subject.tokens(6))
        session.run({"bystander": 6})
        for rows in (lengths, dict.fromkeys(lengths, 1), {"b": 3, "a": 2}):
            inputs = session.inputs(rows)
            kv = inputs.kv_cache_inputs
            if kv is None:
                raise NotApplicable("the model has no pages")
            before = [block.clone() for block in kv.blocks]
            session.execute(inputs)
            for layer, (old, new) in enumerate(zip(before, kv.blocks, strict=True)):
                changed = (~same_memory(new.flatten(0, 1), old.flatten(0, 1))).nonzero()[:, 0]
                got, wanted = set(changed.tolist()), set(kv.write_slots.tolist())
                want(
                    got == wanted,
                    f"{dtype}, layer {layer}, rows {dict(rows)}: wrote {sorted(got - wanted)} too, "
                    f"and did not write {sorted(wanted - got)}",
                    f"writes to the slots {sorted(wanted)} only",
                )
            session.commit(rows)


def scratch_is_never_read(subject: Subject) -> None:
    """What lies in rows that nobody may read, NaN or numbers, changes no bit."""
    for dtype in subject.dtypes:
        tokens, offered = subject.tokens(LONG), PAGE_SIZE + 1
        found = []
        for fill in (None, FILL):
            session = subject.session(dtype, poison=fill is None)
            if fill is not None:
                for block in _blocks(session):
                    block.fill_(fill)
            session.add("a", tokens)
            rows = [session.run({"a": 6})["a"]]
            session.contexts["a"].tokens = tokens[:6] + tokens[:offered]
            session.run({"a": offered}, keep={"a": 0})
            session.contexts["a"].tokens = tokens
            rows.append(session.finish("a", [2]))
            found.append(torch.cat(rows))
        want_same_bits(found[0], found[1], f"{dtype}, over NaN and over {FILL:g}")
        want_same_bits(found[0], subject.alone(tokens, dtype), f"{dtype}, over NaN")


def exceptions_change_nothing(subject: Subject) -> None:
    """An exception anywhere in a pass leaves every length as it was; run again, no bit differs."""
    dtype, texts = subject.dtype, {"a": subject.tokens(LONG), "b": subject.tokens(8, seed=1)}
    whole = {name: subject.alone(tokens, dtype) for name, tokens in texts.items()}
    session = subject.session(dtype)
    session.add_all(texts)
    session.run({"a": 9, "b": 3})
    rows = {"a": 6, "b": 2}
    inputs = session.inputs(rows)
    with RaiseAt() as counter:
        session.execute(inputs)
    for part in range(7):
        at = part * (counter.count - 1) // 6
        inputs = session.inputs(rows)
        swallowed = f"operation {at}'s exception was swallowed"
        with want_raised(PlantedError, swallowed, "it raised"), RaiseAt(at):
            session.execute(inputs)
        session.state.check()
        lengths = [session.state.num_committed(name) for name in rows]
        want(lengths == [9, 3], f"lengths {lengths} after operation {at} raised", "[9, 3]")
    want_same_bits(session.finish("a"), whole["a"][9:], f"{dtype}, after exceptions")
    where = f"{dtype}, after exceptions, a batch mate"
    want_same_bits(session.finish("b"), whole["b"][3:], where)


def declared_state_is_all(subject: Subject) -> None:
    """State saved at any point and loaded beside a fresh model goes on with the same bits."""
    for dtype in subject.dtypes:
        tokens = subject.tokens(LONG)
        whole = subject.alone(tokens, dtype)
        session = subject.session(dtype)
        session.add("a", tokens)
        for stop in (1, PAGE_SIZE, 10):
            session.run({"a": stop - session.contexts["a"].num_computed})
            rows = _resumed(session, subject.load(dtype), stop)
            want_same_bits(rows, whole[stop:], f"{dtype}, saved after {stop} rows")
        want_same_bits(session.finish("a"), whole[10:], f"{dtype}, the original, after saves")


def _resumed(session: Session, model: PipelineModel, done: int) -> torch.Tensor:
    saved = copy.deepcopy(session.state)
    other = Session(model, saved)
    other.contexts = {"a": copy.deepcopy(session.contexts["a"])}
    assert other.contexts["a"].num_computed == done
    return other.finish("a", [2])
