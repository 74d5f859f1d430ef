"""Tests that `make test` leaves to `make test-all`: each takes seconds, and one like it stays.

Knows: names. Of a test with parameters, those that are left out; all where none is named.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from zlib import crc32

import pytest

OPTIONS, WIDTHS = "options are read or refused", "rows are their own at real widths"
"""What they check of one family they check of Llama, LFM2 and Kimi too."""
DRAFTERS = ("dflash", "eagle-1", "small model")
"""Each keeps its promises beside Llama, and Eagle 3 beside a hybrid too, but for its law."""
OF_ENGINES = (
    *("a failing drafter loses nothing", "limits cut the same text", "same seed, same text"),
    *("right drafts count, wrong ones do not", "texts are naive decodings"),
    "tiny pools do not matter",
)
"""What the engine makes of any model: checked of Llama, LFM2 and Kimi."""
OF_KIMI = (
    *("hidden modes agree", "hidden states survive chunks", "no drafter changes a text"),
    *("planned passes equal called layers", "the arithmetics agree", "weights are strict"),
)
"""Kimi's text is a DeepSeek-V3, of which it checks them."""

SLOW: Mapping[str, Collection[str]] = {
    "bench/test_bench.py::test_a_side_in_a_process_of_its_own_gives_the_same_tokens": (),
    "bench/test_bench.py::test_a_peer_is_loaded_again_and_tells_of_itself": (),
    "bench/test_bench.py::test_the_whole_suite_runs_on_a_checkpoint_without_a_tokenizer": (),
    "benchmarks/test_gpu_script.py::"
    "test_a_part_that_fails_is_told_and_the_figures_before_it_stay": (),
    "benchmarks/test_gpu_script.py::test_a_part_that_runs_again_keeps_the_others": (),
    "benchmarks/test_gpu_script.py::test_a_trial_makes_no_page_of_a_gpu": (),
    "benchmarks/test_gpu_script.py::test_every_part_gives_its_figures": (),
    "cli/test_cli_streams.py::test_a_closed_standard_input_is_one_line": (
        "generate {} --prompt -",
    ),
    "dflash/test_dflash_mutants.py::test_without_a_bug_nothing_is_seen": (),
    "dflash/test_dflash_planned.py::test_passes_may_be_laid_down_before_the_first_request": (
        *("all-causal", "causal-inside", "default-ids", "linear", "llama3", "not-causal"),
        *("override", "sliding", "speculators", "speculators-default", "speculators-not-causal"),
        *("speculators-sliding", "swa-inside", "theta", "yarn"),
    ),
    "dflash/test_dflash_ranks.py::test_every_rank_has_the_logits_of_one_device": (
        *("all-causal", "causal-inside", "default-ids", "factors", "linear", "llama3", "longrope"),
        *("mixed", "override", "sliding", "speculators-default", "speculators-not-causal"),
        *(
            "speculators-own",
            "speculators-sliding",
            "speculators-small",
            "theta",
            "unsorted",
            "yarn",
        ),
    ),
    "dflash/test_dflash_triton.py::test_logits_are_as_near_float64_as_eager_torch": (
        *("mixed", "speculators-anchor"),
    ),
    "docs/test_docs.py::test_the_blocks_of_a_page_run": (
        *("docs/draft-files.md", "docs/parallel.md", "docs/scale.md"),
    ),
    "docs/test_scale.py::test_the_tables_are_those_that_inspect_makes": (),
    "docs/test_third_party.py::test_the_examples_own_tests_are_the_conformance_kit": (),
    "docs/test_third_party.py::test_the_installed_example_runs_on_two_ranks_unchanged": (),
    "docs/test_third_party.py::test_the_installed_example_gives_the_tokens_of_transformers": (
        "biased and tied",
    ),
    "eagle/test_eagle_planned.py::test_passes_may_be_laid_down_before_the_first_request": (
        *("eagle1-rope", "eagle1-theta", "eagle1-tied-target", "eagle3-all-tokens"),
        *("eagle3-blocks", "eagle3-boundaries", "eagle3-by-fields", "eagle3-leftover-window"),
        *("eagle3-rope", "eagle3-theta", "speculators-full"),
    ),
    "eagle/test_eagle_ranks.py::test_every_rank_has_the_logits_of_one_device": (
        *("eagle1-bin", "eagle1-rope", "eagle1-theta", "eagle1-tied-target", "eagle3-all-tokens"),
        *("eagle3-blocks", "eagle3-boundaries", "eagle3-by-fields", "eagle3-leftover-window"),
        *("eagle3-narrow", "eagle3-no-norm", "eagle3-norm-output", "eagle3-permuted"),
        *("eagle3-residual", "eagle3-rope", "eagle3-sliding", "eagle3-theta", "eagle3-tied"),
        *("speculators-full", "speculators-new", "speculators-sliding"),
    ),
    "eagle/test_eagle_triton.py::test_drafts_are_the_oracles_on_triton": ("eagle1",),
    "engine/test_turns.py::test_a_real_fork": ("torch",),
    "house/test_demo.py::test_greedy_tokens_equal_transformers_alone": (),
    "house/test_demo.py::test_the_same_seed_gives_the_same_tokens_for_every_mixture": ("float32",),
    "house/test_demo.py::test_scores_have_the_same_bits_for_every_mixture": ("float32",),
    "invariance/test_claims_hold.py::test_rows_are_their_own_or_a_warning_says_that_they_are_not": (
        *("native", "torch"),
    ),
    "invariance/test_claims_hold.py::test_mkl_is_strict_where_rows_are_to_be_their_own": (
        "torch-fastest",
    ),
    "kernels/test_compiles_for_hopper.py::test_it_fits_a_multiprocessor": (
        "mla_attention, float32",
        *(f"paged_attention, float32, head {width}" for width in (64, 128, 576)),
    ),
    "kernels/test_context_kv_write.py::test_no_further_from_float64_than_twice_the_reference": (
        "triton",
    ),
    "kernels/test_paged_attention.py::test_the_first_columns_of_values_are_the_wholes": (
        "torch.float32-triton",
    ),
    "kernels/test_sampling_native.py::test_torchs_choice_of_instructions_changes_nothing": (),
    "kernels/test_short_conv.py::test_pieces_have_the_bits_of_the_whole": (
        *("triton-torch.bfloat16", "triton-torch.float16"),
    ),
    "kimi_k25/test_kimi_k25_attention.py::test_error_is_at_most_twice_that_of_eager_torch": (
        "torch.bfloat16-expanded-triton",
    ),
    "layers/test_moe.py::test_a_rows_bits_do_not_depend_on_the_rows_beside_it": (
        *("False-dtype0-triton", "True-dtype0-triton", "True-dtype1-triton"),
    ),
    "lfm2/test_lfm2_invariance.py::test_any_history_over_shared_prefixes_does": ("width-5",),
    "lfm2/test_lfm2_invariance.py::"
    "test_any_history_of_rejections_equals_feeding_only_what_was_committed": ("width-5",),
    "llama3/test_llama3_triton.py::test_logits_and_bits": ("granite", "phi3-partial"),
    "native/test_drawn_passes.py::test_rows_have_their_bits_in_drawn_models": (),
    "native/test_teams.py::test_another_packages_openmp_beside_torchs_is_not_taken_for_it": (
        "torch/lib",
    ),
    "parallel/test_texts.py::test_the_text_is_that_of_one_device": (
        "DeepseekV3ForCausalLM-latent queries, eagle-1, 2 ranks",
        "LlamaForCausalLM-rope that depends on the prompt, eagle-3, 2 ranks",
        "Phi3ForCausalLM-window, small model, 2 ranks",
        "Qwen3ForCausalLM-yarn, dflash, 2 ranks",
    ),
    "parallel/test_unified.py::test_every_rank_makes_the_text_of_one_device": ("0.0",),
    "parallel/test_unified.py::test_replicas_make_the_texts_of_one_device": ("0.0",),
    "ranks/test_driver_exits.py::test_a_driver_that_ends_without_closing": (
        *("sys.exit(3)", "1 / 0", "del ranks", "own = ranks"),
    ),
    "ranks/test_driver_exits.py::test_a_driver_that_is_killed": (
        *("between passes-as users start it", "in a pass-as users start it"),
        "loading-as users start it",
    ),
    "ranks/test_ranks.py::test_a_rank_that_fails_while_it_loads_is_named_and_all_end": ("SIGSTOP",),
    "ranks/test_torchrun.py::test_a_rank_that_fails_is_named_before_torchrun_ends_all": (
        "SIGKILL",
    ),
    "soak/test_soak.py::test_histories": ("0", "50", "75"),
    "speculation/test_speculative_engine.py::"
    "test_an_exception_at_every_call_leaves_lengths_equal_and_texts_alone": (
        *("True-ToyShiftedDraft", "False-ToyDraft"),
    ),
    "speculation/test_promises.py::test_a_drafter_keeps_the_promise": (
        *(f"hybrid-{one}-residual acceptance keeps the law" for one in (*DRAFTERS, "eagle-3")),
        *(f"llama-{one}-residual acceptance keeps the law" for one in ("eagle-1", "small model")),
        *(f"hybrid-{one}-drafts are the oracle's" for one in DRAFTERS),
        *(f"hybrid-{one}-a warm prefix drafts as a cold one" for one in DRAFTERS),
        *(f"hybrid-{one}-target and draft fail together" for one in DRAFTERS),
    ),
    "state/test_state_conv.py::test_nothing_is_caught_where_nothing_is_planted": (),
    "state/test_state_machine.py::test_nothing_is_caught_where_nothing_is_planted": (),
    "testing/test_conformance.py::test_deepseek_v3": (
        *(OPTIONS, WIDTHS, "every tensor counts", "any number of ranks gives the same bits"),
        *OF_ENGINES,
        *OF_KIMI,
    ),
    "testing/test_conformance.py::test_granite": (OPTIONS,),
    "testing/test_conformance.py::test_lfm2": (WIDTHS,),
    "testing/test_conformance.py::test_mistral": (OPTIONS,),
    "testing/test_conformance.py::test_olmo": (OPTIONS,),
    "testing/test_conformance.py::test_phi3": (
        *(OPTIONS, WIDTHS, "no drafter changes a text"),
        *OF_ENGINES,
    ),
    "testing/test_conformance.py::test_qwen2": (OPTIONS,),
    "testing/test_conformance.py::test_qwen3": (OPTIONS,),
    "testing/test_conformance.py::test_smollm3": (OPTIONS,),
    "testing/test_seeds_matter.py::"
    "test_low_logits_keep_it_and_a_sampler_without_temperature_does_not": ("0.75",),
}

