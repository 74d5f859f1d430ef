"""MemoryPlan: what weights, state and a pass will take, decided before anything is allocated.

Knows: bytes. Does not know: how the bytes are used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs

from pilotfish.config.cache import CacheConfig
from pilotfish.errors import CapacityError
from pilotfish.state.specs import PagedStateSpec, SlotStateSpec, StateSpec

CPU_STATE_BYTES = 2 << 30
"""On a CPU the pages take no more unasked: other programs live in that memory too."""
CPU_SHARE = 0.5
DEVICE_SHARE = 0.9
"""Shares of what is left after weights and activations that pages may take unasked."""
SET_BY = "set by "


def available_bytes(device: str) -> int:
    """Bytes that can still be taken on a device such as "cpu" or "cuda:0".

    On a CPU the smaller of the free memory and what the control group leaves; on a GPU what the
    driver calls free, plus what torch holds without using it.
    """
    if device.startswith("cuda"):
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free) + int(idle)
    import psutil

    left = int(psutil.virtual_memory().available)
    return min(left, _control_group_bytes(Path("/sys/fs/cgroup"), left))


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
    max_logit_rows: rows of logits at once; each is float32 and copied twice by the sampler.
    """
    return max_batch_tokens * sum(widths) * itemsize + 3 * 4 * max_logit_rows * vocab_size


