"""Flags that several verbs share, and how they become the records of `pilotfish.config`.

Knows: flag names and their help. Does not know: what a verb does with them.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from typing import TYPE_CHECKING, Any

from pilotfish.errors import ConfigError

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams, SpeculativeConfig
    from pilotfish.engine import LLM

_SAMPLING = (
    *("max_tokens", "min_tokens", "temperature", "top_k", "top_p", "min_p", "seed"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty"),
    *("stop", "stop_token_ids", "ignore_eos"),
)


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """MODEL and everything that decides how it runs."""
    parser.add_argument("model", metavar="MODEL", help="directory, .gguf file, hub id, or 'demo'")
    add_speculation_flags(parser)
    group = parser.add_argument_group("model")
    group.add_argument(
        "--dtype", default="auto", metavar="D", help="auto, float32, bfloat16, float16"
    )
    group.add_argument("--device", default="auto", metavar="D", help="auto, cpu, cuda, cuda:N")
    group.add_argument(
        "--backend", default="auto", metavar="B", help="kernels: auto, native, torch, triton"
    )
    group.add_argument(
        "--arithmetic",
        default="invariant",
        metavar="A",
        help="invariant (default), portable or fastest",
    )
    group.add_argument("--max-length", type=int, metavar="N", help="longest context in tokens")
    group.add_argument("--max-batch-size", type=int, metavar="N", help="requests run at once")
    group.add_argument("--max-batch-tokens", type=int, metavar="N", help="rows of one pass")
    group.add_argument("--cache-dtype", metavar="D", help="of keys and values in pages")
    group.add_argument("--page-size", type=int, metavar="N", help="tokens in a cache page")
    group.add_argument("--num-pages", type=int, metavar="N", help="pages in the cache")
    group.add_argument("--no-prefix-caching", action="store_true", help="share no pages")


def add_speculation_flags(parser: argparse.ArgumentParser) -> None:
    """Everything that decides what drafts, how much, and what of it counts."""
    group = parser.add_argument_group("speculation")
    group.add_argument("--draft", metavar="D", help="draft checkpoint")
    group.add_argument("--speculative", metavar="METHOD", help="see `pilotfish plugins`")
    group.add_argument("--width", metavar="W", help="drafted tokens a step: adaptive, or a number")
    group.add_argument(
        "--acceptance", metavar="A", help="coupled (default), residual, relaxed, synthetic"
    )
    group.add_argument(
        "--synthetic-rate", type=float, metavar="R", help="share that 'synthetic' accepts (0.8)"
    )
    group.add_argument(
        "--thinking-tokens", metavar="ID,ID", help="start and end of thinking, for 'relaxed'"
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of SamplingParams; a flag that is not given keeps the model's default."""
    group = parser.add_argument_group(
        "sampling", "What is not given is as the checkpoint's generation_config.json says, or else:"
    )
    group.add_argument("--max-tokens", type=int, metavar="N", help="tokens of the answer (128)")
    group.add_argument("--min-tokens", type=int, metavar="N", help="no end before (0)")
    group.add_argument("--temperature", type=float, metavar="T", help="0 is greedy (1.0)")
    group.add_argument("--top-k", type=int, metavar="K", help="-1 keeps all (-1)")
    group.add_argument("--top-p", type=float, metavar="P", help="in (0, 1] (1.0)")
    group.add_argument("--min-p", type=float, metavar="P", help="in [0, 1] (0.0)")
    group.add_argument("--presence-penalty", type=float, metavar="P", help="in [-2, 2] (0.0)")
    group.add_argument("--frequency-penalty", type=float, metavar="P", help="in [-2, 2] (0.0)")
    group.add_argument("--repetition-penalty", type=float, metavar="P", help="above 0 (1.0)")
    group.add_argument("--seed", type=int, metavar="S", help="drawn when not given")
    group.add_argument("--stop", action="append", metavar="STR", help="may be given several times")
    group.add_argument(
        "--stop-token-id",
        action="append",
        type=int,
        dest="stop_token_ids",
        metavar="ID",
        help="may be given several times",
    )
    group.add_argument("--ignore-eos", action="store_true", default=None)
    group.add_argument(
        "--generation-config",
        default="auto",
        metavar="G",
        help="auto (default), or none: without the checkpoint's defaults",
    )


