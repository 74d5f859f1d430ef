"""NativePass: a decoder's pass as native calls, laid down once and run in one go.

Knows: the order of layers, and where a pass's inputs and results lie. Does not know: batches, or
what any layer computes (it plans itself, see pass_plan.py).
Axis letters: T packed tokens, R rows with logits, D model width, V vocabulary, L layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Literal, Self

import attrs
import torch

from pilotfish.kernels import KernelBackend
from pilotfish.kernels.native.buffers import Buffer, Pointer, Rows
from pilotfish.kernels.native.numbers import address_of, want_indices
from pilotfish.kernels.rms_norm.native import plan_add_scaled
from pilotfish.kernels.take_rows.native import plan_take_rows
from pilotfish.layers.embedding import Embedding
from pilotfish.layers.forward_pass import ForwardPass
from pilotfish.layers.pass_plan import PassPlan, has_plan, is_as_written, replaced
from pilotfish.models.decoder import Decoder

_INDEX, _TOKENS = Pointer("logits_index"), Pointer("tokens")
_SCALED = Decoder.scaled
"""As it was written."""


def why_called(network: Decoder, dtype: torch.dtype) -> str:
    """Why the layers of a network are called one by one, in words; "" where they may be planned."""
    own = replaced(network, Decoder)
    if own:
        names = ", ".join(f"`{name}`" for name in own)
        return f"{type(network).__name__} has a {names} of its own"
    given = network.dtypes_given or {dtype}
    if given != {dtype} and not all(map(has_plan, network.layers)):
        block = next(block for block in network.layers if not has_plan(block))
        listed = " and ".join(sorted(map(str, given)))
        return (
            f"the block {type(block).__name__} has no `plan` and gives rows of {listed}, which a "
            f"plan would round to {dtype}"
        )
    return ""


class NativePass:
    """network: its weights are there. boundaries: which are kept; see `Decoder.run`.

    embeds: whether what enters block 0 is what the network's embedding says of each token, and
    nothing else. takes_tokens: whether a pass is given those; else it is given rows.
    One thread at a time, as the model that owns it.
    """

    def __init__(
        self,
        network: Decoder,
        backend: KernelBackend,
        *,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
        boundaries: Collection[int] = (),
        embeds: bool = False,
    ) -> None:
        self._network = network
        self._logit_rows = Rows("R")
        self._kept: dict[int, Buffer | None] = {}
        self._run = PassPlan(
            rotary=network.rotary, dtype=dtype, cache_dtype=cache_dtype, backend=backend
        )
        self.serves = self._run.serves
        embedding = network.embed_tokens
        is_usual = isinstance(embedding, Embedding) and embedding.multiplier == 1.0
        self.takes_tokens = embeds and is_usual and has_plan(embedding)
        self._x = self._run.buffer(embedding.width)
        if self.takes_tokens:
            embedding.plan(self._run, _TOKENS, self._x)
        else:
            self._run.plan.fill(self._x)
        x, residual = self._x, None
        for number, block in enumerate(network.layers):
            self._keep(number, x, residual, boundaries)
            x, residual = self._run.block(block, x, residual)
            self._run.plan.mark()
        self._keep(len(network.layers), x, residual, boundaries)
        self._plan_head(x, residual)
        self._calls = self._run.plan.finish()

    @property
    def num_torch_steps(self) -> int:
        """What of a pass is no native call: layers without a plan."""
        return self._calls.num_torch_steps

    @classmethod
    def of(
        cls, network: Decoder, backend: KernelBackend, *, dtype: torch.dtype, **options: Any
    ) -> Self | Literal[False] | None:
        """A network's pass; False where it runs, finishes or makes logits in a way of its own.

        False too where a block that has no plan gives rows of another dtype than the model's, such
        as a residual stream in float32: a plan would round them. None where such a block has yet to
        be seen at work.
        """
        if not all(map(has_plan, network.layers)) and network.dtypes_given is None:
            return None if is_as_written(network, Decoder) else False
        if why_called(network, dtype):
            return False
        return cls(network, backend, dtype=dtype, **options)

    def _keep(
        self, boundary: int, x: Buffer, residual: Buffer | None, boundaries: Collection[int]
    ) -> None:
        """The stream of a boundary, in memory that the pass brings; None: the rows it was given."""
        if boundary not in boundaries:
            return
        self._kept[boundary] = None
        out = attrs.evolve(x, external=f"kept.{boundary}")
        if residual is not None:
            multiplier = self._network.residual_multiplier
            self._kept[boundary] = plan_add_scaled(self._run.plan, residual, x, multiplier, out)
        elif self.takes_tokens:
            self._kept[boundary] = self._network.embed_tokens.plan(self._run, _TOKENS, out)

    def _plan_head(self, x: Buffer, residual: Buffer | None) -> None:
        run, network = self._run, self._network
        x = plan_take_rows(run.plan, x, _INDEX, self._logit_rows)
        if residual is not None:
            residual = plan_take_rows(run.plan, residual, _INDEX, self._logit_rows)
        normed, _ = run.add_norm(network.norm, x, residual, network.residual_multiplier)
        self._vocab_size = network.lm_head.out_features
        self._logits: Buffer | None = None
        out = Buffer(self._logit_rows, self._vocab_size, torch.float32, "logits")
        if not has_plan(network.lm_head):
            out = self._logits = attrs.evolve(out, external=None)
        run.linear(network.lm_head, normed, out)
        if self._logits is not None:
            run.plan.read(self._logits)

    def __call__(
        self, entering: torch.Tensor, run: ForwardPass, indices: Sequence[int]
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
        """Runs a pass of T rows that are no padding.

        entering: [T] int64 tokens, or [T', D], what enters block 0. indices: [R], whose logits are
        wanted.
        Returns logits [R, V] float32, and the kept boundaries: each [T, D], the stream there.
        Raises ValueError for tokens that the embedding has not, and for rows of another dtype than
        the model's.
        """
        calls, num_rows, dtype = self._calls, run.num_rows, self._run.dtype
        index = torch.tensor(indices, dtype=torch.int64)
        logits = torch.empty((len(indices), self._vocab_size), dtype=torch.float32)
        others = {"logits_index": index.data_ptr(), "logits": logits.data_ptr()}
        calls.begin({self._run.rows: num_rows, self._logit_rows: len(indices)})
        if self.takes_tokens:
            want_indices("tokens", entering, self._network.embed_tokens.vocab_size)
            others["tokens"] = address_of("tokens", entering, torch.int64, num_rows)
        elif entering.dtype == dtype:
            calls.tensor(self._x).copy_(entering[:num_rows])
        else:
            raise ValueError(
                f"what enters block 0 is {entering.dtype}; wanted {dtype}, the model's dtype"
            )
        kept: dict[int, torch.Tensor] = {}
        for boundary, buffer in self._kept.items():
            if buffer is None:
                kept[boundary] = entering[:num_rows]
            else:
                kept[boundary] = torch.empty((num_rows, buffer.width), dtype=dtype)
                others[f"kept.{boundary}"] = kept[boundary].data_ptr()
        self._run.run(calls, run, others)
        if self._logits is not None:
            logits.copy_(calls.tensor(self._logits))
        network = self._network
        is_plain = network.logits_scaling == 1.0 and network.logits_cap is None
        if not is_plain or getattr(network.scaled, "__func__", None) is not _SCALED:
            logits = network.scaled(logits, self._run.backend)
        return logits, kept
