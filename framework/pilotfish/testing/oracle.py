"""Oracle: what a checkpoint should compute, from an implementation that is not ours.

Knows: how transformers is asked, in float64 too. Does not know: Pilotfish's models.
Axis letters: T tokens, V vocabulary, D model width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pilotfish.testing.promise import NotApplicable


class Oracle:
    """The answers of another implementation; an author whose model transformers lacks writes one.

    `exact` and `eager` are wanted; the others can be left as they are.
    """

    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """[T, V] float64: logits in float64 arithmetic, with weights rounded to `dtype` first."""
        raise NotImplementedError

    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """[T, V]: logits in ordinary `dtype` arithmetic; its error sets the tolerance."""
        raise NotImplementedError

    def hidden_states(self, tokens: Sequence[int], dtype: str) -> list[torch.Tensor]:
        """The stream at boundaries 0 to L, each [T, D] float64, of `exact`; the last before the
        final norm. [] where it is not known.
        """
        del tokens, dtype
        return []

    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """The greedy answer in float32."""
        text = list(tokens)
        for _ in range(count):
            text.append(int(self.eager(text, "float32")[-1].argmax()))
        return text[len(tokens) :]


class TransformersOracle(Oracle):
    """transformers' own model of a checkpoint's folder.

    Raises NotApplicable where transformers cannot load the folder whole.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._model("float32")
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            said = str(error).strip().partition("\n")[0]
            raise NotApplicable(
                f"transformers cannot load it ({said}), and the spec's examples have no oracle"
            ) from error

    @torch.inference_mode()
    def exact(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """As `Oracle`; every cast to float32 inside the model is made one to float64."""
        model = self._model(dtype).double()
        with _Widened():
            logits: torch.Tensor = model(_ids(tokens)).logits[0]
        return logits.double()

    @torch.inference_mode()
    def eager(self, tokens: Sequence[int], dtype: str) -> torch.Tensor:
        """As `Oracle`."""
        logits: torch.Tensor = self._model(dtype, attention="eager")(_ids(tokens)).logits[0]
        return logits.float()

    @torch.inference_mode()
    def hidden_states(self, tokens: Sequence[int], dtype: str) -> list[torch.Tensor]:
        """As `Oracle`; the entry after the last block is taken before the final norm."""
        model = self._model(dtype).double()
        norm, seen = _final_norm(model), list[torch.Tensor]()
        if norm is None:
            return []
        norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
        with _Widened():
            states = model(_ids(tokens), output_hidden_states=True).hidden_states
        return [*(state[0] for state in states[:-1]), seen[0]]

    @torch.inference_mode()
    def generate(self, tokens: Sequence[int], count: int) -> list[int]:
        """As `Oracle`, with transformers' own cache."""
        ids = _ids(tokens)
        answer = self._model("float32").generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return list(answer[0, len(tokens) :].tolist())

    def _model(self, dtype: str, attention: str = "sdpa") -> Any:
        """A fresh model each time: some rotary types remember the lengths they saw."""
        import transformers

        config = transformers.AutoConfig.from_pretrained(self._folder)
        model_class = getattr(transformers, (config.architectures or ["none"])[0], None)
        if model_class is None:
            raise NotApplicable(f"transformers has no {(config.architectures or ['none'])[0]}")
        with quiet():
            model, said = model_class.from_pretrained(
                self._folder,
                dtype=getattr(torch, dtype),
                attn_implementation=attention,
                output_loading_info=True,
            )
        for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            if said.get(kind):
                raise NotApplicable(f"transformers loads it with {kind}: {sorted(said[kind])[:3]}")
        for weight in model.parameters():  # some versions keep a router's unrounded
            weight.data = weight.data.to(getattr(torch, dtype)).to(weight.dtype)
        # Its grouped products of experts take no float64.
        model.set_experts_implementation("eager")
        return model.eval()


class _Widened(TorchFunctionMode):
    """Makes every cast to float32 one to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        wide = {torch.float32: torch.float64}
        args = tuple(wide.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
        kwargs = {
            name: wide.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def _ids(tokens: Sequence[int]) -> torch.Tensor:
    return torch.tensor([list(tokens)])


def _final_norm(model: Any) -> Any:
    """The module that norms the stream after the last block, by the names that models give it."""
    body = getattr(model, "model", model)
    body = getattr(body, "language_model", body)
    for name in ("norm", "final_layernorm", "embedding_norm", "ln_f"):
        if hasattr(body, name):
            return getattr(body, name)
    return None
