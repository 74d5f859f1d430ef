"""probe_passes: the rows of one pass against the same rows in several passes, and beside others.

Knows: schedules, and that any model's rows should not notice them. Does not know: what a model
computes, or where its weights come from.
Axis letters: T rows, V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import attrs
import torch

from pilotfish.batch import RequestContext
from pilotfish.kernels.device import current_device
from pilotfish.layers.own_operations import OwnOperation, OwnOperations
from pilotfish.protocols import PipelineModel
from pilotfish.state import PagedStateSpec, SlotStateSpec, StateManager

TEXT, BESIDE = 88, 11
"""Tokens of the text and of the one beside it. 88 is a multiple of the blocks that rows are padded
to, and no usual width: an axis of that length is the rows."""
PAGE_SIZE = 16

Schedule: TypeAlias = Sequence[Mapping[str, int]]
"""Passes: request -> rows."""


@attrs.frozen(kw_only=True)
class PassProbe:
    """operations: what code outside of the library computed with torch, in one pass.

    unlike: how rows were run that got other bits than in one pass of their own; "" where none did.
    """

    operations: tuple[OwnOperation, ...] = ()
    unlike: str = ""

    @property
    def why_not_invariant(self) -> str:
        """What gives a row bits that are not its own; "" where nothing was found."""
        for one in self.operations:
            if one.differs_at:
                counts = ", ".join(map(str, one.differs_at))
                return f"{one} gives the rows of a call of {counts} other bits than those of many"
        if self.unlike and self.operations:
            return f"{self.unlike}, in a pass that computes {self.operations[0]}"
        return self.unlike

    @property
    def why_not_portable(self) -> str:
        """What is computed by torch, whose bits are a matter of the processor; "" for nothing."""
        return f"{self.operations[0]} is computed by torch" if self.operations else ""


def probe_passes(model: PipelineModel, vocab_size: int) -> PassProbe:
    """Run a text in one pass, in passes of 1, 3 and 16 rows, and packed beside another text.

    model: with weights; it and its caches are as before afterwards. vocab_size: ids up to it may
    be asked for. Nine passes, of 369 rows together. An exception of the model's is told, not
    raised: the pass that a user asks for will raise it.
    """
    length = min(TEXT, model.config.get_max_seq_len() - 1)
    whole = [{"text": length}]
    schedules: dict[str, Schedule] = {"passes of 1, 3 and 16 rows": _cut(length, (1, 3, 16))}
    if length >= BESIDE:
        first = length // 5
        schedules["a pass beside another text"] = [{"beside": BESIDE, "text": length}]
        schedules["passes that are shared with another text"] = [
            {"text": first, "beside": 3},
            {"beside": 1, "text": 1},
            {"text": length - first - 1, "beside": 2},
        ]
    operations: Sequence[OwnOperation] = ()
    try:
        multiple = max(1, model.row_multiple)
        padded = -(-length // multiple) * multiple
        with OwnOperations((length, padded)) as own:
            wanted = _logits(model, whole, length, vocab_size)
        operations = own.found
        for told, schedule in schedules.items():
            if not _same(_logits(model, schedule, length, vocab_size), wanted):
                return PassProbe(operations=tuple(operations), unlike=f"rows differ in {told}")
    except Exception as error:  # a plugin may raise anything
        told = f"the passes that try it raised {type(error).__name__}: {error}"
        return PassProbe(operations=tuple(operations), unlike=told)
    return PassProbe(operations=tuple(operations))


def _cut(length: int, counts: Sequence[int]) -> list[dict[str, int]]:
    passes, left = [], length
    for count in (*counts, length):
        rows = min(count, left)
        if rows:
            passes.append({"text": rows})
        left -= rows
    return passes


@torch.inference_mode()
def _logits(model: PipelineModel, schedule: Schedule, length: int, vocab_size: int) -> torch.Tensor:
    """[T, V], every row of the text, run as the schedule says over caches of its own."""
    contexts = {
        name: RequestContext(
            request_id=name, tokens=_tokens(name, length, vocab_size), num_prompt_tokens=length
        )
        for name in schedule[0]
    }
    state = _state(model, length)
    leaf = next((spec.name for spec in model.state if isinstance(spec, PagedStateSpec)), None)
    for name in contexts:
        state.claim(name)
    found = []
    for counts in schedule:
        batch = [contexts[name] for name in counts]
        for context, count in zip(batch, counts.values(), strict=True):
            start = context.num_computed
            state.reserve(context.request_id, context.keys(start, start + count))
            context.num_scheduled = count
        rows = list(counts.values())
        kv = None if leaf is None else state.kv_inputs(list(counts), rows, leaf)
        with current_device(model.device):
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
    attached = [
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
        attached=attached,
    )


def _same(got: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two [T, V] hold the same bits, NaN included."""
    return torch.equal(got.nan_to_num(), wanted.nan_to_num()) and torch.equal(
        got.isnan(), wanted.isnan()
    )
