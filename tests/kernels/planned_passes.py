"""Passes of native models: planned, as they are run, or with every layer called one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest

from pilotfish.models.decoder_model import DecoderModel
from pilotfish.models.native_pass import NativePass

Result = TypeVar("Result")


@contextmanager
def called_one_by_one() -> Iterator[None]:
    """Inside of it no decoder's pass is planned."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderModel, "_planned", lambda self, run: None)
        yield


def both_ways(model: DecoderModel, play: Callable[[], Result]) -> tuple[Result, Result]:
    """What `play` returns with planned passes, and with layers called one by one.

    Every planned pass of the model must be native calls and nothing else.
    """
    model._native_passes.clear()
    planned = play()
    assert model._native_passes, "no pass of the model was run"
    for made in model._native_passes.values():
        assert isinstance(made, NativePass), "the network is not planned"
        assert made.num_torch_steps == 0
    with called_one_by_one():
        return planned, play()
