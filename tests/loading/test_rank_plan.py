"""What one of several ranks holds and reads: planned from headers, and measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import attrs
import pytest

from parallel.parallel_sessions import CACHE
from parallel.test_bits import ARCHITECTURES, REGISTRY, tiny
from pilotfish.config import CacheConfig, ParallelConfig, SpeculativeConfig
from pilotfish.engine.loading_bar import LoadingBar
from pilotfish.errors import CapacityError, ConfigError
from pilotfish.loading import planning
from pilotfish.loading.planning import PROCESS_BYTES
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.loading.prepared import Prepared
from pilotfish.loading.rank_plan import RankPass, replicated, sizes_that_agree, whole_specs
from pilotfish.parallel.group import Groups
from pilotfish.parallel.threads import ThreadTransport, run_ranks, thread_groups
from pilotfish.speculation.draft_model import DraftNetwork
from pilotfish.state import PagedStateSpec
from pilotfish.weights import StoredRows
from speculation.pairs import METHODS, Shelf

OF_REPLICAS = ("data_parallel", "distributed")


def prepared(model: Path, size: int, rank: int = 0, **options: Any) -> Prepared:
    more = {name: options.pop(name, None) for name in ("expert_parallel", "reduction_slices")}
    more |= {name: options.pop(name) for name in OF_REPLICAS if name in options}
    config = ParallelConfig(tensor_parallel=size, **more)
    return prepare_from_options(
        str(model),
        registry=REGISTRY,
        parallel=config,
        groups=Groups.of_rank(rank, config),
        **{"device": "cpu", "cache": CACHE, "dtype": "float32", **options},
    )


def bytes_given(found: Prepared, patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that loading hands to the layers, of each parameter with memory of its own."""
    network, given = found.model.network, dict[str, int]()  # type: ignore[attr-defined]
    own = found.share.parameter_bytes.keys()
    assign = network.assign

    def counting(name: str, tensor: Any, backend: Any) -> None:
        blocks = [tensor]
        if isinstance(tensor, StoredRows):
            blocks = [part.blocks for part in tensor.parts]
            blocks += [part.scale for part in tensor.parts if part.scale is not None]
        if name in own:
            given[name] = sum(block.nbytes for block in blocks)
        assign(name, tensor, backend)

    patch.setattr(network, "assign", counting, raising=False)
    state = found.load()
    for spec in found.model.state:
        if isinstance(spec, PagedStateSpec):
            assert state.paged_cache(spec.name).num_bytes == found.memory_plan.state[spec.name]
    return given


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_caches_of_a_rank_are_those_planned(
    architecture: str, size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, totals = tiny(architecture, tmp_path), []
    config = ParallelConfig(tensor_parallel=size)

    def run(groups: Groups) -> tuple[int, int]:
        found = prepare_from_options(
            str(model),
            registry=REGISTRY,
            parallel=config,
            groups=groups,
            device="cpu",
            cache=CACHE,
            dtype="float32",
        )
        given, planned = bytes_given(found, monkeypatch), found.share.parameter_bytes
        assert given == {name: count for name, count in planned.items() if count}
        plan = found.memory_plan
        assert plan.weights["model"] == sum(planned.values())
        return plan.weights["model"], plan.total

    for weights, total in run_ranks(thread_groups(config), run):
        totals.append(total)
        assert weights <= prepared(model, 1).memory_plan.weights["model"]
    assert max(totals) == totals[0], "no rank takes more than the first, whose plan all take"


def test_a_shard_that_is_counted_whole_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison can fail."""
    found = prepared(tiny("LlamaForCausalLM", tmp_path), 2)
    other = attrs.evolve(found.share)
    vars(other)["shards"] = {}
    planned = other.parameter_bytes
    for group in (found.groups.tensor, found.groups.expert):
        group.transport = ThreadTransport(0, [[]], 1.0)
    assert bytes_given(found, monkeypatch) != planned


# All ranks on one machine


def with_memory(patch: pytest.MonkeyPatch, num_bytes: int) -> None:
    patch.setattr(planning, "available_bytes", lambda device: num_bytes)


def test_the_machine_must_hold_all_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("LlamaForCausalLM", tmp_path)
    plan = prepared(model, 4).memory_plan
    assert plan.num_ranks == 4
    each = (plan.all_ranks - plan.total) // 3 - PROCESS_BYTES
    assert plan.weights["model"] < each < plan.total
    with_memory(monkeypatch, plan.all_ranks)
    assert prepared(model, 4).memory_plan == attrs.evolve(plan, available=plan.all_ranks)
    with_memory(monkeypatch, plan.all_ranks - 1)
    with pytest.raises(CapacityError, match=r"4 ranks together.* on the first") as caught:
        prepared(model, 4)
    assert "lower num_pages (now 64; 63 would fit)" in str(caught.value)


def test_every_rank_has_its_part_of_a_draft(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", tmp_path)
    plain = prepared(model, 2).memory_plan
    found = prepared(model, 2, draft=str(model), speculative="small_model")
    drafted = found.memory_plan
    each = plain.weights["model"]
    assert drafted.weights == {"model": each, "draft": each}
    pages = drafted.paged_caches
    assert pages["small_model.kv"] == pages["kv"] == sum(plain.paged_caches.values())
    assert drafted.others.page_bytes == 2 * plain.others.page_bytes
    assert drafted.others.weights == plain.others.weights + each
    logits = drafted.activations - plain.activations
    assert drafted.others.fixed - plain.others.fixed == logits > 0
    assert {name.partition(".")[0] for name in replicated(found)} == {"draft", "layers", "norm"}
    assert [spec.name for spec in whole_specs(found)] == ["kv", "small_model.kv"]


def test_a_drafter_without_a_network_is_on_the_first_rank_alone(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", tmp_path)
    plain = prepared(model, 2).memory_plan
    drafted = prepared(model, 2, speculative="ngram").memory_plan
    assert (drafted.others, drafted.weights) == (plain.others, plain.weights)


@pytest.mark.parametrize("drafter", ["eagle-1", "eagle-3", "dflash"])
def test_weights_of_a_draft_are_those_planned(
    drafter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values that two passes read are held twice, and counted twice."""
    shelf = Shelf(tmp_path, REGISTRY)
    model, draft = shelf.target("LlamaForCausalLM", "plain"), str(shelf.draft(drafter))
    options: dict[str, Any] = {"draft": draft, "speculative": METHODS[drafter]}
    totals = []
    for rank in range(4):
        found = prepared(model, 4, rank, **options)
        assert found.draft is not None
        assert found.draft.share is not None
        given: dict[str, int] = {}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DraftNetwork, "assign", counting(given))
            found.load_proposer(REGISTRY)
        planned = found.draft.share.parameter_bytes
        assert given == {name: count for name, count in planned.items() if count}
        assert found.memory_plan.weights["draft"] == sum(planned.values())
        totals.append(sum(planned.values()))
    whole = prepared(model, 1, **options).memory_plan.weights["draft"]
    assert max(totals) == totals[0] < whole <= sum(totals)


