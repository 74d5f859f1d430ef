"""Reading a Hugging Face config strictly: what must be there, what may be, what it may say.

Knows: attribute access and how a refusal is worded. Does not know: any option.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pilotfish.config.checks import is_int, is_number
from pilotfish.config.model import ModelConfig
from pilotfish.config.pipeline import PipelineConfig
from pilotfish.errors import ConfigError

NO_LIMIT = 2**31 - 1
"""The longest context of a model that has no limit of its own: what counts its tokens has one."""
CHECKPOINT = "the checkpoint's config"
_MOST_SHOWN = 80
MOST_PADDING = 512
"""Rows by which two embeddings of one tokenizer may differ: each model rounds them up its own way.
Larger differences are other tokenizers, or tokens that were added."""

TRAINING_ONLY = frozenset(
    {
        *("embed_requires_grad", "has_no_defaults_at_init", "enable_sp_ulysses"),
        *("draft_attn_kernel", "ttt_steps", "ttt_step_loss_decay", "use_off_policy_tokens"),
        *("loss_fn", "loss_decay_gamma", "num_anchors", "max_anchors", "pure_draft_prefix_len"),
        *("emb_dim", "gru_hidden_dim", "auf", "lambda_base_start", "lambda_base_decay_ratio"),
    }
)
"""What drafts' configs say of how they were trained; it changes nothing of what they compute."""

Allowed = Mapping[str, tuple[object, ...]]
"""Option -> the values that are served; None among them: it may be absent."""


def text_config(huggingface_config: Any) -> Any:
    """The options of the text network: `text_config` where there is one, else the whole config."""
    return getattr(huggingface_config, "text_config", None) or huggingface_config


def option(config: Any, name: str, default: Any = None) -> Any:
    """An option, or the default where it is absent or null."""
    value = getattr(config, name, None)
    return default if value is None else value


def want_options(config: Any, names: Iterable[str], whose: str = CHECKPOINT) -> None:
    """Raises ConfigError naming an option that is not there."""
    for name in names:
        if option(config, name) is None:
            raise ConfigError(f"{whose} has no {name}; the config is incomplete")


def whole_number(name: str, value: object, *, least: int = 1, whose: str = CHECKPOINT) -> int:
    """An option's value that is a whole number; a bool or a float is none. Raises ConfigError."""
    if is_int(value) and value >= least:
        return value
    raise ConfigError(f"{whose} has {name} = {value!r}; wanted a whole number >= {least}")


def real_number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    whose: str = CHECKPOINT,
) -> float:
    """The value of an option that is a finite number, no bool.

    above: it must be greater. least, most: it must not be less, or greater. Raises ConfigError.
    """
    if (
        is_number(value)
        and (above is None or value > above)
        and (least is None or value >= least)
        and (most is None or value <= most)
    ):
        return float(value)
    given = ((">", above), (">=", least), ("<=", most))
    limits = " and".join(f" {sign} {limit:g}" for sign, limit in given if limit is not None)
    raise ConfigError(f"{whose} has {name} = {value!r}; wanted a number{limits}")


