"""Session: requests over one model and one state, pass by pass as the test asks. No scheduler.

Knows: the lifecycle of state. Does not know: what should come out.
Axis letters: V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import torch

from pilotfish.batch import PlacedImage, RequestContext
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.runner import paged_cache_name, pass_inputs
from pilotfish.kernels.device import current_device
from pilotfish.protocols import ModelInputs, ModelOutputs, PipelineModel
from pilotfish.state import StateManager


class Session:
    """Live requests by name. A session's state is its own; its model may serve several sessions.

    model: with VARIABLE logits unless the test knows better.
    """

    def __init__(self, model: PipelineModel, state: StateManager) -> None:
        self.model = model
        self.state = state
        self.contexts: dict[str, RequestContext] = {}

    def add(
        self,
        name: str,
        tokens: Sequence[int],
        *,
        num_prompt: int | None = None,
        warm: bool = False,
        images: Sequence[PlacedImage] = (),
    ) -> RequestContext:
        """A new request with all its tokens known.

        num_prompt: how many of them are prompt; None: all. warm: takes a prefix hit.
        images: in their places among the tokens.
        """
        prompt = len(tokens) if num_prompt is None else num_prompt
        rules = LengthRules.of(self.model.config)
        # As if all of an answer had been computed anew when the model wanted that.
        restart = (rules.recompute_length or 0) + 1
        limit = rules.restart_above(prompt)
        restarts = limit is not None and len(tokens) > limit
        salt = rules.salt(restart if restarts else prompt)
        context = RequestContext(
            request_id=name,
            tokens=list(tokens),
            num_prompt_tokens=prompt,
            num_restart_tokens=restart if restarts else 0,
            images=tuple(images),
        )
        keys = context.keys(0, len(tokens)) if warm else ()
        context.num_computed = self.state.claim(name, keys, salt)
        self.contexts[name] = context
        return context

    def add_all(
        self, texts: Mapping[str, Sequence[int]], num_prompts: Mapping[str, int] | None = None
    ) -> None:
        """New requests by name; num_prompts: of each; None: all tokens."""
        for name, tokens in texts.items():
            self.add(name, tokens, num_prompt=num_prompts[name] if num_prompts else None)

    def drop(self, name: str) -> None:
        """Releases a request."""
        self.state.release(name)
        self.model.release(name)
        del self.contexts[name]

    def left(self, name: str) -> int:
        """Tokens whose rows are not computed."""
        context = self.contexts[name]
        return len(context.tokens) - context.num_computed

    def inputs(
        self, rows: Mapping[str, int], wanted: Mapping[str, int] | None = None, ahead: int = 0
    ) -> ModelInputs:
        """Reserves the next rows of some requests; the inputs of a pass over them.

        rows: name -> rows, in the order of the batch. wanted: rows of logits; None: all.
        ahead: rows reserved beyond them, for passes that follow from these inputs.
        """
        contexts = [self.contexts[name] for name in rows]
        for context, count in zip(contexts, rows.values(), strict=True):
            start = context.num_computed
            stop = min(start + count + ahead, len(context.tokens))
            self.state.reserve(context.request_id, context.keys(start, stop))
            context.num_scheduled = count
        counts = rows if wanted is None else wanted
        return pass_inputs(
            self.model,
            self.state,
            contexts,
            [counts[name] for name in rows],
            paged_cache_name(self.model),
        )

    @torch.inference_mode()
    def execute(self, inputs: ModelInputs) -> ModelOutputs:
        """One pass; commits nothing."""
        with current_device(self.model.device):
            return self.model.execute(inputs)

    def commit(self, rows: Mapping[str, int]) -> None:
        """Keeps the first rows of each request's pass; the others never happened."""
        for name, count in rows.items():
            self.state.commit(name, count)
            self.contexts[name].num_computed += count
            self.contexts[name].num_scheduled = 0

    def run(
        self,
        rows: Mapping[str, int],
        *,
        wanted: Mapping[str, int] | None = None,
        keep: Mapping[str, int] | None = None,
    ) -> dict[str, torch.Tensor]:
        """One pass, committed; name -> logits [rows, V]. keep: rows to commit; None: all."""
        outputs = self.execute(self.inputs(rows, wanted))
        self.commit(rows if keep is None else keep)
        bounds = outputs.logit_offsets.tolist()
        return {
            name: outputs.logits[bounds[i] : bounds[i + 1]].clone() for i, name in enumerate(rows)
        }

    def finish(self, name: str, chunks: Sequence[int] = ()) -> torch.Tensor:
        """All rows that are left, in chunks of the given sizes and then at once: [rows, V]."""
        found = []
        for size in (*chunks, self.left(name)):
            count = min(size, self.left(name))
            if count:
                found.append(self.run({name: count})[name])
        return torch.cat(found)

    def finish_mixed(self, drawn: random.Random) -> dict[str, torch.Tensor]:
        """All rows that are left of every request, in passes over a random few of them."""
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self.contexts}
        while left := [name for name in found if self.left(name)]:
            chosen = drawn.sample(left, drawn.randint(1, len(left)))
            rows = {name: drawn.choice((1, drawn.randint(1, self.left(name)))) for name in chosen}
            for name, logits in self.run(rows).items():
                found[name].append(logits)
        return {name: torch.cat(pieces) for name, pieces in found.items()}

    def memory_of(self, name: str) -> list[torch.Tensor]:
        """The committed rows of a request in every layer of the paged cache, each [rows, ...]."""
        cache_name = paged_cache_name(self.model)
        if cache_name is None:
            return []
        pages = list(self.state.pages_of(name))
        count = self.state.num_committed(name)
        return [
            block[pages].flatten(0, 1)[:count].clone()
            for block in self.state.paged_cache(cache_name).blocks
        ]
