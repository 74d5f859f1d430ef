"""Flags of sampling, and how they become SamplingParams.

Knows: flag names and their help. Does not know: what a verb does with them.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.parser import add_flag, given

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams


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
    return given({name: getattr(args, name, None) for name in names})


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

    plain, said = SamplingParams(), sampling_fields(args)
    changed = [
        f"{field.name} {_shown(getattr(defaults, field.name))}"
        for field in attrs.fields(SamplingParams)
        if field.name not in said and getattr(defaults, field.name) != getattr(plain, field.name)
    ]
    if changed:
        line = f"the checkpoint's generation_config.json says {', '.join(changed)}"
        print(f"pilotfish: {line}; --generation-config none does without", file=sys.stderr)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"of {len(value)} ids" if len(value) > 4 else ",".join(map(str, value))
    return str(value)