def counting(given: dict[str, int]) -> Any:
    """An `assign` that notes the bytes of every tensor."""
    assign = DraftNetwork.assign

    def noting(network: DraftNetwork, name: str, tensor: Any, backend: Any) -> None:
        parts = [part.blocks for part in tensor.parts] if isinstance(tensor, StoredRows) else ()
        given[name] = sum(part.nbytes for part in parts or (tensor,))
        assign(network, name, tensor, backend)

    return noting


def test_the_sizes_that_agree_are_those_of_the_draft_too(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, REGISTRY)  # 8 heads; the draft has 4
    model, options = tiny("LlamaForCausalLM", tmp_path), {"speculative": "eagle"}
    assert sizes_that_agree(prepared(model, 1, reduction_slices=8)) == [1, 2, 4, 8]
    drafted = prepared(model, 1, reduction_slices=8, draft=str(shelf.draft("eagle-3")), **options)
    assert sizes_that_agree(drafted) == [1, 2, 4]


def test_what_all_ranks_map_whole_is_in_memory_once(tmp_path: Path) -> None:
    """Latents of MLA: every rank holds them, in the pages of the same file."""
    model = tiny("DeepseekV3ForCausalLM", tmp_path)
    found = prepared(model, 4)
    share, plan = found.share, found.memory_plan
    assert 0 < share.mapped_whole <= sum(share.replicated.values())
    assert plan.others.weights == plan.weights["model"] - share.mapped_whole
    on_torch = prepared(model, 4, backend="torch")
    assert on_torch.share.mapped_whole == 0