@attrs.frozen(kw_only=True)
class MemoryPlan:
    """Bytes of every part, and the number of pages that follows.

    weights: bytes of each model's weights, by role; weight_kinds: the same by form, "q4_1" and
        the like, where that is known.
    leaves: bytes of one page in each paged leaf, and of what slot caches keep at a page's end.
    slots: bytes of each slot cache, all requests.
    images: bytes of what images take, by part; empty for text only.
    activations: bytes of a pass. available: bytes that could be taken when the plan was made.
    num_pages, page_size_tokens: the page pool. max_seq_len: the longest context asked for.
    reason: what decided num_pages.
    """

    device: str
    available: int
    weights: Mapping[str, int]
    activations: int
    leaves: Mapping[str, int]
    slots: Mapping[str, int]
    num_pages: int
    page_size_tokens: int
    max_seq_len: int
    max_batch_size: int
    reason: str
    images: Mapping[str, int] = attrs.field(factory=dict)
    weight_kinds: Mapping[str, Mapping[str, int]] = attrs.field(factory=dict)

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
    ) -> MemoryPlan:
        """Chooses num_pages: the user's number, else what the user's bytes hold, else enough.

        Enough is max_batch_size contexts of max_seq_len, cut to a share of the memory that is left
        (on a CPU also to 2 GiB), but never below one full context.
        specs: the paged and slot caches of all models, the draft's included.
        weights, weight_kinds, activations, available, images: bytes; see the class.
        scratch_tokens: rows a request needs beyond max_seq_len within a step, drafted ones.
        Raises CapacityError when weights, activations and state do not fit: says the bytes needed
        and available, and what to lower.
        """
        size = cache.page_size_tokens
        paged = [spec for spec in specs if isinstance(spec, PagedStateSpec)]
        slotted = [spec for spec in specs if isinstance(spec, SlotStateSpec)]
        leaves = {spec.name: spec.bytes_per_token * size for spec in paged}
        if cache.prefix_caching:
            leaves |= {
                f"{spec.name} at page ends": spec.bytes_per_boundary
                for spec in slotted
                if spec.bytes_per_boundary
            }
        slots = {spec.name: spec.bytes_per_slot * max_batch_size for spec in slotted}
        choice = _PageChoice(
            cache=cache,
            page_bytes=sum(leaves.values()),
            slot_bytes=sum(slots.values()),
            fixed_bytes=sum(weights.values()) + activations + sum((images or {}).values()),
            available=available,
            on_cpu=not device.startswith("cuda"),
            pages_per_context=-(-(max_seq_len + scratch_tokens) // size),
            max_batch_size=max_batch_size,
        )
        num_pages, reason = choice.choose()
        plan = cls(
            device=device,
            available=available,
            weights=MappingProxyType(dict(weights)),
            activations=activations,
            leaves=MappingProxyType(leaves),
            slots=MappingProxyType(slots),
            num_pages=num_pages,
            page_size_tokens=size,
            max_seq_len=max_seq_len,
            max_batch_size=max_batch_size,
            reason=reason,
            images=MappingProxyType(dict(images or {})),
            weight_kinds=MappingProxyType(dict(weight_kinds or {})),
        )
        plan._check_fits()
        return plan

    @property
    def state(self) -> dict[str, int]:
        """Bytes of every cache, by name."""
        return {name: page * self.num_pages for name, page in self.leaves.items()} | dict(
            self.slots
        )

    @property
    def total(self) -> int:
        """Bytes in all."""
        parts = (self.weights, self.state, self.images)
        return self.activations + sum(sum(part.values()) for part in parts)

    @property
    def max_cached_tokens(self) -> int:
        """Rows that all requests together can hold."""
        return self.num_pages * self.page_size_tokens

    def to_json(self) -> dict[str, Any]:
        """The record as plain data."""
        return {
            "device": self.device,
            "available_bytes": self.available,
            "total_bytes": self.total,
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
            "reason": self.reason,
        }

    def __str__(self) -> str:
        lines = [
            f"memory on {self.device}: {_size(self.total)} of {_size(self.available)} available"
        ]
        lines += [
            f"  weights ({name}): {_size(count)}{self._by_kind(name)}"
            for name, count in self.weights.items()
        ]
        lines += [f"  state ({name}): {_size(count)}" for name, count in self.state.items()]
        lines += [f"  images ({name}): {_size(count)}" for name, count in self.images.items()]
        lines.append(f"  activations: {_size(self.activations)}")
        lines.append(
            f"  {self.num_pages} pages of {self.page_size_tokens} tokens hold "
            f"{self.max_cached_tokens} tokens ({self.reason})"
        )
        return "\n".join(lines)

    def _by_kind(self, name: str) -> str:
        kinds = self.weight_kinds.get(name, {})
        listed = ", ".join(f"{kind} {_size(count)}" for kind, count in kinds.items())
        return f" ({listed})" if listed else ""

    def _check_fits(self) -> None:
        if self.total <= self.available:
            return
        parts = {f"weights ({name})": count for name, count in self.weights.items()}
        parts |= {f"state ({name})": count for name, count in self.state.items()}
        parts |= {f"images ({name})": count for name, count in self.images.items()}
        parts["activations"] = self.activations
        listed = ", ".join(f"{name} {_size(count)}" for name, count in parts.items())
        raise CapacityError(
            f"{_size(self.total)} are needed on {self.device} and {_size(self.available)} are "
            f"available: {listed}; {self._advice()}"
        )

    def _advice(self) -> str:
        fixed = sum(self.weights.values())
        if fixed > self.available:
            return "the weights alone do not fit: use a smaller model or dtype, or another device"
        if fixed + sum(self.images.values()) > self.available:
            return "lower image_bytes of the cache's options, or use a smaller dtype"
        if self.reason.startswith(SET_BY):
            return f"lower {self.reason.removeprefix(SET_BY)}, or leave it out"
        return (
            f"lower --max-length (now {self.max_seq_len}{self._longest_that_fits()}), "
            f"max_batch_size (now {self.max_batch_size}) or max_batch_tokens"
        )

    def _longest_that_fits(self) -> str:
        left = self.available - (self.total - sum(self.leaves.values()) * self.num_pages)
        pages = max(0, left) // max(1, sum(self.leaves.values()))
        scratch = self.max_cached_tokens - self.max_seq_len
        longest = pages * self.page_size_tokens - scratch
        return f"; {longest} would fit" if 0 < longest < self.max_seq_len else ""


@attrs.frozen(kw_only=True)
class _PageChoice:
    """How many pages, and why. All sizes in bytes."""

    cache: CacheConfig
    page_bytes: int
    slot_bytes: int
    fixed_bytes: int
    available: int
    on_cpu: bool
    pages_per_context: int
    max_batch_size: int

    def choose(self) -> tuple[int, str]:
        """The number of pages and the reason in words."""
        if self.cache.num_pages is not None:
            return self.cache.num_pages, f"{SET_BY}num_pages"
        if self.cache.memory_bytes is not None:
            return self._from_bytes(self.cache.memory_bytes), f"{SET_BY}memory_bytes"
        wanted = self.pages_per_context * self.max_batch_size
        if self.page_bytes == 0:
            return wanted, f"{self.max_batch_size} full contexts"
        allowed = self._unasked_bytes() // self.page_bytes
        if wanted <= allowed:
            return wanted, f"{self.max_batch_size} full contexts"
        if allowed <= self.pages_per_context:
            return self.pages_per_context, "one full context"
        return allowed, "limited by the share of the memory that pages take unasked"

    def _unasked_bytes(self) -> int:
        left = max(0, self.available - self.fixed_bytes - self.slot_bytes)
        if self.on_cpu:
            return min(int(left * CPU_SHARE), CPU_STATE_BYTES)
        return int(left * DEVICE_SHARE)

    def _from_bytes(self, memory_bytes: int) -> int:
        if self.page_bytes == 0:
            return self.pages_per_context * self.max_batch_size
        num_pages = (memory_bytes - self.slot_bytes) // self.page_bytes
        if num_pages < 1:
            raise CapacityError(
                f"memory_bytes is {memory_bytes}; one page takes {self.page_bytes} bytes and the "
                f"slots {self.slot_bytes}: raise memory_bytes or lower max_batch_size"
            )
        return num_pages


def _control_group_bytes(root: Path, default: int) -> int:
    """What the control group (version 2) still allows; file cache that can be dropped is free."""
    try:
        limit = (root / "memory.max").read_text().strip()
        if limit == "max":
            return default
        used = int((root / "memory.current").read_text())
        rows = (line.split() for line in (root / "memory.stat").read_text().splitlines())
        droppable = next((int(row[1]) for row in rows if row[0] == "inactive_file"), 0)
        return max(0, int(limit) - used + droppable)
    except (OSError, ValueError):
        return default


def _size(num_bytes: int) -> str:
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"
