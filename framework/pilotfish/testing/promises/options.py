"""Promises about a checkpoint's options: one that changes the maths is read or refused, by name.

Knows: the oracle under other options. Does not know: what an option means.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from pilotfish.errors import ConfigError, UserError
from pilotfish.testing.compare import want_near
from pilotfish.testing.outcome import Broken, want
from pilotfish.testing.promises.parity import want_one_opinion
from pilotfish.testing.subject import LONG, Subject

ACTIVATIONS = ("silu", "swish", "gelu", "gelu_pytorch_tanh", "relu")
NESTED = ("rope_parameters", "text_config")


def options_are_read_or_refused(subject: Subject) -> None:
    """Every option that changes the oracle's logits changes ours alike, or is refused by name."""
    tokens = subject.tokens(LONG)
    rounds = _Rounds(subject, tokens) if "bfloat16" in subject.dtypes else None
    base = subject.oracle.exact(tokens, "float32")
    want_one_opinion(subject, tokens)
    unchanged = subject.oracle.eager(tokens, "float32")
    want_near(
        subject.alone(tokens, "float32").cpu(), base, unchanged, "logits with no option changed"
    )
    for path, changes in other_options(subject):
        with subject.with_config(changes) as changed:
            name, refusal, ours = path.rpartition(".")[2], "", base
            try:
                if changed.max_seq_len < len(tokens):  # a text that is refused shows nothing
                    continue
                ours = changed.alone(tokens, "float32").cpu()
            except UserError as error:
                refusal = str(error)
                if name in refusal:
                    continue
            try:
                exact = changed.oracle.exact(tokens, "float32")
                is_maths = exact.shape != base.shape or not torch.equal(exact, base)
                if not is_maths and (rounds is None or not rounds.differ(changed)):
                    continue
                eager = changed.oracle.eager(tokens, "float32" if is_maths else "bfloat16")
            except Exception:  # the oracle itself refuses it, for whatever reason
                continue
            want(not refusal, f"{changes}: {refusal}", f"an error that names {name}")
            if rounds is not None and not is_maths:
                rounds.want_alike(changed, eager, path, changes)
                continue
            try:
                want_near(ours, exact, eager, "logits")
            except Broken as broken:
                raise Broken(f"{changes} was accepted, {broken.got}", broken.wanted) from broken


class _Rounds:
    """What an option changes that only chooses where the oracle rounds: its logits in bfloat16."""

    def __init__(self, subject: Subject, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        eager = partial(subject.oracle.eager, tokens)
        self._theirs = {dtype: eager(dtype) for dtype in ("bfloat16", "float32")}
        self._ours = subject.alone(tokens, "bfloat16").cpu()

    def differ(self, changed: Subject) -> bool:
        """Whether the oracle rounds elsewhere under changed options.

        Where it only sums in another order its bits change in float32 too: that is no option of
        the checkpoint's maths.
        """
        eager = partial(changed.oracle.eager, self._tokens)
        rounded = not torch.equal(eager("bfloat16"), self._theirs["bfloat16"])
        return rounded and torch.equal(eager("float32"), self._theirs["float32"])

    def want_alike(
        self, changed: Subject, theirs: torch.Tensor, path: str, changes: Mapping[str, Any]
    ) -> None:
        """Raises Broken unless ours are rounded elsewhere too. theirs: the oracle's, changed."""
        try:
            ours = changed.alone(self._tokens, "bfloat16").cpu()
        except UserError as error:
            want(path.rpartition(".")[2] in str(error), f"{changes}: {error}", "the option's name")
            return
        count = int((theirs != self._theirs["bfloat16"]).any(1).sum())
        want(
            not torch.equal(ours, self._ours),
            f"{changes} was accepted and changes no logits in bfloat16; it changes {count} of "
            f"{len(theirs)} rows of the oracle's, and none in float32",
            "logits that are rounded where the oracle's are, or an error that names the option",
        )
        exact = changed.oracle.exact(self._tokens, "bfloat16")
        want_near(ours, exact, theirs, f"{changes}, logits in bfloat16")


def other_options(subject: Subject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each option of the checkpoint with another value: its dotted name, the changed options."""
    values = subject.prepared(subject.dtype).checkpoint.huggingface_config.to_dict()
    for name, value in values.items():
        if not isinstance(value, Mapping) or name in NESTED:
            for path, other in _changed(value):
                yield ".".join((name, *path)), {name: other}


def _changed(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """A value with one of its leaves changed, at any depth: the leaf's path, the whole value."""
    if not isinstance(value, Mapping):
        for other in _others(value):
            yield (), other
        return
    for inner, leaf in value.items():
        for path, other in _changed(leaf):
            yield (inner, *path), {**value, inner: other}


def _others(value: Any) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1]
    if isinstance(value, float):
        return [1.5 * value + 0.25, value / 8, None]  # a limit may have to be low to be met
    if value is None:
        return [3, 0.5]
    if isinstance(value, list):  # one entry a layer, say: each is another layer's
        turned = [value[::-1], value[1:] + value[:1]]
        return [other for n, other in enumerate(turned) if other not in (value, *turned[:n])]
    return ["relu"] if value in ACTIVATIONS else []


def unknown_kinds_are_refused(subject: Subject) -> None:
    """An unknown rope type or quantization is refused, by name, before weights are read."""
    hf = subject.prepared(subject.dtype).checkpoint.huggingface_config.to_dict()
    changes: list[dict[str, Any]] = [{"quantization_config": {"quant_method": "unheard-of"}}]
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(hf.get(name), Mapping):
            changes += ({name: rope} for rope in _unheard_of(hf[name]))
    for change in changes:
        with subject.with_config(change) as changed:
            try:
                changed.prepared(subject.dtype)
            except ConfigError as error:
                named = "unheard-of" in str(error) or next(iter(change)) in str(error)
                want(named, f"{change}: {error}", "an error that names the option")
            except UserError:
                continue  # refused where the config is read
            else:
                want(False, f"{change} was accepted", "a ConfigError that names it")


def _unheard_of(rope: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rope options with an unknown type; of ones by layer type, each with one by itself."""
    inner = {name: value for name, value in rope.items() if isinstance(value, Mapping)}
    if not inner:
        return [{**rope, "rope_type": "unheard-of", "factor": 2.0}]
    return [{**rope, name: made} for name, each in inner.items() for made in _unheard_of(each)]