def test_replicas_take_their_memory_on_this_machine_and_share_what_they_map(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", tmp_path)
    one, made = prepared(model, 2), prepared(model, 2, data_parallel=3)
    plan, alone = made.memory_plan, one.memory_plan
    assert (plan.total, plan.num_pages) == (alone.total, alone.num_pages)
    assert plan.all_ranks == (3 * (alone.all_ranks + PROCESS_BYTES) - 2 * made.share.mapped)
    assert 0 < made.share.mapped < 2 * plan.weights["model"]
    elsewhere = prepared(model, 2, data_parallel=3, distributed="ray").memory_plan
    assert elsewhere.all_ranks == alone.all_ranks


def test_the_same_context_has_the_same_pages_on_any_number_of_ranks(tmp_path: Path) -> None:
    model, pages = tiny("LlamaForCausalLM", tmp_path), set()
    for size in (1, 2):
        plan = prepared(model, size, cache=CacheConfig()).memory_plan
        pages.add((plan.num_pages, plan.page_bytes))
    assert len(pages) == 1
    four = prepared(model, 4, cache=CacheConfig()).memory_plan
    assert four.page_bytes == 2 * min(pages)[1], "2 kv heads on 4 ranks: each is on two"


def test_bytes_of_the_cache_are_of_each_rank(tmp_path: Path) -> None:
    cache = CacheConfig(memory_bytes=1 << 20)
    model = tiny("LlamaForCausalLM", tmp_path)
    alone, shared = (prepared(model, size, cache=cache).memory_plan for size in (1, 2))
    assert shared.num_pages == 2 * alone.num_pages


def test_a_pass_is_narrower_on_more_ranks_and_counts_what_they_exchange(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", tmp_path, intermediate_size=4096)
    one, two = prepared(model, 1), prepared(model, 2)
    inner, hidden, rows = 4096, 64, 512
    exchanged = 4 * rows * hidden * (1 + 2)  # its own term, and those of both
    assert two.share.exchanged_bytes(rows) == exchanged
    saved = 4 * rows * 3 * inner // 2
    assert two.memory_plan.activations == one.memory_plan.activations - saved + exchanged
    sliced = prepared(model, 1, reduction_slices=4)
    terms = 4 * rows * hidden * 4
    assert sliced.memory_plan.activations == one.memory_plan.activations + terms


# What is read


def test_the_bar_counts_what_a_rank_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepared(tiny("LlamaForCausalLM", tmp_path), 2)
    for group in (found.groups.tensor, found.groups.expert):
        group.transport = ThreadTransport(0, [[]], 1.0)
    whole = sum(info.num_bytes for info in found.weights.infos.values())
    read = found.share.bytes_read
    with LoadingBar(*found.sources, bytes_read=read, shown=True) as bar:
        assert bar._bar.total == sum(read.values()) < 0.6 * whole
        found.load(bar.counted)
        assert bar._bar.n == bar._bar.total
    with LoadingBar(*found.sources, shown=True) as bar:
        assert bar._bar.total == whole


# How many agree, and what would fit


def test_the_sizes_that_agree_are_those_that_the_layers_accept(tmp_path: Path) -> None:
    model = tiny("LlamaForCausalLM", tmp_path)  # 8 heads, 2 kv heads, columns 64 and 96
    assert sizes_that_agree(prepared(model, 1, reduction_slices=4)) == [1, 2, 4]
    assert sizes_that_agree(prepared(model, 8)) == [1, 2, 4, 8]
    assert sizes_that_agree(prepared(model, 1, reduction_slices=16)) == [1, 2, 4, 8]
    assert sizes_that_agree(prepared(model, 1, reduction_slices=4, backend="torch")) == []


@pytest.mark.parametrize(
    ("architecture", "options", "said"),
    [
        ("LlamaForCausalLM", {"size": 3}, "8 query and 2 kv heads over 3 ranks; wanted tensor_par"),
        ("LlamaForCausalLM", {"size": 1, "reduction_slices": 5}, "wanted a divisor of 64: 4 or 8"),
        (
            "DeepseekV3ForCausalLM",
            {"size": 8},
            "experts over 8 ranks; with tensor_parallel=8 wanted expert_parallel one of 1, 2, 4",
        ),
    ],
)
def test_what_does_not_divide_is_refused_with_what_would_fit(
    architecture: str, options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    more = {"n_routed_experts": 12} if architecture.startswith("Deep") else {}
    with pytest.raises(ConfigError, match=re.escape(said)) as refused:
        prepared(tiny(architecture, tmp_path, **more), **options)
    assert ("all layers take" in str(refused.value)) == ("expert_parallel" not in said)


@pytest.mark.parametrize(
    ("options", "said", "fits"),
    [
        ({"size": 2}, "tensor_parallel 1 or 3", {"size": 3}),
        ({"size": 9}, "tensor_parallel 1 or 3", {"size": 3}),
        (
            {"size": 1, "reduction_slices": 7},
            "with tensor_parallel 1 all layers take reduction_slices 1, 2, 3 or 6",
            {"size": 1, "reduction_slices": 6},
        ),
        (  # the layers would, and the file's blocks of 32 columns cannot be cut so
            {"size": 1, "reduction_slices": 8},
            "with tensor_parallel 1 all layers take reduction_slices 1, 2, 3 or 6",
            {"size": 1, "reduction_slices": 2},
        ),
        (
            {"size": 3, "reduction_slices": 9},
            "with tensor_parallel 3 all layers take reduction_slices 3 or 6",
            {"size": 3, "reduction_slices": 6},
        ),
        ({"size": 2, "reduction_slices": 6}, "1 or 3 with reduction_slices 6", {"size": 3}),
        (
            {"size": 2, "reduction_slices": 8},
            "tensor_parallel 1 or 3 with as many reduction_slices",
            {"size": 3, "reduction_slices": 3},
        ),
    ],
)
def test_what_all_layers_would_take_is_said_and_true(
    options: dict[str, Any], said: str, fits: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=f"all layers take .*{said}$|; {said}$"):
        prepared(Path("demo"), **options)
    prepared(Path("demo"), **fits)


def test_a_draft_that_does_not_divide_is_whole_on_the_first_rank(tmp_path: Path) -> None:
    """But where the text would depend on how many ranks share it: there it is refused by name."""
    model, draft = tiny("LlamaForCausalLM", tmp_path), Shelf(tmp_path, REGISTRY).draft("eagle-3")
    found = prepared(model, 8, draft=str(draft), speculative="eagle").draft
    assert found is not None
    assert found.share is None
    residual = SpeculativeConfig(method="eagle", acceptance="residual")
    said = f"the draft {draft}: joining.attention: 4 query and 2 kv heads over 8 ranks; wanted"
    with pytest.raises(ConfigError, match=re.escape(f"{said} tensor_parallel one of 1, 2, 4")):
        prepared(model, 8, draft=str(draft), speculative=residual)


# Floors


def test_a_floor_is_bytes_over_bandwidths(tmp_path: Path) -> None:
    found = prepared(tiny("LlamaForCausalLM", tmp_path, tie_word_embeddings=False), 2)
    share = found.share
    one = RankPass(share, 16, 16)
    table = share.parameter_bytes["embed_tokens.weight"]
    assert one.weights_read == (found.memory_plan.weights["model"] - table,) * 2
    least, most = one.floor_ms(2.0, 0.5)
    assert (
        least == most == pytest.approx((one.weights_read[0] / 2.0 + one.received[0] / 0.5) * 1e-6)
    )
    tied = prepared(tiny("LlamaForCausalLM", tmp_path / "tied", tie_word_embeddings=True), 2)
    assert RankPass(tied.share, 16, 16).weights_read[0] == tied.memory_plan.weights["model"]


def test_of_experts_few_or_many_are_read(tmp_path: Path) -> None:
    found = prepared(tiny("DeepseekV3ForCausalLM", tmp_path), 2)
    share = found.share
    experts = {n: c for n, c in share.parameter_bytes.items() if ".experts." in n}
    (layer, *others) = share.mixtures.values()
    own, chosen = len(layer.experts.own), layer.router.routing.num_chosen
    assert (own, len(experts)) == (4, 2 * 8 * (1 + len(others)))
    dense = sum(c for n, c in share.parameter_bytes.items() if ".experts." not in n)
    dense -= share.parameter_bytes["embed_tokens.weight"]
    all_experts = sum(experts.values())
    least, most = RankPass(share, 16, 16).weights_read
    assert most == dense + all_experts
    assert least == dense + all_experts // own * -(-chosen // 2)
