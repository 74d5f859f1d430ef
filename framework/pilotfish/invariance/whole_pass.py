"""probe_passes: the rows of one pass against the same rows in several passes, and beside others.

Knows: schedules, and that any model's rows should not notice them. Does not know: what a model
computes, or where its weights come from.
Axis letters: T rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TypeAlias

import attrs
import torch

from pilotfish.batch import RequestContext
from pilotfish.invariance.own_operations import ElsewhereCall, OwnOperation, OwnOperations
from pilotfish.invariance.row_tries import same_bits
from pilotfish.kernels.device import current_device
from pilotfish.protocols import PipelineModel
from pilotfish.state import PagedStateSpec, SlotStateSpec, StateManager

TEXT, BESIDE, AHEAD = 88, 11, 5
"""The most rows of a pass over the text, the tokens of the one beside it, and rows of the text
before that pass. 88 is a multiple of the blocks that rows are padded to."""
PAGE_SIZE = 16

Schedule: TypeAlias = Sequence[Mapping[str, int]]
"""Passes: request -> rows."""


@attrs.frozen(kw_only=True)
class PassProbe:
    """operations: what code outside of the library computed with torch, in all passes.

    unlike: how rows were run that got other bits than in one pass of their own, or why that could
    not be tried; "" where none did.
    believed: whether its author answers for what of the operations cannot be tried.
    silent: the classes of its plugin that compute and whose author does not say that.
    elsewhere: calls that may have other bits on another processor, and nobody answers for.
    """

    operations: tuple[OwnOperation, ...] = ()
    unlike: str = ""
    believed: bool = False
    silent: tuple[str, ...] = ()
    elsewhere: tuple[ElsewhereCall, ...] = ()

    @property
    def why_not_invariant(self) -> str:
        """What gives a row bits that are not its own, or may, untried; "" where all was tried."""
        return self.differs or self.untried

    @property
    def differs(self) -> str:
        """What gives a row bits that are not its own, or why that was not found out at all."""
        for one in self.operations:
            if one.problem and not one.is_untried:
                return f"{one} {one.problem}"
        if self.unlike and self.operations:
            return f"{self.unlike}, in a pass that computes {self.operations[0]}"
        return self.unlike

    @property
    def untried(self) -> str:
        """What no try says anything of, and no author answers for."""
        untried = [one for one in self.operations if one.is_untried and not self.believed]
        if not untried:
            return ""
        of = f", one of {len(untried)} calls," if len(untried) > 1 else ""
        silent = f"; {says_nothing(self.silent)}" if self.silent else ""
        return f"{untried[0]}{of} could not be tried: {untried[0].problem}{silent}"

    @property
    def why_not_portable(self) -> str:
        """What may give other bits on another processor, or why that was not found out."""
        if self.unlike or not self.elsewhere:
            return self.unlike
        one, count = self.elsewhere[0], len(self.elsewhere)
        of = f", one of {count} such calls" if count > 1 else ""
        parts = [name for name in dict.fromkeys(call.part for call in self.elsewhere) if name]
        return (
            f"{one.part or 'code of the plugin'} computes {one.told}{of}, which another processor "
            "may round otherwise; compute it with `pilotfish.kernels`, or say "
            f'`keeps_bits = "portable"` in {", ".join(parts) or "its classes"} if the bits are the '
            "same on all"
        )


def says_nothing(names: Sequence[str]) -> str:
    """What the author of some classes can do, in words."""
    return f"its author can answer for it: `keeps_bits = True` is missing in {', '.join(names)}"


def probe_passes(
    model: PipelineModel,
    vocab_size: int,
    *,
    believed: bool = False,
    silent: Sequence[str] = (),
    build: Callable[[], object] | None = None,
) -> PassProbe:
    """Run a text in one pass, in passes of 1, 3 and 16 rows, and packed beside another text.

    model: with weights; it and its caches are as before afterwards. vocab_size: ids up to it may
    be asked for. believed, silent: see `PassProbe`. build: makes the parts anew, which is watched
    for what is computed there once, such as a table. Twelve passes, of 470 rows together. An
    exception of the model's is told, not raised: the pass that a user asks for will raise it.
    """
    own = OwnOperations()
    try:
        if build is not None:
            with own.building():
                build()
        unlike = _unlike(model, vocab_size, own)
    except Exception as error:  # a plugin may raise anything
        unlike = f"the passes that try it raised {type(error).__name__}: {error}"
    return PassProbe(
        operations=tuple(own.found),
        unlike=unlike,
        believed=believed,
        silent=tuple(silent),
        elsewhere=tuple(own.elsewhere.values()),
    )


def text_logits(model: PipelineModel, vocab_size: int) -> torch.Tensor:
    """[T, V] of a text in one pass. As `probe_passes`; what the model raises is raised."""
    length = min(TEXT, model.config.get_max_seq_len() - 1)
    return _logits(model, [{"text": length}], length, vocab_size)


def _unlike(model: PipelineModel, vocab_size: int, own: OwnOperations) -> str:
    multiple = max(1, model.row_multiple)
    reach = model.config.get_max_seq_len() - 1
    ahead = AHEAD if reach > 4 * AHEAD else 0
    most = _blocks_of(min(TEXT, reach - ahead), multiple)
    fewer = _blocks_of(most * 3 // 4, multiple)
    if fewer < 1:
        return "it cannot be tried: no text within its reach has two rows"
    length = ahead + most
    schedules: dict[str, Schedule] = {"passes of 1, 3 and 16 rows": _cut(length, (1, 3, 16))}
    if length >= BESIDE:
        first = length // 5
        schedules["a pass beside another text"] = [{"beside": BESIDE, "text": length}]
        schedules["passes that are shared with another text"] = [
            {"text": first, "beside": 3},
            {"beside": 1, "text": 1},
            {"text": length - first - 1, "beside": 2},
        ]
    text = partial(_logits, model, length=length, vocab_size=vocab_size)
    short = text(_behind(ahead, fewer), around=own.measuring(_rows(fewer, multiple)))
    wanted = text(_behind(ahead, most), around=own.trying(_rows(most, multiple)))
    if not wanted.isfinite().all():
        return "it cannot be tried: its logits are not finite"
    for told, schedule in schedules.items():
        with own.watching():
            got = text(schedule)
        if not same_bits(got, wanted):
            return f"rows differ in {told}"
    if not same_bits(short, wanted[: len(short)]):
        return f"rows differ in passes of {fewer} and {most} rows"
    return ""


def _blocks_of(most: int, multiple: int) -> int:
    """The largest number of rows up to `most` that needs no padding; `most` where there is none."""
    return most - most % multiple or most


def _rows(count: int, multiple: int) -> tuple[int, int]:
    """A number of rows, and that with padding."""
    return count, -(-count // multiple) * multiple


def _behind(ahead: int, rows: int) -> list[dict[str, int]]:
    """A pass behind another, so that there are more keys than rows."""
    return [{"text": count} for count in (ahead, rows) if count]


def _cut(length: int, counts: Sequence[int]) -> list[dict[str, int]]:
    passes, left = [], length
    for count in (*counts, length):
        rows = min(count, left)
        if rows:
            passes.append({"text": rows})
        left -= rows
    return passes


@torch.inference_mode()
def _logits(
    model: PipelineModel,
    schedule: Schedule,
    length: int,
    vocab_size: int,
    around: AbstractContextManager[None] | None = None,
) -> torch.Tensor:
    """[T, V], every row of the text, run as the schedule says over caches of its own.

    around: entered for the last pass.
    """
    contexts = {
        name: RequestContext(
            request_id=name, tokens=_tokens(name, length, vocab_size), num_prompt_tokens=length
        )
        for name in schedule[0]
    }
    state = _state(model, length)
    cache_name = next((spec.name for spec in model.state if isinstance(spec, PagedStateSpec)), None)
    for name in contexts:
        state.claim(name)
    found = []
    for number, counts in enumerate(schedule, start=1):
        batch = [contexts[name] for name in counts]
        for context, count in zip(batch, counts.values(), strict=True):
            start = context.num_computed
            state.reserve(context.request_id, context.keys(start, start + count))
            context.num_scheduled = count
        rows = list(counts.values())
        kv = None if cache_name is None else state.kv_inputs(list(counts), rows, cache_name)
        looked_at = around if number == len(schedule) else None
        with current_device(model.device), looked_at or nullcontext():
            outputs = model.execute(model.prepare_initial_token_inputs([batch], kv, rows))
        place, bounds = list(counts).index("text"), outputs.logit_offsets.tolist()
        found.append(outputs.logits[bounds[place] : bounds[place + 1]].clone())
        for context, count in zip(batch, rows, strict=True):
            state.commit(context.request_id, count)
            context.num_computed += count
    for name in contexts:
        state.release(name)
        model.release(name)
    return torch.cat(found)


def _tokens(name: str, length: int, vocab_size: int) -> list[int]:
    drawn = random.Random(name)
    return [drawn.randrange(vocab_size) for _ in range(length)]


def _state(model: PipelineModel, length: int) -> StateManager:
    slot_caches = [
        model.make_cache(spec, max_slots=2, num_pages=0)
        for spec in model.state
        if isinstance(spec, SlotStateSpec)
    ]
    return StateManager(
        [spec for spec in model.state if isinstance(spec, PagedStateSpec)],
        num_pages=2 * (-(-length // PAGE_SIZE) + 1),
        page_size_tokens=PAGE_SIZE,
        device=model.device,
        prefix_caching=False,
        slot_caches=slot_caches,
    )
