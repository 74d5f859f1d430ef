"""Promises about loading: every tensor and every option is used or refused, by name.

Knows: weight sources and configs. Does not know: batches or requests.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import attrs
import torch

from pilotfish.errors import UserError, WeightsError
from pilotfish.loading.prepared import Prepared
from pilotfish.protocols import PipelineModel
from pilotfish.testing.compare import want_finite, want_same_bits
from pilotfish.testing.image_prompts import ImagePrompt
from pilotfish.testing.outcome import Broken, NotKnown, want, want_raised
from pilotfish.testing.subject import LONG, Subject
from pilotfish.weights import TensorInfo, WeightSource, open_checkpoint
from pilotfish.weights.hf_config import PlainConfig

NUM_TEXTS = 12
SMALL_BYTES = 16 << 20
"""A checkpoint up to this is loaded once for every tensor."""


@attrs.frozen(kw_only=True)
class EditedSource:
    """A weight source with one tensor left out, added or changed.

    drop: a name to leave out. put: name -> a function of the file's tensor (None for a new one),
    asked once.
    """

    source: WeightSource
    drop: str = ""
    put: Mapping[str, Callable[[torch.Tensor | None], torch.Tensor]] = attrs.field(factory=dict)
    _made: dict[str, torch.Tensor] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """As `WeightSource`."""
        found = {n: info for n, info in self.source.infos.items() if n != self.drop}
        for name in self.put:
            tensor = self._put(name)
            found[name] = TensorInfo(
                tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes
            )
        return found

    def load(self, name: str) -> torch.Tensor:
        """As `WeightSource`."""
        return self._put(name).clone() if name in self.put else self.source.load(name)

    def _put(self, name: str) -> torch.Tensor:
        if name not in self._made:
            old = self.source.load(name) if name in self.source.infos else None
            self._made[name] = self.put[name](old)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)


@attrs.frozen
class _HeldSource:
    """A weight source whose tensors are read once, for models that are loaded again and again."""

    source: WeightSource
    _held: dict[str, torch.Tensor] = attrs.field(factory=dict, init=False, repr=False)

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """As `WeightSource`."""
        return self.source.infos

    def load(self, name: str) -> torch.Tensor:
        """As `WeightSource`; a copy each time."""
        if name not in self._held:
            self._held[name] = self.source.load(name)
        return self._held[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self.infos)


def load_edited(prepared: Prepared, source: EditedSource) -> PipelineModel:
    """A model of the checkpoint as if its file held what `source` says."""
    pipeline = prepared.pipeline_config
    config = prepared.route.config_class().initialize(pipeline)
    config = config.finalize(prepared.checkpoint.huggingface_config, source.infos)
    model = prepared.route.model_class()(pipeline, config, prepared.backend, device=prepared.device)
    model.load_model(source)
    return model


def weights_are_strict(subject: Subject) -> None:
    """A tensor that is missing, of another shape or left over is refused by its name."""
    prepared = subject.prepared(subject.dtype)
    source, infos = prepared.weights, subject.infos(prepared)
    for name, info in infos.items():
        if info.shape[0] != prepared.vocab_size:  # a head that is not there is tied: no mistake
            # One of several spellings may be gone; then the module it belongs to is named.
            _want_named(prepared, EditedSource(source=source, drop=name), name, "missing")
    first = next(iter(infos))
    for name in ("surprise.weight", f"{first}.extra"):
        extra = EditedSource(source=source, put={name: lambda _: torch.zeros(3)})
        _want_named(prepared, extra, name, "left over")
    widest = max(infos, key=lambda name: infos[name].num_bytes)
    for name in {first, widest, list(infos)[-1]}:
        put = {name: lambda old: torch.cat([old, old[-1:]])}
        _want_named(prepared, EditedSource(source=source, put=put), name, "one row too long")


def _short(name: str) -> str:
    """A tensor's name without the part that a plugin's rules may strip: `layers.0.mixer.A_log`."""
    parts = name.split(".")
    numbered = next((i for i, part in enumerate(parts) if part.isdecimal()), len(parts) - 1)
    return ".".join(parts[max(0, numbered - 1) :])


def _module(name: str) -> str:
    short = _short(name)
    return short.rsplit(".", 2)[0] if short.count(".") > 1 else short


def _want_named(prepared: Prepared, source: EditedSource, name: str, what: str) -> None:
    try:
        load_edited(prepared, source)
    except UserError as error:
        sought = _module(name) if what == "missing" else _short(name)
        said = isinstance(error, WeightsError) and sought in str(error)
        want(said, f"{name} {what}: {type(error).__name__}: {error}", "a WeightsError naming it")
    else:
        want(False, f"{name} {what}: accepted", "a WeightsError naming it")


def every_tensor_counts(subject: Subject) -> None:
    """Every tensor of the checkpoint changes the logits when it is changed."""
    prepared = subject.prepared(subject.dtype)
    size = sum(info.num_bytes for info in prepared.weights.infos.values())
    if size > SMALL_BYTES:
        raise NotKnown(f"the checkpoint has {size >> 20} MiB: too many to load once a tensor")
    # Many texts, of which most tensors need the first: an expert must be some token's choice.
    texts = [ImagePrompt(tokens=subject.tokens(LONG, seed)) for seed in range(NUM_TEXTS)]
    if subject.image_processor is not None:
        texts.insert(0, subject.image_prompt(num_images=2))

    @cache
    def before(number: int) -> torch.Tensor:
        return subject.alone(texts[number].tokens, images=texts[number].images)

    held = _HeldSource(prepared.weights)
    for name in subject.infos(prepared):
        source = EditedSource(source=held, put={name: _disturbed})
        model = load_edited(prepared, source)
        for number, text in enumerate(texts):
            got = subject.alone(text.tokens, images=text.images, model=model)
            want_finite(got, f"with {name} disturbed")
            if not torch.equal(got, before(number)):
                break
        else:
            want(False, f"logits that do not depend on {name}", "every tensor used")


def _disturbed(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    if not tensor.is_floating_point():
        return tensor.flip(0)
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return (tensor.float() * (1 + 0.5 * noise) + 0.1 * noise).to(tensor.dtype)


def config_round_trips(subject: Subject) -> None:
    """A config is frozen, made alike from alike, only reads, and knows its state early."""
    before = open_checkpoint(subject.model, subject.registry).huggingface_config.to_dict()
    prepared = subject.prepared(subject.dtype)
    hf, pipeline = prepared.checkpoint.huggingface_config, prepared.pipeline_config
    config_class, infos = prepared.route.config_class(), prepared.weights.infos
    first = config_class.initialize(pipeline)
    final = first.finalize(hf, infos)
    changed = {name for name, value in hf.to_dict().items() if before.get(name, ...) != value}
    want(not changed, f"{sorted(changed)} of the Hugging Face config changed", "it is only read")
    again = config_class.initialize(pipeline).finalize(hf, infos)
    want(again == final, f"{again}", f"{final}, made twice from the same")
    twice = final.finalize(hf, infos)
    want(twice == final, f"{twice}, finalized twice", f"{final}")
    plain = attrs.evolve(pipeline.model, huggingface_config=PlainConfig(before))
    try:
        early = config_class.initialize(attrs.evolve(pipeline, model=plain))
        from_plain = early.finalize(PlainConfig(before), infos)
    except Exception as error:  # a plugin may raise anything
        raise Broken(
            f"{type(error).__name__}: {error}, read from a plain dict",
            "the same config: `initialize` and `finalize` also get what stands in config.json, as "
            "it is written, without transformers' aliases and defaults",
        ) from error
    want(from_plain == final, f"{from_plain}, read from a plain dict", f"{final}")
    want(copy.deepcopy(final) == final, "a copy that is not equal", "an equal one")
    for name in ("get_state_specs", "get_max_seq_len", "get_kv_params"):
        told, late = getattr(first, name)(), getattr(final, name)()
        want(told == late, f"{name} {told} before weights are known", f"{late}, as after")
    names = [spec.name for spec in final.get_state_specs()]
    want(len({*names}) == len(names), f"state specs named {names}", "a name for each")
    want(tuple(prepared.model.state) == final.get_state_specs(), "another state", "the config's")
    _want_frozen(final)


def _want_frozen(config: Any) -> None:
    kind = type(config)
    names = [field.name for field in attrs.fields(kind)] if attrs.has(kind) else vars(config)
    name = next(iter(names), None)
    with want_raised(AttributeError, f"{name} of {kind.__name__} was set", "a frozen config"):
        setattr(config, str(name), None)


def parameters_are_known_early(subject: Subject) -> None:
    """The parameters' shapes, known before weights are read, hold as many numbers as the file."""
    prepared = subject.prepared(subject.dtype)
    shapes = prepared.model.parameter_shapes()
    declared = sum(torch.Size(shape).numel() for shape in shapes.values())
    stored = sum(torch.Size(info.shape).numel() for info in subject.infos(prepared).values())
    want(declared == stored, f"{declared} numbers", f"{stored}")


def loading_twice_is_the_same(subject: Subject) -> None:
    """Two models loaded from one checkpoint give the same bits, also beside one another."""
    tokens = subject.tokens(LONG)
    for dtype in subject.dtypes:
        wanted = subject.alone(tokens, dtype)
        other = subject.alone(tokens, dtype, model=subject.load(dtype))
        want_same_bits(other, wanted, f"{dtype}, another model")
        want_same_bits(subject.alone(tokens, dtype), wanted, f"{dtype}, the first one again")