def boolean(name: str, value: object, whose: str = "the checkpoint's") -> bool:
    """An option's value that is on or off; None is off. Raises ConfigError for anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    raise ConfigError(f"{whose} {name} is {value!r}; wanted true or false")


def section(config: Any, name: str, whose: str = "the checkpoint's") -> Mapping[str, Any]:
    """An object inside a config, empty where there is none. Raises ConfigError for another kind."""
    found = option(config, name) or {}
    if isinstance(found, str | int | float | Sequence):
        raise ConfigError(f"{whose} {name} is {found!r}; wanted an object of options")
    return found if isinstance(found, Mapping) else vars(found)


def context_length(max_length: int | None, reach: int | None = None) -> int:
    """The longest context of a run in tokens, for models whose layers know no positions.

    max_length: the user's limit; None: no other. reach: what the checkpoint names as its limit;
    None: it has none, and the context is NO_LIMIT, which the memory plan cuts.
    Raises ConfigError for a limit past that.
    """
    most = NO_LIMIT if reach is None else reach
    if max_length is not None and max_length > most:
        raise ConfigError(f"max_length is {max_length}; wanted at most {most}")
    return most if max_length is None else max_length


def count(config: Any, name: str, default: int | None = None, whose: str = CHECKPOINT) -> int:
    """An option that counts something, or the default where it is absent or null.

    Raises ConfigError for anything but a whole number >= 1, and where there is neither.
    """
    value = option(config, name, default)
    if value is None:
        want_options(config, [name], whose)
    return whole_number(name, value, whose=whose)


def want_counts(config: Any, names: Iterable[str], whose: str = CHECKPOINT) -> None:
    """Raises ConfigError naming an option that is not there, or is no whole number >= 1."""
    for name in names:
        count(config, name, whose=whose)


def written(model: ModelConfig) -> Mapping[str, Any]:
    """What config.json itself says, without the defaults of its model type.

    Where there is no such file (GGUF, a config made by hand): what the config says.
    """
    file = Path(model.path) / "config.json"
    if file.is_file():
        values: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    else:
        values = vars(model.huggingface_config)
    return values


def want_written(model: ModelConfig, names: Iterable[str], whose: str = CHECKPOINT) -> None:
    """Raises ConfigError naming an option that config.json itself does not have.

    transformers fills in a default of its model type there, which belongs to another model.
    """
    values = written(model)
    for name in names:
        if values.get(name) is None:
            raise ConfigError(f"{whose} has no {name}; the config is incomplete")


def want_values(config: Any, allowed: Allowed, whose: str = CHECKPOINT) -> None:
    """Raises ConfigError naming every option whose value is not served, with those that are."""
    values = {name: getattr(config, name, None) for name in allowed}
    refuse_all(unserved(values, allowed), whose)


def want_value(
    name: str, value: object, allowed: tuple[object, ...], whose: str = CHECKPOINT
) -> None:
    """As `want_values`, for one option that was read before."""
    refuse_all(unserved({name: value}, {name: allowed}), whose)


def unserved(values: Mapping[str, object], allowed: Allowed) -> list[tuple[str, str]]:
    """Of options that were read before: those whose value is not served, and what was wanted."""
    found: list[tuple[str, str]] = []
    for name, value in values.items():
        if value not in allowed[name]:
            wanted = " or ".join("it absent" if one is None else repr(one) for one in allowed[name])
            found.append((f"{name} = {shortened(value)}", wanted))
    return found


def refuse_all(found: Sequence[tuple[str, str]], whose: str = CHECKPOINT) -> None:
    """Raises one ConfigError for all that `unserved` found; nothing where that is nothing."""
    if len(found) == 1:
        said, wanted = found[0]
        raise ConfigError(f"{whose} has {said}, which is not served; wanted {wanted}")
    if found:
        listed = ", ".join(f"{said} (wanted {wanted})" for said, wanted in found)
        raise ConfigError(f"{whose} has {listed}, which are not served")


def shortened(value: object) -> str:
    """A value of a config as it is written, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def run_dtype(pipeline_config: PipelineConfig, model: ModelConfig) -> str:
    """The dtype of a run: the user's, else the checkpoint's, else bfloat16 for GGUF files."""
    if pipeline_config.runtime.dtype != "auto":
        return pipeline_config.runtime.dtype
    hf = model.huggingface_config
    for config in (hf, text_config(hf)):
        given = option(config, "dtype") or option(config, "torch_dtype")
        if given is not None:
            return str(given).removeprefix("torch.")
    return "bfloat16" if model.weight_format == "gguf" else "float32"


def cache_dtype(pipeline_config: PipelineConfig, model: ModelConfig) -> str:
    """The dtype of keys and values in pages: the user's, else the run's."""
    return pipeline_config.cache.dtype or run_dtype(pipeline_config, model)
