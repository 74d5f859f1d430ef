"""Pilotfish beside transformers on one checkpoint: prefill and decoding, at several batch sizes.

Knows: how both are loaded on a device, and what a step must read. Does not know: drafts.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from gpu.results import Results
from gpu.shapes import Shape
from pilotfish import LLM, CacheConfig
from pilotfish.bench.agreement import compare_tokens
from pilotfish.bench.measure import alternate, timed
from pilotfish.bench.peers import PilotfishSide, TransformersSide
from pilotfish.bench.workloads import TokenIds, Workload


@attrs.frozen(kw_only=True)
class Plan:
    """What is measured. num_prompt, num_decoded: tokens of each request at decode.

    cache_bytes: that all state of one LLM may take.
    """

    device: str
    batches: tuple[int, ...]
    prefills: tuple[int, ...]
    num_prompt: int
    num_decoded: int
    rounds: int
    max_length: int
    cache_bytes: int

    def load(self, path: Path, **options: Any) -> LLM:
        """An LLM on the device, in bfloat16, with room for the largest batch."""
        return LLM(
            str(path),
            dtype="bfloat16",
            device=self.device,
            max_batch_size=max(self.batches),
            max_batch_tokens=max(self.prefills),
            max_length=self.max_length,
            cache=CacheConfig(prefix_caching=False, memory_bytes=self.cache_bytes),
            **options,
        )


GPU = Plan(
    device="cuda", batches=(1, 4, 16, 64), prefills=(512, 2048), num_prompt=128, num_decoded=64,
    rounds=3, max_length=8192, cache_bytes=12 << 30,
)  # fmt: skip
TOY = Plan(
    device="cpu", batches=(1, 2), prefills=(8, 24), num_prompt=6, num_decoded=6,
    rounds=1, max_length=64, cache_bytes=1 << 24,
)  # fmt: skip


class Ours(PilotfishSide):
    """A loaded LLM as one side of a comparison."""

    def __init__(self, llm: LLM, name: str) -> None:
        self.llm, self.name = llm, name


class Theirs(TransformersSide):
    """transformers on a device: bfloat16, its scaled-dot-product attention, its own cache."""

    def __init__(self, path: Path, device: str) -> None:
        from transformers import AutoModelForCausalLM

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(path), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self.model = loaded.to(device).eval()
        self.tokenizer, self.device = None, device

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """Exactly num_tokens greedy tokens for prompts of one length."""
        ids = torch.tensor(prompts, device=self.device)
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        rows: list[TokenIds] = out[:, ids.shape[1] :].tolist()
        return rows


Side = PilotfishSide | TransformersSide


def free_memory() -> None:
    """Gives back what deleted models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_model(part: str, shape: Shape, path: Path, plan: Plan, results: Results) -> None:
    """Rows beside transformers, then invariant beside fastest arithmetic."""
    seconds, llm = timed(lambda: plan.load(path))
    results.add(part, name="load, ours", value=seconds, unit="s")
    ours = Ours(llm, "pilotfish")
    seconds, theirs = timed(lambda: Theirs(path, plan.device))
    results.add(part, name="load, transformers", value=seconds, unit="s")
    comparison = _Comparison(part=part, shape=shape, plan=plan, results=results)
    comparison.measure(ours, theirs)
    del theirs
    free_memory()
    fastest = Ours(plan.load(path, arithmetic="fastest"), "pilotfish fastest")
    few = attrs.evolve(plan, batches=(plan.batches[0], plan.batches[-1]))
    few = attrs.evolve(few, prefills=plan.prefills[-1:])
    attrs.evolve(comparison, plan=few).measure(ours, fastest)
    del ours, fastest, llm
    free_memory()


@attrs.frozen(kw_only=True)
class _Comparison:
    part: str
    shape: Shape
    plan: Plan
    results: Results

    def measure(self, ours: Ours, theirs: Side) -> None:
        """All batches and prefills of the plan."""
        work = Workload.of(ours.llm)
        for batch in self.plan.batches:
            prompts = [work.random(self.plan.num_prompt, seed) for seed in range(batch)]
            self._decode(ours, theirs, prompts)
        for length in self.plan.prefills:
            self._prefill(ours, theirs, work.random(length, 0))

    def _decode(self, ours: Ours, theirs: Side, prompts: list[TokenIds]) -> None:
        count, batch = self.plan.num_decoded, len(prompts)
        step_ours, step_theirs = alternate(
            [self._step_s(ours, prompts), self._step_s(theirs, prompts)], rounds=self.plan.rounds
        )
        keys = self.plan.num_prompt + count / 2
        num_bytes = self.shape.step_bytes + batch * keys * self.shape.token_bytes
        bandwidth = self.results.value("bandwidth", "copy")
        self.results.add(
            self.part,
            name=f"decode, {batch} requests",
            value=batch / step_ours,
            theirs=batch / step_theirs,
            peer=theirs.name,
            unit="tokens/s",
            step_ms=1e3 * step_ours,
            gigabytes=num_bytes / 1e9,
            of_bandwidth=None if bandwidth is None else num_bytes / bandwidth / step_ours,
            tokens=shortened(compare_tokens(ours, theirs, prompts, count)),
        )

    def _step_s(self, side: Side, prompts: list[TokenIds]) -> Callable[[int], float]:
        """Seconds of a step: an answer of N + 1 tokens less one of a single token."""
        count = self.plan.num_decoded

        def run(_: int) -> float:
            first = timed(lambda: side.generate(prompts, 1))[0]
            whole = timed(lambda: side.generate(prompts, count + 1))[0]
            return max(whole - first, 1e-9) / count

        return run

    def _prefill(self, ours: Ours, theirs: Side, prompt: TokenIds) -> None:
        def seconds(side: Side) -> Callable[[int], float]:
            return lambda _: timed(lambda: side.generate([prompt], 1))[0]

        pair = alternate([seconds(ours), seconds(theirs)], rounds=self.plan.rounds)
        rate = self.results.value("bandwidth", "product")
        flops = len(prompt) * self.shape.token_flops
        self.results.add(
            self.part,
            name=f"prefill of {len(prompt)} tokens",
            value=len(prompt) / pair[0],
            theirs=len(prompt) / pair[1],
            peer=theirs.name,
            unit="tokens/s",
            step_ms=1e3 * pair[0],
            of_product_rate=None if rate is None else flops / rate / pair[0],
            tokens=shortened(compare_tokens(ours, theirs, [prompt], 1)),
        )


def shortened(equal: bool | str) -> str:
    """As `compare_tokens` says it, with the first near-tie alone."""
    if isinstance(equal, bool):
        return "equal" if equal else "DIFFERENT"
    told, *more = equal.split("; token")
    return f"{told}; {len(more)} more" if more else told
