"""Flags that several verbs share, and how they become the records of `pilotfish.config`.

Knows: flag names and their help. Does not know: what a verb does with them.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.parser import add_flag, flag_of
from pilotfish.config.parallel import DISTRIBUTED, ParallelConfig
from pilotfish.errors import ConfigError

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams, SpeculativeConfig

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "cuda:N")
BACKENDS = ("auto", "native", "torch", "triton")
PARALLEL = (
    "tensor_parallel",
    "data_parallel",
    "expert_parallel",
    "reduction_slices",
    "rank_timeout",
    "distributed",
)
ACCEPTANCES = ("coupled", "residual", "relaxed", "synthetic")


def add_model(parser: argparse.ArgumentParser) -> None:
    """MODEL."""
    parser.add_argument("model", metavar="MODEL", help="directory, .gguf file, hub id, or 'demo'")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that decides how a model runs."""
    add_speculation_flags(parser)
    add = partial(add_flag, parser.add_argument_group("how the model runs"), variable=True)
    add("--dtype", f"one of {', '.join(DTYPES)} (default: auto)", known=DTYPES, default="auto")
    add_place_flags(add)
    add(
        "--arithmetic",
        "invariant: bits of a row are its own; portable: on any processor too; fastest: neither "
        "(default: invariant)",
        known=("invariant", "portable", "fastest"),
        default="invariant",
    )
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    add_parallel_flags(parser)
    memory = parser.add_argument_group("memory")
    add = partial(add_flag, memory, variable=True)
    add("--max-length", "tokens of a context (default: the model's own, or what fits)", **whole)
    add("--max-batch-size", "requests run at once (default: 16, or what fits)", **whole)
    add("--max-batch-tokens", "rows of one pass (default: 512)", **whole)
    add("--num-pages", "pages in the cache (default: what fits; docs/tuning.md)", **whole)
    add("--page-size", "tokens in a page (default: 16)", **whole)
    add(
        "--cache-dtype",
        "of keys and values in pages (default: that of the model)",
        known=DTYPES[1:],
    )
    add_flag(memory, "--no-prefix-caching", "compute every prompt anew", action="store_true")


def add_parallel_flags(parser: argparse.ArgumentParser, *, variable: bool = True) -> None:
    """On how many ranks a model runs. variable: see `add_flag`."""
    add = partial(add_flag, parser.add_argument_group("several ranks"), variable=variable)
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--tensor-parallel", "processes that share every layer (default: 1)", **whole)
    add("--data-parallel", "replicas of the model, each of so many (default: 1)", **whole)
    add(
        "--expert-parallel",
        "ranks that share the experts, of one replica or more (default: all of one)",
        **whole,
    )
    add(
        "--reduction-slices",
        "same slices, same text on any ranks that divide them (default: --tensor-parallel)",
        **whole,
    )
    add(
        "--rank-timeout",
        "seconds until a rank that does not answer is given up (default: 60)",
        type=float,
        metavar="SECONDS",
    )
    add(
        "--distributed",
        f"what starts them: {', '.join(DISTRIBUTED)} (default: auto)",
        known=DISTRIBUTED,
        metavar="WHAT",
    )


def add_place_flags(add: Callable[..., None]) -> None:
    """Where it runs, and on which kernels. add: `add_flag` of a group."""
    add(
        "--device",
        f"one of {', '.join(DEVICES)} (default: auto)",
        known=DEVICES[:-1],
        default="auto",
    )
    add(
        "--backend",
        f"kernels: one of {', '.join(BACKENDS)} (default: auto)",
        known=BACKENDS,
        default="auto",
    )


_SHORT = {
    "-m": "the model stands first, without a flag",
    "--model": "the model stands first, without a flag",
    "-p": "wanted --prompt, or the text without a flag",
    "-n": "wanted --max-tokens; --n is how many answers",
    "-c": "wanted --max-length",
    "-t": "wanted OMP_NUM_THREADS=N in the environment",
    "--threads": "wanted OMP_NUM_THREADS=N in the environment",
    "-ngl": "wanted --device: a model runs whole on one",
    "-s": "wanted --seed",
    "--verbose": "wanted --json, whose timing tells the speed; of chat --stats",
}
"""Flags of other programs, and what there is instead."""


