"""`pilotfish inspect`: what a model is and what it will take. Reads headers, never weights.

Knows: how to show what `loading` decided. Does not know: how it was decided.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pilotfish.cli.advice import with_flags
from pilotfish.cli.inspect_ranks import describe_ranks, lines_of_ranks
from pilotfish.cli.options import add_model, add_model_flags, engine_options
from pilotfish.cli.parser import add_flag
from pilotfish.cli.rank_flags import PARALLEL
from pilotfish.config.parallel import ParallelConfig
from pilotfish.config.speculative import MOST
from pilotfish.errors import CheckpointError, ConfigError, RequestError

if TYPE_CHECKING:
    from pilotfish.loading.draft import PreparedDraft
    from pilotfish.loading.prepared import Prepared
    from pilotfish.tokenization.tokenizer import Tokenizer


_FROM_THE_CONFIG = (
    "none; what follows is from the config alone, in one dtype but for INT4 experts that it names, "
    "without what only the files tell: other packed weights, a vision tower"
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Declares the verb."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="show route, kernels and memory plan",
        description="Show what a model is, how it runs and what it takes. Reads no weights.",
        examples=(
            "pilotfish inspect demo",
            "pilotfish inspect organisation/name --max-length 8192 --max-batch-size 4",
            "pilotfish inspect MODEL --draft DRAFT --speculative METHOD --json",
            "pilotfish inspect MODEL --tensor-parallel 8 --bandwidth 3350 --link 450",
        ),
    )
    add_model(parser)
    parser.add_argument("--json", action="store_true", help="one object")
    add_model_flags(parser)
    group = parser.add_argument_group("floors", "The least time that a pass can take.")
    speed: dict[str, Any] = {"type": float, "metavar": "GB/S"}
    add_flag(group, "--bandwidth", "of the memory of a rank's device (default: no floors)", **speed)
    add_flag(group, "--link", "into a rank from the others (default: no floors)", **speed)
    return parser


def run(args: argparse.Namespace) -> int:
    """Runs the verb; returns the exit code."""
    for name in ("bandwidth", "link"):
        given = getattr(args, name)
        if given is not None and not 0 < given < float("inf"):
            raise ConfigError(f"--{name} is {given}; wanted GB/s, above 0")
    prepared = prepare(args)
    if args.bandwidth is None and args.link is not None:
        raise ConfigError("--link was given without --bandwidth; wanted both, or none")
    if args.bandwidth is not None and args.link is None and prepared.memory_plan.num_ranks > 1:
        raise ConfigError("--bandwidth was given without --link; several ranks want both, or none")
    facts = describe(prepared)
    facts["ranks"] = describe_ranks(prepared, args.bandwidth, args.link)
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        _show(facts, prepared)
    if prepared.absent is not None:
        raise prepared.absent
    return 0


def prepare(args: argparse.Namespace) -> Prepared:
    """All that is decided of a run with these flags."""
    from pilotfish.loading.prepare import prepare_from_options

    options = engine_options(args)
    parallel = ParallelConfig(**{name: options.pop(name) for name in PARALLEL if name in options})
    return prepare_from_options(args.model, must_fit=False, parallel=parallel, **options)


def _show(facts: dict[str, Any], prepared: Prepared) -> None:
    for name, value in facts.items():
        if name not in ("memory", "ranks", "warnings") and value is not None:
            print(f"{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")
    for warning in facts["warnings"]:
        print(f"warning: {warning}")
    print(with_flags(str(prepared.memory_plan)))
    if facts["ranks"] is not None:
        print("\n".join(lines_of_ranks(facts["ranks"])))


def describe(prepared: Prepared) -> dict[str, Any]:
    """The facts as plain data."""
    from pilotfish.loading.arithmetic import probe_arithmetic
    from pilotfish.tokenization.files import describe_tokenizer
    from pilotfish.tokenization.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(prepared.checkpoint)  # what cannot be read is refused here too
    checkpoint, route, config = prepared.checkpoint, prepared.route, prepared.model.config
    arithmetic = probe_arithmetic(prepared)
    return {
        "model": checkpoint.model,
        "path": str(checkpoint.path),
        "format": _format(prepared),
        "architecture": route.hf_architecture,
        "plugin": str(route.plugin),
        "modalities": sorted(prepared.modalities),
        "tokenizer": describe_tokenizer(checkpoint),
        "speculative": None if route.speculator is None else route.speculator.method,
        "draft": _describe_draft(prepared),
        "thinking_tokens": _thinking_tokens(prepared),
        "weights": None if prepared.absent is None else _FROM_THE_CONFIG,
        "parameters": prepared.num_parameters,
        "dtype": prepared.dtype,
        "device": str(prepared.device),
        "kernels": prepared.backend.name,
        "instruction_set": _instruction_set(prepared),
        "no_native_kernels": _why_not_native(prepared),
        "linear_weights": arithmetic.linear_kinds,
        "arithmetic": arithmetic.described,
        "row_multiple": arithmetic.row_multiple,
        "max_seq_len": config.get_max_seq_len(),
        "vocab_size": prepared.vocab_size,
        "warnings": [with_flags(text) for text in _warnings(prepared, tokenizer)],
        "memory": prepared.memory_plan.to_json(),
    }


def _warnings(prepared: Prepared, tokenizer: Tokenizer | None) -> Iterator[str]:
    """What of prompts or of defaults would be refused."""
    from pilotfish.config.generation import sampling_of
    from pilotfish.tokenization.tokenizer import need_tokenizer

    checkpoint, vocab_size = prepared.checkpoint, prepared.vocab_size
    try:
        found = need_tokenizer(tokenizer, checkpoint.path)
        if found.vocab_size > vocab_size:
            yield (
                f"the tokenizer has {found.vocab_size} ids and the model knows {vocab_size}: text "
                f"in which one from {vocab_size} on comes is refused"
            )
        found.render_chat("hello")
    except RequestError as error:
        yield str(error)
    try:
        sampling_of(checkpoint.generation_config, vocab_size)
    except CheckpointError as error:
        yield str(error)


def _format(prepared: Prepared) -> str:
    """Of the weights' files; torch's are read by the names that safetensors have."""
    if prepared.absent is not None:
        return "none"
    is_torchs = getattr(prepared.weights, "is_torchs", False)
    return "torch" if is_torchs else prepared.checkpoint.weight_format


def _instruction_set(prepared: Prepared) -> str | None:
    """What native kernels run with; None for other kernels."""
    from pilotfish.kernels.native import library

    found = library() if prepared.backend.name == "native" else None
    return None if found is None else found.instruction_set


def _why_not_native(prepared: Prepared) -> str | None:
    """Why a CPU runs other kernels than native ones, where that is not for the user's wish."""
    from pilotfish.kernels.native import why_not

    on_cpu = prepared.device.type == "cpu"
    return (why_not() or None) if on_cpu and prepared.backend.name != "native" else None


