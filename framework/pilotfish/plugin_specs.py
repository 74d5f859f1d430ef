"""What a plugin registers: specs as data, with lazy references to the code they mean.

Knows: the fields of a spec and how a reference is imported. Does not know: how specs are matched.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import attrs

from pilotfish.errors import PluginError
from pilotfish.nearest import did_you_mean

if TYPE_CHECKING:
    from pilotfish.weights import PreTokenizer, TiktokenRules

API_VERSION = 2
"""Version of the plugin contracts; a spec made for another version is refused."""


def _names(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise PluginError(f"a spec has {value!r} where a sequence of names is wanted: ({value!r},)")
    return tuple(value)


def _set_of_names(value: Iterable[str]) -> frozenset[str]:
    if isinstance(value, str):
        raise PluginError(f"a spec has {value!r} where a set of names is wanted: {{{value!r}}}")
    return frozenset(value)


def _check_reference(instance: Any, attribute: Any, value: Any) -> None:
    module, colon, name = str(value).partition(":")
    if not (colon and module and name.isidentifier()):
        raise PluginError(
            f"{type(instance).__name__}.{attribute.name} is {value!r}; "
            "wanted a lazy reference 'module:name'"
        )


def _check_driver(instance: Any, attribute: Any, value: Any) -> None:
    if value not in ("sequential", "block"):
        raise PluginError(f"SpeculatorSpec.driver is {value!r}; wanted 'sequential' or 'block'")


def _check_tiktoken(instance: Any, attribute: Any, value: Any) -> None:
    from pilotfish.weights.pretokenizer import TiktokenRules

    if value is not None and not isinstance(value, TiktokenRules):
        raise PluginError(
            f"ArchitectureSpec.tiktoken is {value!r}; wanted TiktokenRules(pattern=...) or None"
        )


def _check_not_empty(instance: Any, attribute: Any, value: Any) -> None:
    if not value or not all(value):
        raise PluginError(
            f"{type(instance).__name__}.{attribute.name} is {value!r}; wanted a name at least"
        )


@attrs.frozen(kw_only=True)
class ArchitectureSpec:
    """One architecture that a plugin serves. Raises PluginError naming a malformed field.

    names: Hugging Face architecture names.
    config, model: lazy references "module:Class".
    gguf_architectures: values of `general.architecture` in a GGUF file that mean this spec.
    gguf_config: lazy reference "module:function", GGUF metadata -> Hugging Face config dict.
    gguf_pretokenizers: further values of `tokenizer.ggml.pre` -> how text is cut.
    tiktoken: how the text of a `tiktoken.model` is cut; None: such a file is not read.
    capabilities: what a speculator may ask of a target: "verify", "aux_hidden_states", "embed",
        "lm_head".
    modalities: kinds of input served, "text" among them.
    image_processor: lazy reference "module:Class" of an ImageProcessor (protocols/images.py);
        wanted where "image" is among the modalities. The model is then an `ImageDecoderModel`, or
        takes `images` of its request contexts in another way.
    examples: lazy reference "module:function", architecture name -> `pilotfish.testing.Examples`:
        tiny models for the conformance kit; None leaves it to transformers' defaults.
    verified_against: what the tests compare it with, for `pilotfish plugins`.
    api_version: the `API_VERSION` that the plugin was written for.
    """

    names: tuple[str, ...] = attrs.field(converter=_names, validator=_check_not_empty)
    config: str = attrs.field(validator=_check_reference)
    model: str = attrs.field(validator=_check_reference)
    gguf_architectures: tuple[str, ...] = attrs.field(default=(), converter=_names)
    gguf_config: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_reference)
    )
    gguf_pretokenizers: Mapping[str, PreTokenizer] = attrs.field(factory=dict)
    tiktoken: TiktokenRules | None = attrs.field(default=None, validator=_check_tiktoken)
    capabilities: frozenset[str] = attrs.field(default=frozenset(), converter=_set_of_names)
    modalities: frozenset[str] = attrs.field(default=frozenset({"text"}), converter=_set_of_names)
    image_processor: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_reference)
    )
    examples: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_reference)
    )
    verified_against: str = ""
    api_version: int = API_VERSION

    def __attrs_post_init__(self) -> None:
        if ("image" in self.modalities) != (self.image_processor is not None):
            raise PluginError(
                f"ArchitectureSpec of {', '.join(self.names)} has modalities "
                f"{sorted(self.modalities)} and image_processor {self.image_processor!r}; wanted "
                "'image' among the modalities and an image_processor, or neither"
            )

    @property
    def weight_formats(self) -> tuple[str, ...]:
        """Formats of checkpoints it reads: safetensors, and GGUF where it names what it claims."""
        return ("safetensors", "gguf") if self.gguf_architectures else ("safetensors",)


@attrs.frozen(kw_only=True)
class SpeculatorSpec:
    """One speculation method that a plugin offers. Raises PluginError naming a malformed field.

    method: the name a user asks for.
    draft_architectures: Hugging Face names of drafts it reads; "*" for any architecture that is
        served; empty when it needs no draft.
    driver: "sequential" or "block".
    config, model: lazy references "module:Class".
    needs: capabilities a target must have.
    targets: when not empty, the only targets it serves (an exact pair).
    draft_oracle: lazy reference "module:function", (the target's folder, the draft's or None) ->
        `pilotfish.testing.DraftOracle`: what should be drafted, for the conformance kit.
    verified_against: what the tests compare it with, for `pilotfish plugins`.
    api_version: the `API_VERSION` that the plugin was written for.
    """

    method: str = attrs.field(validator=_check_not_empty)
    draft_architectures: tuple[str, ...] = attrs.field(default=(), converter=_names)
    driver: Literal["sequential", "block"] = attrs.field(
        default="sequential", validator=_check_driver
    )
    config: str = attrs.field(validator=_check_reference)
    model: str = attrs.field(validator=_check_reference)
    needs: frozenset[str] = attrs.field(default=frozenset(), converter=_set_of_names)
    targets: tuple[str, ...] = attrs.field(default=(), converter=_names)
    draft_oracle: str | None = attrs.field(
        default=None, validator=attrs.validators.optional(_check_reference)
    )
    verified_against: str = ""
    api_version: int = API_VERSION


@attrs.frozen(kw_only=True)
class Plugin:
    """What one plugin registers, and the distribution that brought it ("" : made in a program)."""

    name: str
    distribution: str = ""
    version: str = ""
    architectures: tuple[ArchitectureSpec, ...] = ()
    speculators: tuple[SpeculatorSpec, ...] = ()

    def __str__(self) -> str:
        return plugin_label(self.name, self.distribution, self.version)


@attrs.frozen(kw_only=True)
class PluginFailure:
    """A plugin that could not be loaded. error: with the plugin's own exception as its cause."""

    name: str
    distribution: str
    version: str
    error: PluginError

    def __str__(self) -> str:
        return str(self.error)


def plugin_label(name: str, distribution: str, version: str) -> str:
    """How messages name a plugin: `toy (toy-plugin 1.0)`."""
    source = f"{distribution} {version}".strip()
    return f"{name} ({source})" if source else name


def of_other_api(error: BaseException) -> str:
    """What to say besides where a plugin imports from Pilotfish what is not there."""
    if not isinstance(error, ImportError) or (error.name or "").split(".")[0] != "pilotfish":
        return ""
    return (
        f"; this Pilotfish has plugin API {API_VERSION}, and docs/hooks.md (Names that have moved) "
        "says where names of an earlier one are"
    )


def resolve(reference: str, plugin: Plugin) -> Any:
    """Imports what a lazy reference "module:name" of a plugin means.

    Raises PluginError, with the import's own exception as its cause.
    """
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise PluginError(
            f"plugin {plugin} refers to {reference!r}, but importing {module_name} failed: "
            f"{type(error).__name__}: {error}{of_other_api(error)}"
        ) from error
    try:
        return getattr(module, name)
    except AttributeError as error:
        raise PluginError(
            f"plugin {plugin} refers to {reference!r}, but {module_name} has no {name!r}"
            f"{did_you_mean(name, vars(module))}"
        ) from error