def flag_of_ours(name: str) -> str:
    """What a flag that other engines have is here; "" for others."""
    from pilotfish.config.peers import LOADING, NOTHING, SAMPLING

    if name in _SHORT:
        return _SHORT[name]
    answer = {**LOADING, **SAMPLING}.get(name.lstrip("-").replace("-", "_"))
    if answer is None:
        return ""
    is_flag = answer.ours not in ("", NOTHING)
    return f"wanted {flag_of(answer.ours)}" if is_flag else answer.says


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that decides what drafts, how much, and what of it counts."""
    add = partial(add_flag, parser.add_argument_group("speculation"))
    add(
        "--speculative",
        "what drafts: ngram, or another of `pilotfish plugins` (default: nothing)",
        known=_methods,
        metavar="METHOD",
    )
    add("--draft", "checkpoint of the drafter (default: none; ngram reads none)", metavar="MODEL")
    add(
        "--width",
        "drafted tokens a step: a number, or adaptive (default: adaptive)",
        known=("adaptive",),
        metavar="N",
    )
    add(
        "--acceptance",
        f"which drafts count: {', '.join(ACCEPTANCES)} (default: coupled)",
        known=ACCEPTANCES,
        metavar="RULE",
    )
    add(
        "--synthetic-rate",
        "share that 'synthetic' accepts (default: 0.8)",
        type=float,
        metavar="SHARE",
    )
    add(
        "--thinking-tokens",
        "start and end of thinking, for 'relaxed' (default: the checkpoint's)",
        metavar="ID,ID",
    )


def _methods() -> Sequence[str]:
    """Of the installed plugins."""
    from pilotfish.plugins import load_registry

    return load_registry().methods


def add_sampling_flags(parser: argparse.ArgumentParser, *, longest: str = "128") -> None:
    """The flags of SamplingParams that say how one answer is made; what is not given is None.

    longest: what `max_tokens` is then.
    """
    group = parser.add_argument_group(
        "sampling",
        "The checkpoint's generation_config.json says other defaults; this is what they are "
        "without one.",
    )
    plain, add = partial(add_flag, group), partial(add_flag, group, variable=True)
    share: dict[str, Any] = {"type": float, "metavar": "P"}
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    ids: dict[str, Any] = {"action": "extend", "type": _ids, "metavar": "ID,ID"}
    add("--max-tokens", f"most tokens of the answer (default: {longest})", **whole)
    add("--temperature", "0 is greedy (default: 1.0)", type=float, metavar="T")
    add("--top-p", "of the likeliest tokens with this share (default: 1.0)", **share)
    add("--top-k", "of the K likeliest tokens; -1 of all (default: -1)", type=int, metavar="K")
    add("--min-p", "of tokens this likely beside the likeliest (default: 0.0)", **share)
    add("--seed", "same seed, same text (default: drawn)", type=int, metavar="N")
    plain(
        "--stop",
        "text that ends the answer; may be given several times (default: none)",
        action="append",
        metavar="TEXT",
    )
    add("--min-tokens", "the answer does not end before (default: 0)", **whole)
    add("--presence-penalty", "of tokens that were there, -2 to 2 (default: 0.0)", **share)
    add("--frequency-penalty", "for each time they were, -2 to 2 (default: 0.0)", **share)
    add("--repetition-penalty", "divides their logits; above 0 (default: 1.0)", **share)
    plain("--stop-token-ids", "tokens that end the answer (default: none)", **ids)
    plain("--suppress-tokens", "tokens that never come (default: none)", **ids)
    plain(
        "--logit-bias",
        "added to a token's logit (default: none)",
        type=_biases,
        metavar="ID=X,ID=X",
    )
    plain("--ignore-eos", "go on past the model's own end", action="store_true", default=None)
    add(
        "--generation-config",
        "auto, or none: without the checkpoint's defaults of sampling (default: auto)",
        known=("auto", "none"),
        default="auto",
        metavar="WHICH",
    )


def add_answer_flags(group: Any) -> None:
    """The flags of SamplingParams that say what is reported of a prompt, and how often."""
    whole: dict[str, Any] = {"type": int, "metavar": "N"}
    add_flag(group, "--n", "answers to each prompt (default: 1)", **whole)
    add_flag(group, "--logprobs", "likeliest tokens beside each, in JSON (default: none)", **whole)
    add_flag(group, "--prompt-logprobs", "likewise of the prompt (default: none)", **whole)


def _ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}; wanted token ids: ID,ID") from None


def _biases(text: str) -> dict[int, float]:
    try:
        pairs = (part.split("=") for part in text.split(","))
        return {int(token): float(bias) for token, bias in pairs}
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"got {text!r}; wanted token ids and numbers: ID=X,ID=X"
        ) from None


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of SamplingParams that were given."""
    from pilotfish.config import SamplingParams

    names = [field.name for field in attrs.fields(SamplingParams)]
    return _given({name: getattr(args, name, None) for name in names})


def _given(values: dict[str, Any]) -> dict[str, Any]:
    """Those that are not None: a flag that was left out is None."""
    return {name: value for name, value in values.items() if value is not None}


def sampling_params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """The flags as SamplingParams; `defaults` for those not given. Raises RequestError."""
    return attrs.evolve(defaults, **sampling_fields(args))


def check_sampling(args: argparse.Namespace) -> None:
    """Raises RequestError naming a bad flag of sampling, before a model is loaded."""
    from pilotfish.config import SamplingParams

    sampling_params(args, SamplingParams())


