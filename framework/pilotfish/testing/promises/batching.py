"""Promises about what runs beside and before a row: batch mates, chunks, pages, one pass or many.

Knows: schedules. Does not know: what the logits should be, only that they do not change.
"""

from __future__ import annotations

import random
import re
from functools import partial

import torch

from pilotfish.testing.compare import want_same_bits
from pilotfish.testing.outcome import NotApplicable, NotKnown
from pilotfish.testing.session import Session
from pilotfish.testing.subject import LONG, PAGE_SIZE, Subject

LENGTHS = (1, PAGE_SIZE - 1, LONG, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE)
"""Around the page, and a long one in the middle."""
NUM_SCHEDULES = 4
CHUNK = 4


def batch_equals_singles(subject: Subject) -> None:
    """A request's logits have the same bits in a batch as alone."""
    for dtype in subject.dtypes:
        texts = {str(n): subject.tokens(n, seed) for seed, n in enumerate(LENGTHS)}
        session = subject.session(dtype)
        session.add_all(texts)
        together = session.run({name: len(tokens) for name, tokens in texts.items()})
        for name, tokens in texts.items():
            where = f"{dtype}, the request of {name} tokens in a batch of {len(texts)}"
            want_same_bits(together[name], subject.alone(tokens, dtype), where)