def _thinking_tokens(prepared: Prepared) -> list[int] | None:
    """Where relaxed acceptance begins and ends; the checkpoint's own unless they were given."""
    options = prepared.pipeline_config.speculative
    return None if options is None or not options.thinking_tokens else list(options.thinking_tokens)


def _describe_draft(prepared: Prepared) -> str | None:
    """Where the drafter comes from, what it reads of the target, and its own config."""
    draft, model = prepared.draft, prepared.pipeline_config.draft_model
    if draft is None:
        return None
    source = "no checkpoint" if model is None else f"{model.path} ({model.architecture})"
    reads = draft.config.return_hidden_states.name
    boundaries = list(draft.config.aux_hidden_state_layers)
    layers = f", boundaries {boundaries}" if boundaries else ""
    return (
        f"{source}; plugin {prepared.route.speculator_plugin}; reads {reads}{layers}; "
        f"{_describe_width(draft)}{_describe_reach(prepared)}"
    )


def _describe_width(draft: PreparedDraft) -> str:
    """What the largest width is: the user's, the draft's own limit, or the adaptive one's."""
    most, limit = draft.policy.most, draft.config.max_draft_tokens
    if draft.speculative.width != "adaptive":
        return f"width {most}"
    if limit is not None:
        whose = "that the draft was made for" if limit <= MOST else "of any draft"
        return f"width adaptive, to {most} tokens a step, the most {whose}"
    return (
        f"width adaptive, to {most} tokens a step; the draft has no limit of its own, and --width "
        f"takes up to {MOST}"
    )


def _describe_reach(prepared: Prepared) -> str:
    """Where drafting ends before the target's context does."""
    assert prepared.draft is not None
    limit = getattr(prepared.draft.config, "get_max_seq_len", None)
    context = prepared.model.config.get_max_seq_len()
    if limit is None or limit() >= context:
        return ""
    return f"; drafts in the first {limit()} tokens of a context of {context}, and not after them"
