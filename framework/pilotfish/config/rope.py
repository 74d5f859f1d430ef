"""RopeParameters: which rotary positions a checkpoint asks for, read from its config.

Knows: the types, their numbers, and what may depend on a request's length. Does not know: tensors
(see layers/rope.py). Import-light: no torch.

Two types depend on a length: "dynamic" stretches its base, "longrope" changes from its short to its
long factors, once a context is longer than the original one. The length of row p is defined here as

    s(p) = max(m, p + 1),  m = tokens in the request's prompt,

which is the context that was known when that row was first computed: the whole prompt for a row of
the prompt, the row's own prefix for a row of the answer. It is what transformers computes in one
full forward pass (all rows: m) and step by step in `generate` (cached keys keep the factors they
were made with). It is a function of the request and the row alone, so chunks, batch mates, drafts
and preemption cannot change it. Two consequences for whoever runs the model:

- Pages of prompts beyond the original length may be shared only between prompts with equal
  `prefix_salt(m)`.
- Checkpoints whose reference implementation drops the cache when an answer grows past the original
  length (a config's `recompute_length`) are matched there by doing the same, once: release the
  request, set its `num_restart_tokens` (m is the larger of the two) and prefill its tokens so far.
  Without it the rows keep their factors, as in the other families.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from pilotfish.config.hf_options import CHECKPOINT, option, real_number, whole_number
from pilotfish.errors import ConfigError

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")

_NEEDED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
_THETA_MOST = 1e30
"""Far above what any checkpoint has; with `_FACTOR_MOST` the longest wave stays within float32."""
_FACTOR_MOST = 1e6
_TABLE_MOST = 1 << 27
"""Longest context in tokens of a type that keeps one number for each length."""
_MAY_BE_ZERO = ("mscale", "mscale_all_dim")
_KNOWN = frozenset(
    {
        *("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"),
        *("factor", "original_max_position_embeddings", "attention_factor"),
        *("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        *("low_freq_factor", "high_freq_factor", "short_factor", "long_factor"),
    }
)


@attrs.frozen(kw_only=True)
class RopeParameters:
    """Rotary positions as data.

    rotary_dim: R, how many of a head's first dimensions turn. theta: base of the wavelengths.
    max_positions: tokens the config allows. original_max_positions: tokens before any scaling.
    The other fields mean what the Hugging Face option of that name means; None where the type
    does not use it.
    """

    rope_type: str = "default"
    theta: float = 10000.0
    rotary_dim: int
    max_positions: int
    original_max_positions: int
    factor: float | None = None
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __attrs_post_init__(self) -> None:
        if self.rope_type not in ROPE_TYPES:
            raise ConfigError(
                f"rope_type is {self.rope_type!r}; wanted one of {', '.join(ROPE_TYPES)}"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ConfigError(
                f"the rotary width is {self.rotary_dim}; wanted an even number >= 2: check "
                "head_dim and partial_rotary_factor"
            )
        for name in _NEEDED.get(self.rope_type, ()):
            if getattr(self, name) is None:
                raise ConfigError(f"rope_type {self.rope_type!r} needs {name}, which is not given")
        self._want_order()
        for name in ("short_factor", "long_factor"):
            factors = getattr(self, name)
            if factors is not None and len(factors) != self.rotary_dim // 2:
                raise ConfigError(
                    f"{name} has {len(factors)} entries; wanted {self.rotary_dim // 2}, one for "
                    "each rotating pair"
                )

    def _want_order(self) -> None:
        """What one type wants of several numbers together."""
        if self.rope_type == "dynamic" and self.rotary_dim < 4:
            raise ConfigError(
                f"the rotary width is {self.rotary_dim}; rope_type 'dynamic' wants at least 4"
            )
        if self.rope_type == "dynamic" and self.length_limit > _TABLE_MOST:
            raise ConfigError(
                f"max_position_embeddings {self.max_positions} times factor {self.factor:g} is "
                f"above {_TABLE_MOST}, the longest context of rope_type 'dynamic'; lower one"
            )
        if self.rope_type == "yarn" and self.beta_fast < self.beta_slow:
            raise ConfigError(
                f"beta_fast is {self.beta_fast:g} and beta_slow {self.beta_slow:g}; wanted "
                "beta_fast >= beta_slow: check the rope options"
            )
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and low >= high:
            raise ConfigError(
                f"low_freq_factor is {low:g} and high_freq_factor {high:g}; wanted "
                "high_freq_factor > low_freq_factor: check the rope options"
            )
        if self.rope_type == "longrope" and self.original_max_positions < 2:
            raise ConfigError(
                "original_max_position_embeddings is 1; rope_type 'longrope' wants at least 2"
            )

    @classmethod
    def from_hf(
        cls,
        huggingface_config: Any,
        head_dim: int,
        *,
        default_theta: float = 10000.0,
        aliases: Mapping[str, str] | None = None,
        whose: str = CHECKPOINT,
        plain_turns_whole: bool = False,
    ) -> RopeParameters:
        """Reads `rope_scaling` or `rope_parameters`, and what stands beside them.

        huggingface_config: attribute access; never changed. head_dim: H.
        aliases: other spellings of a type that this family uses. whose: config, for errors.
        plain_turns_whole: the type "default" turns whole heads, whatever `partial_rotary_factor`
            says: of drafts whose trainer builds its angles so.
        Raises ConfigError naming an unknown type, an unknown key, a missing one, or an option that
        is no number and its value.
        """
        config = huggingface_config
        owner = whose.removesuffix(" config")
        options = _rope_options(config, owner)
        _want_one_set(options, owner)
        named = (options.get("rope_type"), options.get("type"), "default")
        given = str(next(name for name in named if name is not None))
        rope_type = (aliases or {}).get(given, given)
        if rope_type not in ROPE_TYPES:
            raise ConfigError(
                f"{owner} rope_type is {given!r}; wanted one of {', '.join(ROPE_TYPES)}"
            )
        unknown = sorted(set(options) - _KNOWN)
        if unknown:
            raise ConfigError(
                f"{owner} rope options have {', '.join(unknown)}, which is not "
                f"understood; known are {', '.join(sorted(_KNOWN))}"
            )
        name = "partial_rotary_factor"
        partial = options.get(name, option(config, name))
        share = 1.0
        if partial is not None:
            share = real_number(name, partial, above=0, most=1, whose=whose)
        if plain_turns_whole and rope_type == "default":
            share = 1.0
        theta = options.get("rope_theta", option(config, "rope_theta"))
        max_positions = whole_number(
            "max_position_embeddings", config.max_position_embeddings, whose=whose
        )
        return cls(
            rope_type=rope_type,
            theta=default_theta
            if theta is None
            else real_number("rope_theta", theta, above=1, most=_THETA_MOST, whose=whose),
            rotary_dim=int(head_dim * share),
            max_positions=max_positions,
            original_max_positions=_original_length(
                config, options, rope_type, max_positions, whose
            ),
            **_scaling(options, rope_type, whose),
        )

    @property
    def depends_on_length(self) -> bool:
        """Whether a row's angles depend on the length of its request's prompt."""
        return self.rope_type in ("dynamic", "longrope")

    @property
    def length_limit(self) -> int:
        """The longest context that the scaling reaches, in tokens."""
        factor = self.factor or 1.0
        if self.rope_type in ("linear", "dynamic"):
            return max(self.max_positions, int(self.max_positions * factor))
        if self.rope_type == "yarn":
            return max(self.max_positions, int(self.original_max_positions * factor))
        return self.max_positions

    def context_length(self, max_length: int | None) -> int:
        """The longest context of a run in tokens. max_length: the user's limit; None: no other.

        Raises ConfigError for a limit past what the positions reach.
        """
        if max_length is None:
            return self.length_limit if self.rope_type == "dynamic" else self.max_positions
        if max_length > self.length_limit:
            raise ConfigError(
                f"max_length is {max_length}; wanted at most {self.length_limit}, which the "
                "checkpoint's positions reach"
            )
        return max_length

    def prefix_salt(self, num_prompt_tokens: int) -> bytes:
        """Two prompts may share pages only if their salts are equal; empty for most."""
        if not self.depends_on_length or num_prompt_tokens <= self.original_max_positions:
            return b""
        if self.rope_type == "longrope":
            return b"long"
        return b"length %d" % num_prompt_tokens


def _rope_options(config: Any, owner: str) -> dict[str, Any]:
    """The rope options that are set, as a flat dict of our own."""
    raw: Any = {}
    for name in ("rope_parameters", "rope_scaling"):  # the second wins, unless it is empty
        given = getattr(config, name, None)
        if given is None:
            continue
        if not isinstance(given, Mapping) and not hasattr(given, "__dict__"):
            raise ConfigError(f"{owner} {name} is {given!r}; wanted an object of options")
        raw = given or raw
    if not isinstance(raw, Mapping):
        raw = vars(raw)
    return {key: value for key, value in raw.items() if value is not None}


def _want_one_set(options: Mapping[str, Any], owner: str) -> None:
    nested = [key for key, value in options.items() if isinstance(value, Mapping)]
    if nested:
        raise ConfigError(
            f"{owner} rope options differ by layer type ({', '.join(nested)}); wanted one set for "
            "all layers"
        )


def _original_length(
    config: Any, options: dict[str, Any], rope_type: str, limit: int, whose: str
) -> int:
    """Tokens before scaling; the option beside the rope options wins where both are given."""
    name = "original_max_position_embeddings"
    found = option(config, name, options.get(name))
    if rope_type not in ("yarn", "llama3", "longrope") or found is None:
        return limit
    return whole_number(name, found, whose=whose)


def _scaling(options: dict[str, Any], rope_type: str, whose: str) -> dict[str, Any]:
    """The options that the type reads, under our field names."""
    if rope_type == "default":
        return {}
    names = ["factor", "attention_factor", "mscale", "mscale_all_dim"]
    names += {
        "llama3": ["low_freq_factor", "high_freq_factor"],
        "yarn": ["beta_fast", "beta_slow"],
    }.get(rope_type, [])
    found: dict[str, Any] = {
        name: _scaling_number(name, options[name], whose) for name in names if name in options
    }
    for name in ("short_factor", "long_factor"):
        if rope_type == "longrope" and name in options:
            found[name] = _factors(name, options[name], whose)
    if rope_type == "yarn":
        found["truncate"] = options.get("truncate", True)
        if not isinstance(found["truncate"], bool):
            raise ConfigError(f"{whose} has truncate = {found['truncate']!r}; wanted true or false")
    return found


def _factors(name: str, value: object, whose: str) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ConfigError(f"{whose} has {name} = {value!r}; wanted a list of numbers")
    return tuple(_scaling_number(name, item, whose) for item in value)


def _scaling_number(name: str, value: object, whose: str) -> float:
    """A number of a type's scaling; outside these limits angles are no angles, or not finite."""
    least, above = (0, None) if name in _MAY_BE_ZERO else (None, 0)
    return real_number(name, value, least=least, above=above, most=_FACTOR_MOST, whose=whose)
