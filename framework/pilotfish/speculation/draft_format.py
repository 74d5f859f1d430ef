"""DraftFormat: what a draft's config.json says, in the spellings that drafts are published in.

Knows: sections, ids of aux hidden state layers, kinds of layers, how what is not read is refused.
Does not know: any one method's options, or tensors; imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any, ClassVar, Self

import attrs

from pilotfish.config import ModelConfig
from pilotfish.config.hf_options import (
    TRAINING_ONLY,
    Allowed,
    boolean,
    option,
    refuse_all,
    section,
    shortened,
    unserved,
    written,
)
from pilotfish.config.quantization import refuse_quantized
from pilotfish.errors import ConfigError
from pilotfish.weights.hf_config import config_of_section

WHOSE = "the draft's config"
SPECULATORS = "speculators"
"""Name of the format of the speculators package, which leaves defaults out."""
BOUNDARIES = "hidden_state_boundaries"
SLIDING, FULL = "sliding_attention", "full_attention"

REFUSED: Allowed = {
    "attention_multiplier": (None,),
    "embedding_multiplier": (None, 1.0),
    "residual_multiplier": (None, 1.0),
    "logits_scaling": (None, 1.0),
    "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,),
    **dict.fromkeys(("logit_softcap", "logits_soft_cap"), (None, 0)),
    "query_pre_attn_scalar": (None,),
    "clip_qkv": (None,),
    "rope_interleaved": (None, False),
    "no_rope_layers": (None,),
    "num_experts": (None, 0),
    "num_local_experts": (None, 0),
    "mrope_section": (None,),
    "hidden_act": (None, "silu", "swish"),
}
"""Options that would change the maths and that no draft reads: values that change nothing."""

_READ_BESIDE = frozenset(
    {
        *("architectures", "auto_map", "draft_vocab_size", "dtype", "torch_dtype", "model_type"),
        *("speculators_config", "speculators_model_type", "speculators_version"),
        *("target_hidden_size", "tie_word_embeddings", "transformer_layer_config"),
        *("transformers_version", BOUNDARIES),
        *TRAINING_ONLY,
    }
)
"""What stands at the top of a file of the speculators format, whatever the method."""


@attrs.frozen(kw_only=True)
class DraftFormat:
    """What a draft's config says, whatever its spelling. A method has a subclass, which says:

    method: its name. architectures: of its drafts, but for those of the speculators format.
    speculators_type, layer_model_types: `speculators_model_type` there, and the model types of the
        layers, the first where none is named. None: the method reads no such file.
    section_name: the object inside the config with options of the method; "" for none.
    refused: as REFUSED, beside those. read_inside: options of the section. neutral_inside: values
        of others there that change nothing; without an entry None and False. read_beside: options
        at the top of a file of the speculators format.

    name: of the format. model: the draft. layer: options of its transformer layers.
    """

    method: ClassVar[str]
    architectures: ClassVar[tuple[str, ...]]
    speculators_type: ClassVar[str | None] = None
    layer_model_types: ClassVar[tuple[str, ...]] = ()
    section_name: ClassVar[str] = ""
    refused: ClassVar[Allowed] = {}
    read_inside: ClassVar[Set[str]] = frozenset()
    neutral_inside: ClassVar[Allowed] = {}
    read_beside: ClassVar[Set[str]] = frozenset()

    name: str
    model: ModelConfig = attrs.field(repr=False)
    layer: Any = attrs.field(repr=False)

    @classmethod
    def of(cls, model: ModelConfig) -> Self:
        """Finds the format of a draft. Raises ConfigError naming what is not understood."""
        options = model.huggingface_config
        kind = option(options, "speculators_model_type")
        if kind is None:
            found = cls(name=cls.name_of(options), model=model, layer=options)
        elif kind == cls.speculators_type:
            layer = config_of_section(
                options, "transformer_layer_config", cls.layer_model_types, "the draft's"
            )
            found = cls(name=SPECULATORS, model=model, layer=layer)
        else:
            raise ConfigError(
                f"the draft's speculators_model_type is {kind!r}; the method {cls.method} reads "
                f"{'none' if cls.speculators_type is None else repr(cls.speculators_type)}"
            )
        refuse_all(found.unread(), WHOSE)
        return found

    @classmethod
    def name_of(cls, options: Any) -> str:
        """The format of a draft that is not speculators'. Raises ConfigError as `of`."""
        [first, *_] = architecture_names(options)
        if first not in cls.architectures:
            raise ConfigError(
                f"the draft's architecture is {first!r}; the method {cls.method} reads "
                f"{', '.join(cls.architectures)}"
            )
        return cls.method

    # Options.

    @property
    def options(self) -> Any:
        """The whole config; never changed."""
        return self.model.huggingface_config

    @property
    def section(self) -> Any:
        """The method's own object of options, empty where there is none."""
        return section(self.options, self.section_name, "the draft's")

    def option(self, name: str) -> Any:
        """An option of the draft as a whole, else of its layers; None where it is in neither."""
        return option(self.options, name, option(self.layer, name))

    def flag(self, name: str, default: bool = False) -> bool:
        """An option that is on or off. Raises ConfigError for anything else."""
        return draft_flag(name, self.option(name), default)

    def layer_flag(self, name: str) -> bool:
        """The same of its layers alone."""
        return draft_flag(name, option(self.layer, name))

    # Layers.

    @property
    def target_hidden_size(self) -> Any:
        """The width of the target that it was made for; None where it does not say."""
        return self.option("target_hidden_size")

    def aux_hidden_state_layers(self, num_target_layers: int) -> tuple[tuple[int, ...], str]:
        """The aux hidden states of the target that fc reads, in its order, and how they were found.

        Boundary i is the residual stream after block i-1. `hidden_state_boundaries` wins over what
        the format says. Raises ConfigError when one is outside of the target.
        """
        override = option(self.options, BOUNDARIES)
        if override is None:
            layers, source = self.format_layers(num_target_layers)
        else:
            layers, source = layer_ids(BOUNDARIES, override), f"{BOUNDARIES}: boundaries"
        if any(not 0 <= layer <= num_target_layers for layer in layers):
            raise ConfigError(
                f"the draft reads the target's boundaries {list(layers)} ({source}); the target "
                f"has {num_target_layers} layers, so 0 to {num_target_layers}: give the draft of "
                "this target"
            )
        return layers, source

    def format_layers(self, num_target_layers: int) -> tuple[tuple[int, ...], str]:
        """The same without the override and unchecked: what a subclass reads of its own options."""
        return reference_layers(num_target_layers), "not in the config: the reference's boundaries"

    def layer_types(self) -> tuple[str, ...]:
        """SLIDING or FULL for each layer; FULL without `layer_types`."""
        count: int = self.layer.num_hidden_layers
        given = option(self.layer, "layer_types")
        if given is None or given == []:
            return (FULL,) * count
        kinds: tuple[str, ...] = tuple(given) if isinstance(given, Sequence) else (given,)
        if len(kinds) != count or not all(kind in (SLIDING, FULL) for kind in kinds):
            raise ConfigError(
                f"the draft's layer_types are {list(kinds)}; wanted {count} of {FULL!r} or "
                f"{SLIDING!r}"
            )
        return kinds

    # What is not read.

    def unread(self) -> list[tuple[str, str]]:
        """Every option that changes the maths and is not read, each with what was wanted.

        Options of the speculators format are off by default: an unknown one that is set matters.
        """
        refused = {**REFUSED, **self.refused}
        found: list[tuple[str, str]] = []
        for place in (self.options, self.layer):
            refuse_quantized(place, "the draft")
            found += unserved({name: option(place, name) for name in refused}, refused)
        inside = {
            name: value
            for name, value in self.section.items()
            if name not in self.read_inside and name not in TRAINING_ONLY
        }
        allowed = {name: self.neutral_inside.get(name, (None, False)) for name in inside}
        found += [
            (f"{self.section_name}.{said}", wanted) for said, wanted in unserved(inside, allowed)
        ]
        if self.name == SPECULATORS:
            known = {*_READ_BESIDE, *self.read_beside, *refused, self.section_name}
            found += [
                (f"{name} = {shortened(value)}", "it absent")
                for name, value in sorted(written(self.model).items())
                if value and name not in known
            ]
        return list(dict.fromkeys(found))


def draft_flag(name: str, value: object, default: bool = False) -> bool:
    """The value of an option that is on or off. Raises ConfigError for anything else."""
    return default if value is None else boolean(name, value, "the draft's")


def architecture_names(options: Any) -> tuple[Any, ...]:
    """What a config has as `architectures`, one at least."""
    given = option(options, "architectures") or ("",)
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,)


def reference_layers(num_target_layers: int) -> tuple[int, ...]:
    """Boundaries of a draft that names none: near the start, in the middle, near the end."""
    return (2, num_target_layers // 2, num_target_layers - 3)


def layer_ids(name: str, value: Any) -> tuple[int, ...]:
    """A list of ids of layers. Raises ConfigError for anything else."""
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not value or not all(type(item) is int for item in value):
        raise ConfigError(
            f"the draft's {name} is {value!r}; wanted a list of whole numbers, one at least"
        )
    return tuple(value)
