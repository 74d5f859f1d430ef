"""MemoryPlan: the choice of num_pages, and the refusal of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotfish.config import CacheConfig
from pilotfish.errors import CapacityError
from pilotfish.platform.memory import _control_group_bytes, available_bytes
from pilotfish.state import (
    KVCacheParams,
    MemoryPlan,
    SlotStateSpec,
    activation_bytes,
)
from pilotfish.state.copies import Copies
from pilotfish.state.memory import OtherRanks
from pilotfish.state.page_choice import CPU_STATE_BYTES

KV = KVCacheParams(num_layers=2, num_kv_heads=4, head_dim=64, dtype="bfloat16").spec
BYTES_PER_TOKEN = 2 * 2 * 4 * 64 * 2
GIB = 1 << 30


def plan(**changes: object) -> MemoryPlan:
    options: dict[str, object] = {
        "weights": {"target": 100 << 20},
        "specs": [KV],
        "cache": CacheConfig(),
        "max_batch_size": 4,
        "max_seq_len": 1000,
        "activations": 1 << 20,
        "available": 8 * GIB,
    }
    return MemoryPlan.make(**{**options, **changes})  # type: ignore[arg-type]


def fitting(**changes: object) -> MemoryPlan:
    """A plan that fits. Raises CapacityError for one that does not."""
    made = plan(**changes)
    made.refuse_unfit()
    return made


def test_enough_pages_for_a_full_batch_of_full_contexts() -> None:
    made = plan()
    assert made.num_pages == 4 * 63
    assert made.max_cached_tokens == 4 * 1008
    assert made.state == {"kv": 4 * 1008 * BYTES_PER_TOKEN}
    assert made.total == (101 << 20) + made.state["kv"]


def test_drafted_rows_and_other_leaves_are_counted() -> None:
    draft = KVCacheParams(num_layers=1, num_kv_heads=1, head_dim=8, name="draft").spec
    conv = SlotStateSpec(name="conv", num_layers=3, slot_shape=(16, 2), dtype="float32")
    made = plan(specs=[KV, draft, conv], scratch_tokens=16)
    assert made.num_pages == 4 * 64
    assert made.state["draft"] == 4 * 1024 * draft.bytes_per_token
    assert made.state["conv"] == 4 * 3 * 32 * 4


def test_what_a_slot_cache_keeps_at_page_ends_is_counted_per_page() -> None:
    """Only where prefixes are shared; pages then cost more, so memory_bytes holds fewer."""
    conv = SlotStateSpec(
        name="conv",
        num_layers=3,
        slot_shape=(16, 2),
        boundary_shape=(2, 64),
        row_shape=(64,),
        dtype="float32",
    )
    assert (conv.bytes_per_boundary, conv.bytes_per_row) == (3 * 128 * 4, 3 * 64 * 4)
    made = plan(specs=[KV, conv])
    assert made.state["conv at page ends"] == made.num_pages * 3 * 128 * 4
    cache = CacheConfig(memory_bytes=10 << 20)
    shared = plan(specs=[KV, conv], cache=cache)
    alone = plan(specs=[KV, conv], cache=CacheConfig(memory_bytes=10 << 20, prefix_caching=False))
    assert "conv at page ends" not in alone.state
    assert shared.num_pages < alone.num_pages
    assert sum(shared.state.values()) <= 10 << 20


def test_the_users_number_wins() -> None:
    made = plan(cache=CacheConfig(num_pages=7, memory_bytes=1))
    assert (made.num_pages, made.reason) == (7, "set by num_pages")


def test_the_users_bytes_are_filled_but_not_exceeded() -> None:
    made = plan(cache=CacheConfig(memory_bytes=10 << 20))
    assert made.state["kv"] <= 10 << 20 < made.state["kv"] + 16 * BYTES_PER_TOKEN
    with pytest.raises(CapacityError, match="memory_bytes is 5; one page takes 32768 bytes"):
        plan(cache=CacheConfig(memory_bytes=5))


def test_a_cpu_keeps_to_its_share_and_a_gpu_takes_more() -> None:
    wide = {"max_batch_size": 4096}
    assert plan(**wide).state["kv"] <= CPU_STATE_BYTES
    small = plan(available=GIB, **wide)
    assert small.state["kv"] <= (GIB - (101 << 20)) // 2 < small.state["kv"] + (1 << 15)
    assert plan(device="cuda:0", **wide).state["kv"] > 3 * CPU_STATE_BYTES


def test_one_full_context_is_kept_where_it_fits() -> None:
    made = plan(max_seq_len=1_500_000)
    assert made.state["kv"] > CPU_STATE_BYTES
    assert made.max_cached_tokens == 1_500_000
    assert made.reason == "one full context"


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"available": 50 << 20}, "the weights alone do not fit"),
        ({"max_seq_len": 10_000_000}, r"lower max_length \(now 10000000; [0-9]+ would fit\)"),
        (
            {"cache": CacheConfig(num_pages=10**9)},
            r"lower num_pages \(now 1000000000; \d+ would fit\), or leave it out",
        ),
        (
            {"cache": CacheConfig(memory_bytes=10**12)},
            r"lower memory_bytes \(\d+ would fit\), or leave it out",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_advice(changes: dict[str, object], advice: str) -> None:
    with pytest.raises(CapacityError, match=advice) as caught:
        fitting(**changes)
    assert "needed on cpu and" in str(caught.value)
    assert "weights (target) 100 MiB" in str(caught.value)


def test_the_advised_length_fits() -> None:
    with pytest.raises(CapacityError) as caught:
        fitting(max_seq_len=10_000_000)
    advised = int(str(caught.value).split(" would fit")[0].split()[-1])
    assert fitting(max_seq_len=advised).max_cached_tokens >= advised


@given(
    available=st.integers(0, 64 * GIB),
    weights=st.integers(0, 32 * GIB),
    max_seq_len=st.integers(1, 2_000_000),
    max_batch_size=st.integers(1, 300),
    page_size_tokens=st.sampled_from((1, 2, 4, 8, 16, 32, 64, 128)),
    device=st.sampled_from(("cpu", "cuda:1")),
)
def test_a_plan_fits_and_holds_a_full_context_or_is_refused(
    *,
    available: int,
    weights: int,
    max_seq_len: int,
    max_batch_size: int,
    page_size_tokens: int,
    device: str,
) -> None:
    options = {
        "available": available,
        "weights": {"target": weights},
        "max_seq_len": max_seq_len,
        "max_batch_size": max_batch_size,
        "cache": CacheConfig(page_size_tokens=page_size_tokens),
        "device": device,
    }
    context = -(-max_seq_len // page_size_tokens) * page_size_tokens * BYTES_PER_TOKEN
    fits = weights + (1 << 20) + context <= available
    try:
        made = fitting(**options)
    except CapacityError:
        assert not fits
        return
    assert fits
    assert made.total <= available
    assert made.max_cached_tokens >= max_seq_len
    assert made.max_cached_tokens <= max_batch_size * (max_seq_len + page_size_tokens)


def test_a_plan_that_does_not_fit_says_what_is_missing() -> None:
    made = plan(available=50 << 20)
    assert made.missing == made.total - made.available > 0
    assert made.to_json()["missing_bytes"] == made.missing
    first, *_, last = str(made).splitlines()
    assert first.endswith("of 50 MiB available: 52.97 MiB are missing")
    assert last == (
        "  it does not fit: the weights alone do not fit: use a smaller model or dtype, or another "
        "device"
    )
    assert plan().missing == 0
    assert "missing" not in str(plan())


def test_the_longest_context_leaves_a_tenth_of_what_is_left() -> None:
    left = 900 * 16 * BYTES_PER_TOKEN
    made = plan(available=(101 << 20) + left, max_seq_len=20_000, scratch_tokens=5)
    assert made.missing
    assert made.longest_that_fits == 810 * 16 - 5
    roomy = plan(max_seq_len=1000, scratch_tokens=5)
    assert 1000 <= roomy.longest_that_fits < 1016
    assert plan(available=101 << 20).longest_that_fits == 0


def test_a_model_without_pages_needs_none_of_the_memory() -> None:
    conv = SlotStateSpec(name="conv", num_layers=1, slot_shape=(4,), dtype="float32")
    made = plan(specs=[conv])
    assert (made.num_pages, made.state) == (4 * 63, {"conv": 64})


def test_the_record_is_plain_data_and_prints() -> None:
    made = plan()
    data = json.loads(json.dumps(made.to_json()))
    assert data["total_bytes"] == made.total
    assert data["state_bytes"] == {"kv": made.state["kv"]}
    assert data["num_pages"] == 252
    lines = str(made).splitlines()
    assert lines[0] == "memory on cpu: 108.9 MiB of 8 GiB available"
    assert "  weights (target): 100 MiB" in lines


def test_the_forms_of_weights_are_told_where_they_are_known() -> None:
    kinds = {"target": {"q4_1": 90 << 20, "float32": 10 << 20}}
    made = plan(weight_kinds=kinds)
    assert "  weights (target): 100 MiB (q4_1 90 MiB, float32 10 MiB)" in str(made).splitlines()
    assert made.to_json()["weight_kinds_bytes"] == kinds
    assert made.total == plan().total


def test_activations_are_rows_times_widths_and_three_copies_of_logits() -> None:
    counted = activation_bytes(
        max_batch_tokens=10, widths=(3, 4), itemsize=2, vocab_size=50, max_logit_rows=2
    )
    assert counted == 10 * 7 * 2 + 3 * 2 * 50 * 4


# Several ranks on one machine

OTHERS = OtherRanks(count=3, weights=50 << 20, fixed=2 << 20, page_bytes=16 * BYTES_PER_TOKEN)


def test_other_ranks_take_their_memory_too() -> None:
    alone, made = plan(), plan(others=OTHERS)
    assert (alone.num_ranks, made.num_ranks) == (1, 4)
    assert made.num_pages == alone.num_pages
    assert made.total == alone.total == alone.all_ranks
    assert made.all_ranks == made.total + 3 * ((52 << 20) + made.num_pages * OTHERS.page_bytes)
    data = made.to_json()
    assert (data["num_ranks"], data["all_ranks_bytes"]) == (4, made.all_ranks)
    first, second, *_ = str(made).splitlines()
    assert first == "memory on cpu, 4 ranks together: 288.5 MiB of 8 GiB available"
    assert second == "  of the first rank, which takes the most: 108.9 MiB"


def test_pages_are_as_many_as_all_ranks_hold() -> None:
    """Unasked they take half of what is left, 2 GiB at most, of all ranks together."""
    wide = {"max_seq_len": 20_000, "max_batch_size": 100}
    for available in (GIB, 64 * GIB):
        alone, made = (
            plan(available=available, **wide),
            plan(available=available, others=OTHERS, **wide),
        )
        assert made.page_bytes == 4 * alone.page_bytes
        left = available - (101 << 20) - 3 * (52 << 20)
        assert made.num_pages == min(left // 2, CPU_STATE_BYTES) // made.page_bytes
    bytes_of_each = CacheConfig(memory_bytes=10 << 20)
    assert plan(cache=bytes_of_each, others=OTHERS).num_pages == (
        plan(cache=bytes_of_each).num_pages
    )


def test_all_ranks_that_do_not_fit_are_refused_together() -> None:
    enough = plan(others=OTHERS, cache=CacheConfig(num_pages=100)).all_ranks
    options = {"others": OTHERS, "cache": CacheConfig(num_pages=100)}
    fitting(available=enough, **options)
    with pytest.raises(
        CapacityError, match=r"on cpu, 4 ranks together and .* on the first: w"
    ) as e:
        fitting(available=enough - 1, **options)
    assert "lower num_pages (now 100; 99 would fit)" in str(e.value)
    with pytest.raises(CapacityError, match="the weights alone do not fit"):
        fitting(available=200 << 20, others=OTHERS)
    longest = plan(available=400 << 20, max_seq_len=10**6, others=OTHERS).longest_that_fits
    assert not plan(available=400 << 20, max_seq_len=longest, others=OTHERS).missing


def test_further_replicas_take_as_much_again_but_for_what_all_map() -> None:
    copies = Copies(count=2, mapped=40 << 20, process=7 << 20)
    one, made = plan(others=OTHERS), plan(others=OTHERS, copies=copies)
    assert (made.num_replicas, made.num_ranks, made.num_pages) == (3, 4, one.num_pages)
    assert made.total == one.total
    assert made.all_ranks == 3 * (one.all_ranks + (7 << 20)) - 2 * (40 << 20)
    assert made.page_bytes == 3 * one.page_bytes
    assert made.to_json()["num_replicas"] == 3
    first, second, *_ = str(made).splitlines()
    assert first.startswith("memory on cpu, 3 replicas of 4 ranks together: ")
    assert second.startswith("  of the first rank, which takes the most: ")
    assert str(plan(copies=copies)).startswith("memory on cpu, 3 replicas together: ")
    wide = {"max_seq_len": 20_000, "max_batch_size": 100, "available": GIB}
    assert plan(copies=copies, **wide).left == GIB - (3 * (101 + 7) - 2 * 40 << 20)
    fits = CacheConfig(num_pages=100)
    enough = plan(copies=copies, cache=fits).all_ranks
    fitting(available=enough, copies=copies, cache=fits)
    with pytest.raises(CapacityError, match=r"3 replicas together .* on the first: .*lower num_p"):
        fitting(available=enough - 1, copies=copies, cache=fits)
    with pytest.raises(CapacityError, match=r"lower data_parallel \(now 3\)"):
        fitting(available=150 << 20, copies=copies)


def test_available_bytes_of_this_machine() -> None:
    import psutil

    assert 0 < available_bytes("cpu") <= psutil.virtual_memory().total


def test_a_control_group_limits_what_is_available(tmp_path: Path) -> None:
    assert _control_group_bytes(tmp_path, 99) == 99, "no control group"
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _control_group_bytes(tmp_path, 99) == 99
    (tmp_path / "memory.max").write_text("1000\n")
    assert _control_group_bytes(tmp_path, 99) == 400
