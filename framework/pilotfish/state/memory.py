"""MemoryPlan: what weights, state and a pass will take, decided before anything is allocated.

Knows: bytes. Does not know: how the bytes are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import attrs

from pilotfish.config.cache import CacheConfig
from pilotfish.errors import CapacityError
from pilotfish.state.copies import NO_COPIES, Copies
from pilotfish.state.page_choice import DEVICE_SHARE, SET_BY, PageChoice, unasked_bytes
from pilotfish.state.specs import PagedStateSpec, SlotStateSpec, StateSpec


def activation_bytes(
    *,
    max_batch_tokens: int,
    widths: Sequence[int],
    itemsize: int,
    vocab_size: int,
    max_logit_rows: int,
) -> int:
    """Bytes of a pass at its fullest.

    widths: of the tensors of max_batch_tokens rows and `itemsize` bytes a number that live at the
        same time in the widest layer (stream, residual, qkv, gate and up, ...).
    max_logit_rows: rows of logits at once.
    """
    return max_batch_tokens * sum(widths) * itemsize + logit_bytes(max_logit_rows, vocab_size)


def logit_bytes(num_rows: int, vocab_size: int) -> int:
    """Bytes of so many rows of logits at once; each is float32 and copied twice by the sampler."""
    return 3 * 4 * num_rows * vocab_size


def bytes_of_pages(specs: Iterable[StateSpec], cache: CacheConfig) -> dict[str, int]:
    """Bytes of one page in each paged cache, and of what slot caches keep at its end."""
    specs = tuple(specs)
    found = {
        spec.name: spec.bytes_per_token * cache.page_size_tokens
        for spec in specs
        if isinstance(spec, PagedStateSpec)
    }
    if cache.prefix_caching:
        found |= {
            f"{spec.name} at page ends": spec.bytes_per_boundary
            for spec in specs
            if isinstance(spec, SlotStateSpec) and spec.bytes_per_boundary
        }
    return found


def bytes_of_slots(specs: Iterable[StateSpec], max_batch_size: int) -> dict[str, int]:
    """Bytes of each slot cache, all requests."""
    slotted = (spec for spec in specs if isinstance(spec, SlotStateSpec))
    return {spec.name: spec.bytes_per_slot * max_batch_size for spec in slotted}


@attrs.frozen(kw_only=True)
class OtherRanks:
    """The ranks beside the first one, whose memory is this machine's too.

    count: how many. weights: bytes of those of each, but for what all ranks map of one file;
    fixed: of all else of each that is no page, its process among it. page_bytes: of a page on each.
    """

    count: int = 0
    weights: int = 0
    fixed: int = 0
    page_bytes: int = 0


ALONE = OtherRanks()


def _plain_repr(sizes: Mapping[str, Any]) -> str:
    return repr(dict(sizes))


@attrs.frozen(kw_only=True)
class MemoryPlan:
    """Bytes of every part, and the number of pages that follows.

    Of several ranks it is the first one's plan: the others hold as much or less of the model, and
    no drafter. They have as many pages, for all ranks run the same pages of the same requests.

    weights: bytes of each model's weights, by role; weight_kinds: the same by form, "q4_1" and
        the like, where that is known.
    paged_caches: bytes of one page in each paged cache, and of what slot caches keep at its end.
    slots: bytes of each slot cache, all requests.
    images: bytes of what images take, by part; empty for text only.
    others: what the other ranks take beside it. copies: what further replicas take.
    activations: bytes of a pass. available: bytes that could be taken when the plan was made.
    num_pages, page_size_tokens: the page pool. max_seq_len: the longest context asked for.
    scratch_tokens: rows that a request needs beyond it within a step.
    reason: what decided num_pages. note: what is smaller than the model allows or than is usual,
        so that it fits; empty where nothing is.
    smaller: which sizes would fit instead, for advice; None where nobody tried others.
    """

    device: str
    available: int
    weights: Mapping[str, int] = attrs.field(repr=_plain_repr)
    activations: int
    paged_caches: Mapping[str, int] = attrs.field(repr=_plain_repr)
    slots: Mapping[str, int] = attrs.field(repr=_plain_repr)
    num_pages: int
    page_size_tokens: int
    max_seq_len: int
    max_batch_size: int
    reason: str
    scratch_tokens: int = 0
    images: Mapping[str, int] = attrs.field(factory=dict, repr=_plain_repr)
    weight_kinds: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict, repr=_plain_repr)
    others: OtherRanks = ALONE
    copies: Copies = NO_COPIES
    note: str = ""
    smaller: tuple[str, ...] | None = None

    @classmethod
    def make(
        cls,
        *,
        weights: Mapping[str, int],
        specs: Sequence[StateSpec],
        cache: CacheConfig,
        max_batch_size: int,
        max_seq_len: int,
        activations: int,
        available: int,
        device: str = "cpu",
        scratch_tokens: int = 0,
        images: Mapping[str, int] | None = None,
        weight_kinds: Mapping[str, Mapping[str, int]] | None = None,
        others: OtherRanks = ALONE,
        copies: Copies = NO_COPIES,
    ) -> MemoryPlan:
        """Chooses num_pages: the user's number, else what the user's bytes hold, else enough.

        Enough is max_batch_size contexts of max_seq_len, cut to a share of the memory that is left
        (on a CPU also to 2 GiB), but never below one full context.
        specs: the paged and slot caches of all models, the draft's included.
        weights, weight_kinds, activations, available, images: bytes; see the class.
        scratch_tokens: rows a request needs beyond max_seq_len within a step, drafted ones.
        Whether it fits is `refuse_unfit`'s word. Raises CapacityError where the user's bytes hold
        no page.
        """
        size = cache.page_size_tokens
        paged_caches, slots = bytes_of_pages(specs, cache), bytes_of_slots(specs, max_batch_size)
        page_bytes, slot_bytes = sum(paged_caches.values()), sum(slots.values())
        fixed = sum(weights.values()) + activations + sum((images or {}).values()) + slot_bytes
        fixed += others.count * (others.weights + others.fixed)
        choice = PageChoice(
            cache=cache,
            page_bytes=page_bytes,
            slot_bytes=slot_bytes,
            all_page_bytes=(page_bytes + others.count * others.page_bytes) * (1 + copies.count),
            left=available - copies.all_of(fixed),
            device=device,
            pages_per_context=-(-(max_seq_len + scratch_tokens) // size),
            max_batch_size=max_batch_size,
        )
        num_pages, reason = choice.choose()
        return cls(
            device=device,
            available=available,
            weights=MappingProxyType(dict(weights)),
            activations=activations,
            paged_caches=MappingProxyType(paged_caches),
            slots=MappingProxyType(slots),
            num_pages=num_pages,
            page_size_tokens=size,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size,
            reason=reason,
            scratch_tokens=scratch_tokens,
            images=MappingProxyType(dict(images or {})),
            weight_kinds=MappingProxyType(dict(weight_kinds or {})),
            others=others,
            copies=copies,
        )

    @property
    def state(self) -> dict[str, int]:
        """Bytes of every cache, by name."""
        return {name: page * self.num_pages for name, page in self.paged_caches.items()} | dict(
            self.slots
        )

    @property
    def num_ranks(self) -> int:
        """Processes that the model lies on, or each of its replicas."""
        return 1 + self.others.count

    @property
    def num_replicas(self) -> int:
        """Replicas on this machine."""
        return 1 + self.copies.count

    @property
    def total(self) -> int:
        """Bytes of the first rank in all."""
        parts = (self.weights, self.state, self.images)
        return self.activations + sum(sum(part.values()) for part in parts)

    @property
    def all_ranks(self) -> int:
        """Bytes of all ranks together, of all replicas."""
        others = self.others
        each = others.weights + others.fixed + others.page_bytes * self.num_pages
        return self.copies.all_of(self.total + others.count * each)

    @property
    def missing(self) -> int:
        """Bytes that are needed and not available; 0 where it fits."""
        return max(0, self.all_ranks - self.available)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page, on all ranks together."""
        one = sum(self.paged_caches.values()) + self.others.count * self.others.page_bytes
        return one * self.num_replicas

    @property
    def left(self) -> int:
        """Bytes that pages may take: what is available beside all else."""
        return self.available - (self.all_ranks - self.page_bytes * self.num_pages)

    @property
    def longest_that_fits(self) -> int:
        """The longest context, in tokens, one of which fits beside all else; 0 for none.

        A tenth of what is left is left alone: other programs live in that memory too.
        """
        if not self.page_bytes:
            return 0 if self.missing else self.max_seq_len
        pages = int(max(0, self.left) * DEVICE_SHARE) // self.page_bytes
        one = -(-(self.max_seq_len + self.scratch_tokens) // self.page_size_tokens)
        return max(0, min(pages, one) * self.page_size_tokens - self.scratch_tokens)

    @property
    def unasked_tokens(self) -> int:
        """Of one context, what the pages hold that the user set, or else are taken unasked."""
        pages = self.num_pages
        if self.page_bytes and not self.reason.startswith(SET_BY):
            pages = unasked_bytes(self.left, self.device) // self.page_bytes
        longest = pages * self.page_size_tokens - self.scratch_tokens
        return max(1, min(self.max_seq_len, longest))

    @property
    def max_cached_tokens(self) -> int:
        """Rows that all requests together can hold."""
        return self.num_pages * self.page_size_tokens

    @property
    def full_contexts(self) -> int:
        """How many requests of max_seq_len tokens the pages hold at once."""
        one = -(-(self.max_seq_len + self.scratch_tokens) // self.page_size_tokens)
        return min(self.max_batch_size, self.num_pages // one)

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            "device": self.device,
            "available_bytes": self.available,
            "total_bytes": self.total,
            "num_ranks": self.num_ranks,
            "num_replicas": self.num_replicas,
            "all_ranks_bytes": self.all_ranks,
            "missing_bytes": self.missing,
            "weights_bytes": dict(self.weights),
            "weight_kinds_bytes": {name: dict(kinds) for name, kinds in self.weight_kinds.items()},
            "activation_bytes": self.activations,
            "state_bytes": self.state,
            "image_bytes": dict(self.images),
            "num_pages": self.num_pages,
            "page_size_tokens": self.page_size_tokens,
            "max_cached_tokens": self.max_cached_tokens,
            "max_seq_len": self.max_seq_len,
            "max_batch_size": self.max_batch_size,
            "full_contexts": self.full_contexts,
            "reason": self.reason,
            "note": self.note,
        }

    def __str__(self) -> str:
        short = f": {size_in_words(self.missing)} are missing" if self.missing else ""
        lines = [
            f"memory on {self.device}{self._of_ranks()}: {size_in_words(self.all_ranks)} of "
            f"{size_in_words(self.available)} available{short}"
        ]
        if self._of_ranks():
            lines.append(f"  of the first rank, which takes the most: {size_in_words(self.total)}")
        lines += [
            f"  weights ({name}): {size_in_words(count)}{self._by_kind(name)}"
            for name, count in self.weights.items()
        ]
        lines += [f"  state ({name}): {size_in_words(count)}" for name, count in self.state.items()]
        lines += [
            f"  images ({name}): {size_in_words(count)}" for name, count in self.images.items()
        ]
        lines.append(f"  activations: {size_in_words(self.activations)}")
        lines.append(
            f"  {self.num_pages} pages of {self.page_size_tokens} tokens hold "
            f"{self.max_cached_tokens} tokens ({self.reason})"
        )
        lines.append(
            f"  up to {self.max_batch_size} requests at once, of up to {self.max_seq_len} tokens; "
            f"of the longest, the pages hold {self.full_contexts}"
        )
        lines += [f"  {self.note}"] * bool(self.note)
        lines += [f"  it does not fit: {self._advice()}"] * bool(self.missing)
        return "\n".join(lines)

    def _of_ranks(self) -> str:
        if not self.copies.count:
            return f", {self.num_ranks} ranks together" if self.others.count else ""
        ranks = f" of {self.num_ranks} ranks" if self.others.count else ""
        return f", {self.num_replicas} replicas{ranks} together"

    def _by_kind(self, name: str) -> str:
        kinds = self.weight_kinds.get(name, {})
        listed = ", ".join(f"{kind} {size_in_words(count)}" for kind, count in kinds.items())
        return f" ({listed})" if listed else ""

    def refuse_unfit(self) -> None:
        """Raises CapacityError when weights, activations and state do not fit: says the bytes
        needed and available, and what to lower.
        """
        if not self.missing:
            return
        parts = {f"weights ({name})": count for name, count in self.weights.items()}
        parts |= {f"state ({name})": count for name, count in self.state.items()}
        parts |= {f"images ({name})": count for name, count in self.images.items()}
        parts["activations"] = self.activations
        listed = ", ".join(f"{name} {size_in_words(count)}" for name, count in parts.items())
        of_first = f"{size_in_words(self.total)} on the first: " if self._of_ranks() else ""
        raise CapacityError(
            f"{size_in_words(self.all_ranks)} are needed on {self.device}{self._of_ranks()} and "
            f"{size_in_words(self.available)} are available: {of_first}{listed}; {self._advice()}"
        )

    def _advice(self) -> str:
        weights = sum(self.weights.values()) + self.others.count * self.others.weights
        fixed = self.copies.all_of(weights)
        if self.copies.count and fixed > self.available:
            return f"lower data_parallel (now {self.num_replicas}): the weights alone do not fit"
        if fixed > self.available:
            return "the weights alone do not fit: use a smaller model or dtype, or another device"
        if fixed + sum(self.images.values()) > self.available:
            return "lower image_bytes of the cache's options, or use a smaller dtype"
        if self.reason.startswith(SET_BY):
            return f"lower {self.reason.removeprefix(SET_BY)}{self._pages_that_fit()}"
        ways = self.smaller or self.shorter
        if ways:
            return f"lower {' or '.join(ways)}"
        return (
            "no smaller sizes that were tried fit (max_length, max_batch_size, max_batch_tokens): "
            "use a smaller model or dtype, or another device"
        )

    @property
    def shorter(self) -> tuple[str, ...]:
        """The length that would fit instead; empty for none."""
        longest = self.longest_that_fits
        if not 0 < longest < self.max_seq_len:
            return ()
        return (would_fit("max_length", self.max_seq_len, longest),)

    def _pages_that_fit(self) -> str:
        page_bytes = sum(self.paged_caches.values())
        pages = self.left // self.page_bytes if page_bytes else 0
        if pages < 1:
            return ", or leave it out: beside all else no page fits"
        if self.reason.endswith("num_pages"):
            return f" (now {self.num_pages}; {pages} would fit), or leave it out"
        return f" ({pages * page_bytes + sum(self.slots.values())} would fit), or leave it out"


def would_fit(name: str, given: int, fitting: int) -> str:
    """Which size to lower, and to what."""
    return f"{name} (now {given}; {fitting} would fit)"


def size_in_words(num_bytes: int) -> str:
    """With a unit: "1.5 GiB"."""
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
