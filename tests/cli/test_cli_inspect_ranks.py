"""`pilotfish inspect` of several ranks: from files, from a config alone, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pilotfish.cli import main
from pilotfish.plugins import load_registry
from pilotfish.testing import save_tiny

LLAMA = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"},
    **{"hidden_size": 16384, "num_hidden_layers": 126, "intermediate_size": 53248},
    **{"num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256},
    **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False},
}
D, L, INNER, V, H, KV = 16384, 126, 53248, 128256, 128, 8
MOE = {"num_attention_heads": 8, "num_key_value_heads": 8}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Llama-3.1-405B's config, alone."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "config.json").write_text(json.dumps(LLAMA))
    return str(folder)


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny DeepSeek-V3, with its files."""
    folder = tmp_path_factory.mktemp("experts")
    return str(save_tiny("DeepseekV3ForCausalLM", "latent queries", folder, load_registry(), MOE))


def inspect(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> dict[str, Any]:
    assert main(["inspect", *argv, "--json", "--device", "cpu"]) == code
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(["inspect", *argv, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("pilotfish: error: ")


@pytest.mark.parametrize("size", [8, 16])
def test_a_config_alone_is_planned_by_the_formula(
    size: int, large: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--tensor-parallel", str(size), "--max-length", "8192", "--num-pages", "8192")
    speeds = ("--bandwidth", "3350", "--link", "450")
    facts = inspect(capsys, large, *flags, *speeds, code=2)
    ranks, width = facts["ranks"], D // H
    kv_heads = max(1, KV // size)
    attention = D * width * (2 * H // size + 2 * kv_heads)
    layer = attention + 3 * D * INNER // size + 2 * D
    table = V // size * D
    weights = 2 * (L * layer + 2 * table + D)
    assert ranks["bytes_per_rank"]["weights"] == weights
    caches = 8192 * 16 * L * 2 * kv_heads * width * 2
    assert ranks["bytes_per_rank"]["caches"] == caches == facts["memory"]["state_bytes"]["kv"]
    assert ranks["ranks_per_kv_head"] == ({} if size == 8 else {"kv": 2})
    assert ranks["replicated_weights_bytes"] == {
        "layers.N.attention_norm.weight": 2 * L * D,
        "layers.N.mlp_norm.weight": 2 * L * D,
        "norm.weight": 2 * D,
    }
    assert ranks["same_bits_on"] == [n for n in (1, 2, 4, 8, 16) if n <= size]
    assert ranks["expert_parallel"] is None
    for name, rows, logit_rows in (("decode", 16, 16), ("prefill", 512, 1)):
        one = ranks["passes"][name]
        sums, embedded = 2 * L * rows * D // size * 4, rows * D * 2  # a part of each, on each
        assert one["collectives"]["all_to_all"] == {
            "calls": 2 * L,
            "bytes_sent": [(size - 1) * sums] * 2,
        }
        assert one["collectives"]["all_gather"] == {
            "calls": 2 * L + 1,
            "bytes_sent": [(size - 1) * (sums + embedded)] * 2,
        }
        logits = logit_rows * V // size * 4
        assert one["collectives"]["gather"] == {"calls": 1, "bytes_sent": [logits] * 2}
        assert one["bytes_received"] == [(size - 1) * (2 * sums + embedded + logits)] * 2
        read = weights - 2 * table
        assert one["weights_bytes_read"] == [read] * 2
        floor = (read / 3350 + one["bytes_received"][0] / 450) / 1e6
        assert ranks["floors_ms"][name] == [pytest.approx(floor, abs=1e-3)] * 2


def test_experts_are_told_as_ranges(experts: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--tensor-parallel", "4", "--expert-parallel", "2")
    ranks = inspect(capsys, experts, *flags, "--reduction-slices", "8")["ranks"]
    assert (ranks["tensor_parallel"], ranks["expert_parallel"]) == (4, 2)
    assert ranks["same_bits_on"] == [1, 2, 4, 8]
    assert ranks["replicated_caches"] == ["kv"]
    assert "floors_ms" not in ranks
    assert any("router" in name for name in ranks["replicated_weights_bytes"])
    assert not any("experts" in name for name in ranks["replicated_weights_bytes"])
    least, most = ranks["passes"]["decode"]["collectives"]["all_gather"]["bytes_sent"]
    assert least < most
    whole = inspect(capsys, experts, "--tensor-parallel", "4", "--expert-parallel", "1")["ranks"]
    assert any("experts" in name for name in whole["replicated_weights_bytes"])


def test_rows_that_replicas_exchange_are_told(
    experts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """D = 64 and 2 bytes a number; 3 of 8 experts a row, of which a rank has 2."""
    flags = ("--tensor-parallel", "2", "--data-parallel", "2", "--expert-parallel", "4")
    ranks = inspect(capsys, experts, *flags, "--dtype", "bfloat16")["ranks"]
    sizes = ("tensor_parallel", "data_parallel", "expert_parallel")
    assert tuple(ranks[name] for name in sizes) == (2, 2, 4)
    one = ranks["passes"]["decode"]["collectives"]["all_to_all_rows"]
    row, own, others = 64 * 2, 16 // 2, 16 * 2 - 16 // 2
    assert one["calls"] == 2
    assert one["bytes_sent"] == [own * row, (own * 3 + others * 2) * row]
    assert main(["inspect", experts, "--device", "cpu", *flags]) == 0
    assert "ranks: 2 in each of 2 replicas, experts over 4 of them, " in capsys.readouterr().out


def test_the_text_says_the_same(large: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--tensor-parallel", "16", "--bandwidth", "3350", "--link", "450")
    assert main(["inspect", large, *flags, "--device", "cpu", "--max-length", "8192"]) == 2
    shown = capsys.readouterr().out.splitlines()
    (head,) = [line for line in shown if line.startswith("memory on cpu")]
    assert head.startswith("memory on cpu, 16 ranks together: ")
    assert any(line.startswith("  of the first rank, which takes the most: ") for line in shown)
    assert "ranks: 16, sums in 16 slices" in shown
    assert "  the same bits on 1, 2, 4, 8, 16 ranks, with --reduction-slices 16" in shown
    assert "  every kv head of the cache 'kv' is on 2 ranks" in shown
    assert [line.split(": ")[0] for line in shown if "floor" in line] == [
        "  floor of decode of 16 rows, from bytes of weights and links",
        "  floor of prefill of 512 rows, from bytes of weights and links",
    ]


def test_one_rank_says_nothing_of_ranks_unless_it_is_asked(
    experts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect(capsys, experts)["ranks"] is None
    assert main(["inspect", experts, "--device", "cpu"]) == 0
    assert "ranks" not in capsys.readouterr().out
    ranks = inspect(capsys, experts, "--bandwidth", "50")["ranks"]
    read = ranks["passes"]["decode"]["weights_bytes_read"]
    assert ranks["floors_ms"]["decode"] == [pytest.approx(b / 50e6, abs=1e-3) for b in read]
    assert ranks["passes"]["decode"]["collectives"] == {}
    assert main(["inspect", experts, "--device", "cpu", "--reduction-slices", "4"]) == 0
    shown = capsys.readouterr().out
    assert "ranks: 1, experts over 1 of them, sums in 4 slices" in shown
    assert "a rank sends in decode of 16 rows: nothing" in shown


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        (("--tensor-parallel", "48"), "--tensor-parallel one of 1, 2, 4, 8, 16, 32, 64, 128"),
        (("--reduction-slices", "3"), "wanted a divisor of 16384: 2 or 4"),
        (("--tensor-parallel", "4", "--reduction-slices", "6"), "wanted a multiple of 4"),
        (("--tensor-parallel", "0"), "wanted a whole number >= 1"),
        (("--tensor-parallel", "2", "--bandwidth", "9"), "several ranks want both"),
        (("--link", "9"), "without --bandwidth"),
        (("--bandwidth", "0"), "--bandwidth is 0.0; wanted GB/s, above 0"),
        (("--bandwidth", "nan"), "wanted GB/s, above 0"),
        (("--bandwidth", "9", "--link", "inf"), "--link is inf; wanted GB/s, above 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    flags: tuple[str, ...], wanted: str, large: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wanted in said(capsys, large, *flags)


def test_experts_that_do_not_divide_are_refused_with_what_would_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {**MOE, "n_routed_experts": 12}
    model = save_tiny("DeepseekV3ForCausalLM", "latent queries", tmp_path, load_registry(), more)
    line = said(capsys, str(model), "--tensor-parallel", "8")
    assert "12 experts over 8 ranks" in line
    assert line.endswith("--expert-parallel one of 1, 2, 4")
