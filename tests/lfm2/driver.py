"""A naive driver: one model, one StateManager, passes and commits as the test asks for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from pilotfish.batch import RequestContext
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.protocols import ReturnLogits
from pilotfish.state import SlotStateSpec
from pilotfish.state.manager import StateManager
from pilotfish.weights.formats.safetensors import SafetensorsSource
from pilotfish_lfm2.cache import ConvStateCache
from pilotfish_lfm2.config import LFM2Config
from pilotfish_lfm2.model import LFM2Model

KNOWN = ProbeCache()
"""What probing found, shared by every model of the session: there are few shapes."""

DTYPES = ("float32", "bfloat16")

ROWS_IN_PLACE = 16
"""Fewer than usual, so that short tests have passes with memory of their own."""


def pipeline_config(
    huggingface_config: Any,
    path: Path | str = "nowhere",
    dtype: str = "float32",
    max_length: int | None = None,
) -> PipelineConfig:
    """The user's options for a checkpoint on disk."""
    return PipelineConfig(
        model=ModelConfig(
            model=str(path),
            path=str(path),
            weight_format="safetensors",
            huggingface_config=huggingface_config,
            max_length=max_length,
        ),
        runtime=RuntimeConfig(dtype=dtype),
    )


def load(
    path: Path,
    dtype: str = "float32",
    backend: KernelBackend = KernelBackend(),  # noqa: B008
    **options: Any,
) -> LFM2Model:
    """Our model from a directory that save_pretrained wrote."""
    from transformers import AutoConfig

    hf = AutoConfig.from_pretrained(path)
    pipeline = pipeline_config(hf, path, dtype)
    weights = SafetensorsSource.from_file(path / "model.safetensors")
    config = LFM2Config.initialize(pipeline).finalize(hf, weights.infos)
    config = attrs.evolve(config, rows_in_place=ROWS_IN_PLACE)
    options.setdefault("return_logits", ReturnLogits.ALL)
    model = LFM2Model(pipeline, config, backend, device=torch.device("cpu"), **options)
    model.load_model(weights, KNOWN if backend.name == "torch" else None)
    return model


class Driver:
    """Requests with state; `run` is one pass over some rows of some of them.

    What no request owns, and rows not yet written, are NaN. prefix_caching: pages and columns are
    shared; a claim then says how many rows it restored.
    """

    def __init__(
        self,
        model: LFM2Model,
        *,
        page_size_tokens: int = 4,
        num_pages: int = 64,
        max_slots: int = 8,
        prefix_caching: bool = False,
    ) -> None:
        self.model = model
        self.caches: list[ConvStateCache] = [
            model.make_cache(
                spec,
                max_slots=max_slots,
                num_pages=num_pages if prefix_caching else 0,
                poison=True,
            )
            for spec in model.state
            if isinstance(spec, SlotStateSpec)
        ]
        self.states = StateManager(
            [model.config.kv_params.spec],
            num_pages=num_pages,
            page_size_tokens=page_size_tokens,
            device=model.device,
            prefix_caching=prefix_caching,
            slot_caches=self.caches,
            poison=True,
        )
        self.contexts: dict[str, RequestContext] = {}

    def add(self, name: str, prompt: Sequence[int]) -> int:
        """A new request; returns the rows restored."""
        keys = prompt if self.states.prefix_caching else ()
        restored = self.states.claim(name, keys)
        self.contexts[name] = RequestContext(
            request_id=name,
            tokens=list(prompt),
            num_computed=restored,
            num_prompt_tokens=len(prompt),
        )
        return restored

    def drop(self, name: str) -> RequestContext:
        """Releases a request's state."""
        self.states.release(name)
        return self.contexts.pop(name)

    def run(
        self, rows: dict[str, int], keep: dict[str, int] | None = None
    ) -> dict[str, torch.Tensor]:
        """The next `rows[name]` rows of each request; the first `keep[name]` are committed.

        keep: None commits all. Returns name -> logits [rows, V] (the model returns ALL).
        """
        contexts = [self.contexts[name] for name in rows]
        for context, count in zip(contexts, rows.values(), strict=True):
            context.num_scheduled = count
            self.states.reserve(context.request_id, context.scheduled_tokens)
        kv = self.states.kv_inputs(list(rows), list(rows.values()))
        inputs = self.model.prepare_initial_token_inputs([contexts], kv)
        outputs = self.model.execute(inputs)
        bounds = outputs.logit_offsets.tolist()
        for name in rows:
            kept = (rows if keep is None else keep)[name]
            self.states.commit(name, kept)
            self.contexts[name].num_computed += kept
        return {
            name: outputs.logits[bounds[b] : bounds[b + 1]].clone() for b, name in enumerate(rows)
        }

    def columns(self, name: str) -> list[torch.Tensor]:
        """The convolutions' committed state, without the column that no row reads: [D, W - 1]."""
        return [layer[0, :, 1:] for cache in self.caches for layer in cache.get_states([name])]


def whole(model: LFM2Model, prompt: Sequence[int], **options: Any) -> torch.Tensor:
    """[T, V]: one request, one pass, every row's logits."""
    driver = Driver(model, **options)
    driver.add("a", prompt)
    return driver.run({"a": len(prompt)})["a"]


def chunked(model: LFM2Model, prompt: Sequence[int], size: int, **options: Any) -> torch.Tensor:
    """[T, V]: one request, passes of `size` rows."""
    driver = Driver(model, **options)
    driver.add("a", prompt)
    cuts = range(0, len(prompt), size)
    return torch.cat([driver.run({"a": min(size, len(prompt) - c)})["a"] for c in cuts])


def greedy(
    model: LFM2Model, prompt: Sequence[int], count: int, *, prefill_chunk: int = 1000
) -> list[int]:
    """Greedy tokens, one at a time."""
    driver = Driver(model)
    driver.add("a", prompt)
    context = driver.contexts["a"]
    answer: list[int] = []
    while len(answer) < count:
        left = len(context.tokens) - context.num_computed
        logits = driver.run({"a": min(left, prefill_chunk)})["a"][-1]
        if context.num_computed == len(context.tokens):
            answer.append(int(logits.argmax()))
            context.tokens.append(answer[-1])
    return answer
