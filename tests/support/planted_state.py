"""Bugs of caches, pages and passes: what commit, release, sharing and failure leave behind."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from support.planted_bugs import (
    CHUNKS,
    CONV,
    HISTORY,
    MANAGER,
    MISTRAL,
    MODEL,
    WARM,
    bug,
)


@bug(
    1,
    "a rejected row stays in the convolution state",
    HISTORY,
    "pilotfish_lfm2.cache:ConvStateCache.commit",
    CONV,
)
def _(real: Any) -> Any:
    def commit(self: Any, request_id: str, num_tokens: int) -> None:
        reserved = self._request(request_id).num_reserved
        real(self, request_id, reserved)
        self._request(request_id).num_committed -= reserved - num_tokens

    return commit


@bug(
    2,
    "a step without drafts reads a stale convolution column",
    HISTORY,
    "pilotfish_lfm2.cache:ConvStateCache.commit",
    CONV,
)
def _(real: Any) -> Any:
    def commit(self: Any, request_id: str, num_tokens: int) -> None:
        request = self._request(request_id)
        first, drafted = request.first, request.num_reserved > 1
        real(self, request_id, num_tokens)
        if drafted and num_tokens == 1:
            request.first = first

    return commit


@bug(3, "a rollback silently does nothing", HISTORY, f"{MANAGER}.commit")
def _(real: Any) -> Any:
    return lambda self, request_id, num_tokens: real(
        self, request_id, self.num_reserved(request_id)
    )


@bug(
    4,
    "a sliding window is one key short in passes of several rows",
    CHUNKS,
    "pilotfish.layers.attention:paged_attention",
    MISTRAL,
)
def _(real: Any) -> Any:
    def attention(q: Any, cache: Any, plan: Any, *, window: int, **options: Any) -> Any:
        return real(q, cache, plan, window=window - (plan.num_rows > 4), **options)

    return attention


@bug(
    6,
    "a prefix hit is taken while the convolution state is missing",
    WARM,
    "pilotfish_lfm2.cache:ConvStateCache.restore",
    CONV,
)
def _(real: Any) -> Any:
    def restore(self: Any, request_id: str, page: int, num_tokens: int) -> None:
        self._request(request_id).num_committed = num_tokens

    return restore


@bug(
    7,
    "a page is named by its first token only",
    WARM,
    "pilotfish.state.prefix:PrefixIndex.extend",
)
def _(real: Any) -> Any:
    return lambda self, chain, keys: real(self, chain, keys[:1])


@bug(7, "pages are published with rows that were rejected", WARM, f"{MANAGER}.commit")
def _(real: Any) -> Any:
    def commit(self: Any, request_id: str, num_tokens: int) -> None:
        request = self._request(request_id)
        offered = request.tail + request.reserved
        full = request.full_pages(offered, self.index) if self.prefix_caching else []
        new = [page for page in full if page.is_new]
        real(self, request_id, num_tokens)
        for page in new:
            self.index._page_of.setdefault(page.name, page.page)

    return commit


@bug(
    8,
    "a pass writes into a page that is not its own",
    "passes write their rows only",
    "pilotfish.layers.attention:write_kv",
)
def _(real: Any) -> Any:
    def write(kv: Any, cache: Any, slots: Any, **options: Any) -> None:
        real(kv, cache, slots, **options)
        cache[-1, 0] = kv[0]

    return write


@bug(
    9,
    "rows after a full page begin on its last row",
    CHUNKS,
    "pilotfish.state.manager:write_slots",
)
def _(real: Any) -> Any:
    def slots(pages: Any, start: int, count: int, size: int) -> Any:
        return real(pages, start - (start > 0 and start % size == 0), count, size)

    return slots


@bug(
    9,
    "a prompt as long as the context is let in",
    "every request ends once",
    "pilotfish.engine.admission:Admission.admit",
)
def _(real: Any) -> Any:
    def admit(self: Any, *args: Any, **options: Any) -> Any:
        self.max_seq_len += 1
        try:
            return real(self, *args, **options)
        finally:
            self.max_seq_len -= 1

    return admit


@bug(
    10,
    "what a preempted request left behind is used when it comes back",
    "preemption is invisible",
    "pilotfish_lfm2.cache:ConvStateCache.claim",
    CONV,
)
def _(real: Any) -> Any:
    def claim(self: Any, request_id: str) -> None:
        memory = self.memory.clone()
        real(self, request_id)
        self.memory.copy_(memory)

    return claim


@bug(
    11,
    "rows of padding write to the last page of the table",
    "passes write their rows only",
    "pilotfish.layers.attention:write_kv",
)
def _(real: Any) -> Any:
    def write(kv: Any, cache: Any, slots: Any, **options: Any) -> None:
        real(kv, cache, slots, **options)
        if len(kv) > len(slots):
            page = slots[-1] // cache.shape[1]
            cache[page, -1] = kv[-1]

    return write


@bug(
    12,
    "a last chunk of three rows is taken for a verify pass",
    CHUNKS,
    "pilotfish.layers.forward_pass:positions_of",
)
def _(real: Any) -> Any:
    def positions(kv: Any, input_row_offsets: Any) -> Any:
        found = real(kv, input_row_offsets)
        if kv.row_counts == (3,) and kv.lengths[0]:
            found = found - torch.tensor([0, 1, 1])
        return found

    return positions


@bug(
    13,
    "hidden states of chunks that are not the last are lost",
    "hidden states survive chunks",
    f"{MODEL}._hidden_states",
)
def _(real: Any) -> Any:
    def hidden(self: Any, state: Any, kept: Any, row_counts: Any) -> Any:
        found = real(self, state, kept, row_counts)
        return found if found is None or found.shape[0] > 4 else found * 0

    return hidden


@bug(
    14,
    "rows of a pass that failed count",
    "exceptions change nothing",
    f"{MANAGER}.reserve",
)
def _(real: Any) -> Any:
    def reserve(self: Any, request_id: str, keys: Any, scratch: int = 0) -> None:
        self.commit(request_id, self.num_reserved(request_id))
        real(self, request_id, keys, scratch)

    return reserve


@bug(
    14,
    "a pass that failed leaves the model's own count ahead",
    "exceptions change nothing",
    f"{MODEL}.execute",
)
def _(real: Any) -> Any:
    behind: list[Any] = []

    def execute(self: Any, inputs: Any) -> Any:
        shifted = attrs.evolve(inputs, tokens=inputs.tokens ^ 1) if behind else inputs
        behind.append(None)
        outputs = real(self, shifted)
        behind.pop()
        return outputs

    return execute


@bug(
    15,
    "a request that gives its pages up loses its newest token",
    "tiny pools do not matter",
    "pilotfish.engine.scheduler:Scheduler.requeue",
)
def _(real: Any) -> Any:
    def requeue(self: Any, request: Any) -> None:
        if request.num_output_tokens:
            request.tokens[-1] ^= 1
        real(self, request)

    return requeue


@bug(
    0,
    "rows past the committed ones are read",
    "scratch is never read",
    f"{MANAGER}.kv_inputs",
)
def _(real: Any) -> Any:
    def inputs(self: Any, names: Any, counts: Any, *args: Any, **options: Any) -> Any:
        found = real(self, names, counts, *args, **options)
        for block in found.blocks:
            table, size = found.lookup_table[0].long(), found.page_size_tokens
            last = sum((found.lengths[0], found.row_counts[0])) - 1
            page, offset = table[last // size], last % size
            if offset + 1 < size:
                block[table[0], 0] = block[table[0], 0] + 0 * block[page, offset + 1]
        return found

    return inputs


@bug(
    0,
    "a model keeps state that it does not declare",
    "declared state is all",
    f"{MODEL}.execute",
)
def _(real: Any) -> Any:
    def execute(self: Any, inputs: Any) -> Any:
        fresh = not hasattr(self, "_seen")
        self._seen = True
        late = inputs.kv_cache_inputs.lengths[0] > 0
        outputs = real(self, inputs)
        return attrs.evolve(outputs, logits=outputs.logits * 2) if fresh and late else outputs

    return execute