def tell_of_defaults(args: argparse.Namespace, defaults: SamplingParams) -> None:
    """One line on stderr: what the checkpoint's defaults change that no flag says."""
    from pilotfish.config import SamplingParams

    plain, given = SamplingParams(), sampling_fields(args)
    changed = [
        f"{field.name} {_shown(getattr(defaults, field.name))}"
        for field in attrs.fields(SamplingParams)
        if field.name not in given and getattr(defaults, field.name) != getattr(plain, field.name)
    ]
    if changed:
        said = f"the checkpoint's generation_config.json says {', '.join(changed)}"
        print(f"pilotfish: {said}; --generation-config none does without", file=sys.stderr)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"of {len(value)} ids" if len(value) > 4 else ",".join(map(str, value))
    return str(value)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as keyword arguments of `LLM`. Raises ConfigError naming a bad one."""
    from pilotfish.config import CacheConfig
    from pilotfish.config.cache import PAGE_SIZES

    if args.page_size not in (None, *PAGE_SIZES):
        raise ConfigError(
            f"--page-size is {args.page_size}; wanted one of {', '.join(map(str, PAGE_SIZES))}"
        )
    cache = {"dtype": args.cache_dtype, "page_size_tokens": args.page_size}
    cache |= {"num_pages": args.num_pages, "prefix_caching": not args.no_prefix_caching}
    names = ("dtype", "device", "backend", "arithmetic", "max_length", "max_batch_size")
    return {
        "draft": args.draft,
        "speculative": speculative_config(args),
        "cache": CacheConfig(**_given(cache)),
        **_given({name: getattr(args, name) for name in (*names, "max_batch_tokens")}),
        **_given({name: getattr(args, name) for name in PARALLEL}),
    }


def parallel_config(args: argparse.Namespace) -> ParallelConfig:
    """The flags of `add_parallel_flags`. Raises ConfigError naming a bad one."""
    return ParallelConfig(**_given({name: getattr(args, name) for name in PARALLEL}))


_SIZES = ("max_length", "max_batch_size", "max_batch_tokens", "num_pages", *PARALLEL)
_IN_PYTHON = {
    "pass token ids": "give prompt_token_ids in a line of --input-file",
    "as chat_template": "with --chat-template",
    "pass another with": "give another with",
    "pass one of the names with": "give one of the names with",
    "pass a plain prompt": "give a plain prompt (generate --prompt)",
    "or plain prompts": "or plain prompts (generate --prompt)",
    "take generation_config 'none'": "give --generation-config none",
    "use stop_token_ids": "give --stop-token-ids",
    "cache=CacheConfig(memory_bytes=...)": "--num-pages",
    "cache=CacheConfig(dtype=...)": "--cache-dtype",
    "cache=CacheConfig(page_size_tokens=...)": "--page-size",
    "draft= and speculative=; see SpeculativeConfig": "--draft and --speculative",
    "draft=, and speculative= for the method": "--draft, and --speculative for the method",
    "device='cuda:0' for instance": "--device cuda:0 for instance",
    "backend='native', 'torch' or 'triton'": "--backend native, torch or triton",
}
"""Advice for callers of `LLM` -> the command line's."""


def with_flags(text: str) -> str:
    """A message in which sizes that have flags are called by them, and so is advice."""
    for said, meant in _IN_PYTHON.items():
        text = text.replace(said, meant)
    for name in _SIZES:
        flag = flag_of(name)
        text = re.sub(rf"({flag}, )?(?<![\w./-]){name}(?![\w/-])", flag, text)
    return text


def speculative_config(args: argparse.Namespace) -> SpeculativeConfig | None:
    """The flags of speculation. Raises ConfigError naming a bad one, or one without a method."""
    from pilotfish.config import SpeculativeConfig

    names = ("width", "acceptance", "synthetic_rate", "thinking_tokens")
    given = _given({name: getattr(args, name) for name in names})
    for name, read in (("width", _width), ("thinking_tokens", _pair)):
        if name in given:
            given[name] = read(given[name])
    for name, rule in (("synthetic_rate", "synthetic"), ("thinking_tokens", "relaxed")):
        if name in given and given.get("acceptance") != rule:
            flag = flag_of(name)
            raise ConfigError(f"{flag} is read by --acceptance {rule} only; wanted that too")
    if args.speculative is not None:
        return SpeculativeConfig(method=args.speculative, **given)
    if given:
        flag = flag_of(next(iter(given)))
        raise ConfigError(f"{flag} was given without a method; wanted --speculative METHOD too")
    return None


def _width(text: str) -> int | str:
    from pilotfish.config.speculative import MOST

    if text == "adaptive":
        return text
    try:
        width = int(text)
    except ValueError:
        width = 0
    if not 1 <= width <= MOST:
        in_python = "; batch sizes are Python only: SpeculativeConfig(width={1: 6})"
        hint = in_python if ":" in text else ""
        raise ConfigError(
            f"--width is {text!r}; wanted adaptive, or 1 to {MOST} drafted tokens a step{hint}"
        )
    return width


def _pair(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--thinking-tokens is {text!r}; wanted two token ids with a comma: START,END"
        ) from None
