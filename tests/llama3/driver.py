"""A naive driver: one model, one StateManager, passes as the test asks for them. No engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pilotfish.batch import RequestContext
from pilotfish.config import ModelConfig, PipelineConfig, RuntimeConfig
from pilotfish.invariance.probe_cache import ProbeCache
from pilotfish.kernels import KernelBackend
from pilotfish.protocols import ModelOutputs, ReturnHiddenStates, ReturnLogits
from pilotfish.state.manager import StateManager
from pilotfish.weights.formats.safetensors import SafetensorsSource
from pilotfish_llama3.config import Llama3Config
from pilotfish_llama3.model import Llama3Model

KNOWN = ProbeCache()
"""What probing found, shared by every model of the session: there are few shapes."""


def pipeline_config(
    path: Path | str, huggingface_config: Any, dtype: str = "float32", max_length: int | None = None
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
    device: str = "cpu",
    **options: Any,
) -> Llama3Model:
    """Our model from a directory that save_pretrained wrote."""
    from transformers import AutoConfig

    hf = AutoConfig.from_pretrained(path)
    pipeline = pipeline_config(path, hf, dtype)
    weights = SafetensorsSource.from_file(path / "model.safetensors")
    config = Llama3Config.initialize(pipeline).finalize(hf, weights.infos)
    options.setdefault("return_logits", ReturnLogits.ALL)
    model = Llama3Model(pipeline, config, backend, device=torch.device(device), **options)
    model.load_model(weights, KNOWN if backend.invariant else None)
    return model


class Driver:
    """Requests with state; `run` is one pass over some rows of some of them.

    Pages that no request owns, and rows not yet written, are NaN.
    """

    def __init__(self, model: Llama3Model, page_size_tokens: int = 4, num_pages: int = 64) -> None:
        self.model = model
        self.states = StateManager(
            model.state,
            num_pages=num_pages,
            page_size_tokens=page_size_tokens,
            device=model.device,
            prefix_caching=False,
            poison=True,
        )
        self.contexts: dict[str, RequestContext] = {}

    def add(self, name: str, prompt: Sequence[int]) -> RequestContext:
        """A new request, nothing computed."""
        self.states.claim(name)
        context = RequestContext(
            request_id=name, tokens=list(prompt), num_prompt_tokens=len(prompt)
        )
        self.contexts[name] = context
        return context

    def drop(self, name: str) -> RequestContext:
        """Releases a request's state."""
        self.states.release(name)
        return self.contexts.pop(name)

    def run(self, rows: dict[str, int], return_n_logits: int | list[int] = 1) -> ModelOutputs:
        """The next `rows[name]` rows of each request, committed."""
        contexts = [self.contexts[name] for name in rows]
        for context, count in zip(contexts, rows.values(), strict=True):
            context.num_scheduled = count
            self.states.reserve(context.request_id, context.scheduled_tokens)
        kv = self.states.kv_inputs(list(rows), list(rows.values()))
        inputs = self.model.prepare_initial_token_inputs([contexts], kv, return_n_logits)
        outputs = self.model.execute(inputs)
        for context in contexts:
            self.states.commit(context.request_id, context.num_scheduled)
            context.num_computed += context.num_scheduled
        return outputs


def whole(model: Llama3Model, prompt: Sequence[int], **options: Any) -> torch.Tensor:
    """[T, V]: one request, one pass, every row's logits (the model returns ALL)."""
    driver = Driver(model, **options)
    driver.add("a", prompt)
    return driver.run({"a": len(prompt)}).logits.clone()


def chunked(model: Llama3Model, prompt: Sequence[int], sizes: Sequence[int]) -> torch.Tensor:
    """[T, V]: one request, several passes."""
    driver = Driver(model)
    driver.add("a", prompt)
    return torch.cat([driver.run({"a": size}).logits for size in sizes])


def greedy(
    model: Llama3Model, prompt: Sequence[int], count: int, *, prefill_chunk: int = 1000
) -> list[int]:
    """Greedy tokens, one at a time; prefills anew where the config says so (config/rope.py)."""
    driver = Driver(model)
    context = driver.add("a", prompt)
    answer: list[int] = []
    while len(answer) < count:
        context = _restart_if_due(driver, context)
        left = len(context.tokens) - context.num_computed
        logits = driver.run({"a": min(left, prefill_chunk)}).logits[-1]
        if context.num_computed == len(context.tokens):
            answer.append(int(logits.argmax()))
            context.tokens.append(answer[-1])
    return answer


def _restart_if_due(driver: Driver, context: RequestContext) -> RequestContext:
    limit = driver.model.config.recompute_length
    known = max(context.num_prompt_tokens, context.num_restart_tokens)
    if limit is None or not known <= limit < len(context.tokens):
        return context
    driver.drop("a")
    again = driver.add("a", context.tokens)
    again.num_prompt_tokens = context.num_prompt_tokens
    again.num_restart_tokens = len(context.tokens)
    return again


def selected(model_path: Path, boundaries: Sequence[int], **options: Any) -> Llama3Model:
    """A model that returns the stream at some boundaries."""
    return load(
        model_path,
        return_hidden_states=ReturnHiddenStates.SELECTED,
        aux_hidden_state_layers=boundaries,
        **options,
    )