IN_TURN = (
    "dflash/test_dflash_planned.py::test_planned_passes_have_the_bits_of_single_calls",
    "eagle/test_eagle_planned.py::test_planned_passes_have_the_bits_of_single_calls",
    "engine/test_prompt_lengths.py::test_a_prompt_may_end_with_a_partition",
    "lfm2/test_lfm2_invariance.py::test_ragged_batch_equals_singles_and_chunks_equal_the_whole",
    "lfm2/test_lfm2_oracle.py::test_logits_are_as_near_float64_as_eager_torch",
    "llama3/test_llama3_invariance.py::test_ragged_batch_equals_singles_and_chunks_equal_the_whole",
    "llama3/test_llama3_oracle.py::test_logits_are_as_near_float64_as_eager_torch",
    "parallel/test_bits.py::test_logits_are_equal_on_1_2_and_4_ranks",
)
"""Tests whose cases have one of the two dtypes in `make test`, whichever their name draws."""


def mark_slow(items: Sequence[pytest.Item]) -> None:
    """Raises UsageError for a name that fits no test, where all of them are there."""
    found: dict[str, set[str]] = {}
    for item in items:
        name, _, parameters = item.nodeid.removeprefix("tests/").partition("[")
        found.setdefault(name, set()).add(parameters.removesuffix("]"))
        left_out = SLOW.get(name)
        is_left_out = left_out is not None and (not left_out or parameters[:-1] in left_out)
        if is_left_out or (name in IN_TURN and not _is_its_turn(name, parameters[:-1])):
            item.add_marker(pytest.mark.slow)
    lost = list(_lost(found)) if len(found) > MANY else []
    if lost:
        raise pytest.UsageError(f"tests/slow.py names what is no test: {', '.join(lost)}")


DTYPES = ("float32", "bfloat16")
MANY = 1000
"""Tests; fewer are not the whole."""


def _is_its_turn(name: str, parameters: str) -> bool:
    """parameters: of a case, then a dtype."""
    case, _, dtype = parameters.rpartition("-")
    return DTYPES[crc32((name + case).encode()) % len(DTYPES)] == dtype


def _lost(found: Mapping[str, Collection[str]]) -> Iterable[str]:
    for name in IN_TURN:
        if not any(_is_its_turn(name, one) for one in found.get(name, ())):
            yield name
    for name, left_out in SLOW.items():
        if name not in found:
            yield name
        yield from (f"{name}[{one}]" for one in left_out if one not in found.get(name, ()))