def sampling_fields(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of SamplingParams that were given."""
    given = {name: getattr(args, name) for name in _SAMPLING}
    return {name: value for name, value in given.items() if value is not None}


def sampling_params(args: argparse.Namespace, defaults: SamplingParams) -> SamplingParams:
    """The flags as SamplingParams; `defaults` for those not given. Raises RequestError."""
    import attrs

    return attrs.evolve(defaults, **sampling_fields(args))


def check_sampling(args: argparse.Namespace) -> None:
    """Raises RequestError naming a bad flag of sampling, before a model is loaded."""
    from pilotfish.config import SamplingParams

    sampling_params(args, SamplingParams())


def tell_of_defaults(args: argparse.Namespace, defaults: SamplingParams) -> None:
    """One line on stderr: what the checkpoint's defaults change that no flag says."""
    import attrs

    from pilotfish.config import SamplingParams

    plain, given = SamplingParams(), sampling_fields(args)
    changed = [
        f"{field.name} {_shown(getattr(defaults, field.name))}"
        for field in attrs.fields(SamplingParams)
        if field.name not in given and getattr(defaults, field.name) != getattr(plain, field.name)
    ]
    if changed:
        print(
            f"pilotfish: the checkpoint's generation_config.json says {', '.join(changed)}; "
            "--generation-config none does without",
            file=sys.stderr,
        )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"of {len(value)} ids" if len(value) > 4 else ",".join(map(str, value))
    return str(value)


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as keyword arguments of `LLM`. Raises ConfigError naming a bad one."""
    from pilotfish.config import CacheConfig
    from pilotfish.config.cache import PAGE_SIZES

    cache: dict[str, Any] = {"prefix_caching": not args.no_prefix_caching}
    if args.cache_dtype is not None:
        cache["dtype"] = args.cache_dtype
    if args.page_size is not None:
        if args.page_size not in PAGE_SIZES:
            raise ConfigError(
                f"--page-size is {args.page_size}; wanted one of {', '.join(map(str, PAGE_SIZES))}"
            )
        cache["page_size_tokens"] = args.page_size
    if args.num_pages is not None:
        cache["num_pages"] = args.num_pages
    options: dict[str, Any] = {
        "draft": args.draft,
        "speculative": speculative_config(args),
        "dtype": args.dtype,
        "device": args.device,
        "backend": args.backend,
        "arithmetic": args.arithmetic,
        "max_length": args.max_length,
        "cache": CacheConfig(**cache),
    }
    for name in ("max_batch_size", "max_batch_tokens"):
        if getattr(args, name) is not None:
            options[name] = getattr(args, name)
    return options


_SIZES = ("max_length", "max_batch_size", "max_batch_tokens", "num_pages")


def with_flags(text: str) -> str:
    """A message in which sizes that have flags are called by them."""
    for name in _SIZES:
        flag = "--" + name.replace("_", "-")
        text = re.sub(rf"({flag}, )?(?<![\w./-]){name}(?![\w/-])", flag, text)
    return text


def speculative_config(args: argparse.Namespace) -> SpeculativeConfig | None:
    """The flags of speculation. Raises ConfigError naming a bad one, or one without a method."""
    from pilotfish.config import SpeculativeConfig

    given: dict[str, Any] = {
        "width": None if args.width is None else _width(args.width),
        "acceptance": args.acceptance,
        "synthetic_rate": args.synthetic_rate,
        "thinking_tokens": None if args.thinking_tokens is None else _pair(args.thinking_tokens),
    }
    given = {name: value for name, value in given.items() if value is not None}
    for name, rule in (("synthetic_rate", "synthetic"), ("thinking_tokens", "relaxed")):
        if name in given and given.get("acceptance") != rule:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is read by --acceptance {rule} only; wanted that too")
    if args.speculative is not None:
        return SpeculativeConfig(method=args.speculative, **given)
    if given:
        flag = "--" + next(iter(given)).replace("_", "-")
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
        hint = ""
        if ":" in text:
            hint = "; batch sizes are Python only: SpeculativeConfig(width={1: 6})"
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


def load_llm(args: argparse.Namespace) -> LLM:
    """The model that the flags describe, ready to generate."""
    from pilotfish.engine import LLM
    from pilotfish.engine.planning import NOTE

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", NOTE)  # it is said here, on one line
        llm = LLM(args.model, generation_config=args.generation_config, **engine_options(args))
    if llm.memory_plan.note:
        print(f"pilotfish: {llm.memory_plan.note}", file=sys.stderr)
    return llm