def chunks_equal_whole(subject: Subject) -> None:
    """However a text is cut into passes, its logits have the same bits as in one pass."""
    sizes = (1, 2, 3, PAGE_SIZE, PAGE_SIZE + 1, 2 * PAGE_SIZE - 1)
    for dtype in subject.dtypes:
        tokens = subject.tokens(LONG)
        whole = subject.alone(tokens, dtype)
        for size in sizes:
            _want_chunked(subject, dtype, tokens, [size] * LONG, whole)
        _want_chunked(subject, dtype, tokens, [LONG - 1], whole)
        longer = subject.longer_tokens()
        chunks = [3 * len(longer) // 10, *[1] * 3] * 3
        _want_chunked(subject, dtype, longer, chunks, subject.alone(longer, dtype))
    dtype = subject.dtype
    tokens = subject.tokens(3 * CHUNK, seed=1)
    whole = subject.alone(tokens, dtype)
    for length in range(1, 3 * CHUNK + 1):
        # The number of prompt tokens stays: where angles depend on it, it is part of the request.
        session = subject.session(dtype)
        session.add("a", tokens, num_prompt=len(tokens))
        session.contexts["a"].tokens = tokens[:length]
        rows = session.finish("a", [CHUNK] * length)
        want_same_bits(rows, whole[:length], f"{dtype}, {length} tokens in chunks of {CHUNK}")


def _want_chunked(
    subject: Subject, dtype: str, tokens: list[int], chunks: list[int], whole: torch.Tensor
) -> None:
    rows = subject.alone(tokens, dtype, chunks=chunks)
    want_same_bits(rows, whole, f"{dtype}, {len(tokens)} tokens in chunks of {chunks[0]}")


def mixtures_equal_singles(subject: Subject) -> None:
    """Prefill, chunks and decode of several requests in one pass, in any mixture, change no bit."""
    for dtype in subject.dtypes:
        texts = {str(i): subject.tokens(n, i) for i, n in enumerate((LONG, 1, 9, 14))}
        alone = {name: subject.alone(tokens, dtype) for name, tokens in texts.items()}
        for number in range(NUM_SCHEDULES):
            session = subject.session(dtype, poison=number % 2 == 0)
            session.add_all(texts)
            got = session.finish_mixed(random.Random(number))
            for name in texts:
                where = f"{dtype}, request {name} of drawn schedule {number}"
                want_same_bits(got[name], alone[name], where)


def pages_do_not_matter(subject: Subject) -> None:
    """Sizes and places of pages change no bit, and equal rows leave equal bits in the cache."""
    for dtype in subject.dtypes:
        tokens = subject.tokens(LONG)
        first = subject.session(dtype)
        first.add("a", tokens)
        whole, kept = first.finish("a"), first.memory_of("a")
        for size in (1, 2, 16, 128):
            session = subject.session(dtype, page_size=size)
            session.add("other", subject.tokens(5, seed=2))
            session.run({"other": 5})
            session.add("a", tokens)
            where = f"{dtype}, pages of {size} tokens"
            want_same_bits(session.finish("a", [3, 9]), whole, where)
            for layer, (got, wanted) in enumerate(zip(session.memory_of("a"), kept, strict=True)):
                want_same_bits(got, wanted, f"{where}, cached rows of layer {layer}")


def later_rows_do_not_reach_earlier_ones(subject: Subject) -> None:
    """A token whose embedding is NaN or infinite changes no bit of the rows before it."""
    length, place = LONG, LONG - 6
    if subject.prepared(subject.dtype).backend.name == "triton":
        raise NotApplicable("what triton's kernels promise of numbers that are not finite is less")
    for dtype in subject.dtypes:
        tokens = subject.tokens(length)
        odd = next(t for t in range(subject.vocab_size - 1, -1, -1) if t not in tokens)
        with_odd = [*tokens[:place], odd, *tokens[place + 1 :]]
        for value in (float("nan"), float("inf")):
            with subject.with_weights(partial(_poison_embedding, odd, value)) as poisoned:
                # A head that is tied to the embedding has the value in the token's own column.
                wanted = _without_column(poisoned.alone(tokens, dtype), odd)
                for first in (0, place - 3):  # a prefill, and a few rows as when drafts are judged
                    session = poisoned.session(dtype)
                    session.add("a", with_odd)
                    rows = [session.run({"a": first})["a"]] if first else []
                    rows.append(session.finish("a"))
                    want_same_bits(
                        _without_column(torch.cat(rows)[:place], odd),
                        wanted[:place],
                        f"{dtype}, rows before a token that is {value}, from row {first} in a pass",
                    )


def _poison_embedding(token: int, value: float, tensors: dict[str, torch.Tensor]) -> None:
    found = [
        name
        for name, tensor in tensors.items()
        if re.search("emb|wte", name) and "pos" not in name
        if tensor.ndim == 2 and tensor.shape[0] > token
    ]
    if len(found) != 1:
        raise NotKnown(f"the checkpoint has no single embedding of tokens: {found}")
    tensors[found[0]][token] = value


def _without_column(logits: torch.Tensor, column: int) -> torch.Tensor:
    return torch.cat((logits[:, :column], logits[:, column + 1 :]), dim=1)


def next_inputs_equal_packed(subject: Subject) -> None:
    """`prepare_next_token_inputs`, pass after pass, gives what packing afresh gives."""
    steps, lengths = 5, {"a": 6, "b": 3}
    for dtype in subject.dtypes:
        texts = {name: subject.tokens(n + steps, n) for name, n in lengths.items()}
        packed = subject.session(dtype)
        packed.add_all(texts, lengths)
        packed.run(lengths)
        wanted = [packed.run(dict.fromkeys(texts, 1)) for _ in range(steps)]
        got = _followed(subject.session(dtype), texts, lengths, steps)
        for step, (rows, expected) in enumerate(zip(got, wanted, strict=True)):
            together = torch.cat(list(expected.values()))
            want_same_bits(rows, together, f"{dtype}, {step + 1} rows later")


def _followed(
    session: Session, texts: dict[str, list[int]], lengths: dict[str, int], steps: int
) -> list[torch.Tensor]:
    """Logits of passes of one row, the inputs of each made from those before."""
    session.add_all(texts, lengths)
    session.run(lengths)
    inputs = session.inputs(dict.fromkeys(texts, 1), ahead=steps - 1)
    found = [session.execute(inputs).logits.clone()]
    for step in range(1, steps):
        tokens = [text[lengths[name] + step] for name, text in texts.items()]
        inputs = session.model.prepare_next_token_inputs(
            torch.tensor(tokens, device=session.model.device), inputs
        )
        found.append(session.execute(inputs).logits.clone())
    session.commit(dict.fromkeys(texts, steps))
    return found
