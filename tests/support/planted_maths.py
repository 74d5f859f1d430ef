"""Bugs of loading and of what is computed."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from pilotfish.parallel.collectives import all_gather
from support.planted_bugs import (
    BIASED,
    BUGS,
    EXPERTS,
    MANAGER,
    MODEL,
    Bug,
    bug,
)


@bug(
    29,
    "taps are off by one boundary",
    "boundaries are the oracle's",
    "pilotfish.models.decoder:Decoder.run",
)
def _(real: Any) -> Any:
    def run(self: Any, rows: Any, one_pass: Any, boundaries: Any = ()) -> Any:
        last = len(self.layers)
        every = frozenset(range(last + 1))
        state, kept = real(self, rows, one_pass, every if boundaries else ())
        return state, {i: kept[min(i + 1, last)] for i in boundaries}

    return run


@bug(
    30,
    "a tensor that the model has no place for is dropped",
    "weights are strict",
    "pilotfish.weights.load_plan:_Planner._account_for_rest",
)
def _(real: Any) -> Any:
    return lambda self: ()


@bug(
    30,
    "a bias is loaded and never added",
    "every tensor counts",
    "pilotfish.layers.linear:prepare_linear",
    BIASED,
)
def _(real: Any) -> Any:
    return lambda weight, bias, **options: real(weight, None, **options)


@bug(
    33,
    "the rope base of the checkpoint is lost",
    "parity with the oracle",
    "pilotfish.layers.rope:Rotary.__init__",
    BIASED,
)
def _(real: Any) -> Any:
    def start(self: Any, parameters: Any, **options: Any) -> None:
        real(self, attrs.evolve(parameters, theta=10000.0), **options)

    return start


@bug(
    0,
    "scores have another scale where there are more than 256 keys",
    "parity with the oracle",
    "pilotfish.layers.attention:paged_attention",
)
def _(real: Any) -> Any:
    def attention(q: Any, cache: Any, plan: Any, *, scale: float, **options: Any) -> Any:
        most = max(
            before + rows for before, rows in zip(plan.lengths, plan.row_counts, strict=True)
        )
        return real(q, cache, plan, scale=scale * (0.9 if most > 256 else 1), **options)

    return attention


@bug(
    0,
    "what a row may not see is multiplied by 0, and 0 * NaN is NaN",
    "later rows do not reach earlier ones",
    "pilotfish.kernels.paged_attention.eager:without_unseen",
)
def _(real: Any) -> Any:
    return lambda out, *rest: out


@bug(
    0,
    "a product of a plugin's own adds in another order for few rows, at real widths only",
    "rows are their own at real widths",
    "pilotfish.layers.mlp:GatedMLP.__call__",
)
def _(real: Any) -> Any:
    def feed_forward(self: Any, x: Any, run: Any) -> Any:
        made = real(self, x, run)
        if x.shape[1] < 512:
            return made
        return made * shared_gate(x).to(x.dtype)

    return feed_forward


def shared_gate(x: torch.Tensor) -> torch.Tensor:
    """x: [T, D] -> [T, 1]: a library's choice of kernel by T, the same on every machine."""
    weight = torch.linspace(-1, 1, x.shape[1])
    if x.shape[0] > 16:
        return 1 + (x.float() * weight).sum(-1, keepdim=True)
    halves = (x.float() * weight).unflatten(1, (2, -1)).sum(-1)
    return 1 + halves.sum(-1, keepdim=True)


@bug(
    0,
    "a form that only the fastest arithmetic takes has another scale",
    "the arithmetics agree",
    "pilotfish_kimi_k25.mla:attend_expanded",
    ("KimiK25ForConditionalGeneration", "whole"),
)
def _(real: Any) -> Any:
    return lambda *args, scale, **options: real(*args, scale=1.01 * scale, **options)


@bug(
    35,
    "features of the first request are handed to all",
    "hidden modes agree",
    f"{MODEL}._hidden_states",
)
def _(real: Any) -> Any:
    def hidden(self: Any, state: Any, kept: Any, row_counts: Any) -> Any:
        found = real(self, state, kept, row_counts)
        return found if found is None or found.shape[0] != 3 else found[:1].expand(3, -1)

    return hidden


@bug(
    36,
    "taps come sorted and without repeats",
    "hidden modes agree",
    f"{MODEL}.__init__",
)
def _(real: Any) -> Any:
    def start(self: Any, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        asked = self.aux_hidden_state_layers
        self.aux_hidden_state_layers = tuple(sorted(asked))

    return start


@bug(
    41,
    "an unknown rope type is taken for the default",
    "unknown kinds are refused",
    "pilotfish.config.rope:_rope_options",
)
def _(real: Any) -> Any:
    def options(config: Any, owner: str) -> Any:
        found = dict(real(config, owner))
        return found if found.get("rope_type") != "unheard-of" else {"rope_type": "default"}

    return options


@bug(
    41,
    "options that the family does not read are ignored",
    "options are read or refused",
    "pilotfish_llama3.config:refuse_unread",
)
def _(real: Any) -> Any:
    return lambda config, architecture: None


@bug(
    42,
    "a tensor that is missing is left as it was made",
    "weights are strict",
    "pilotfish.weights.misfits:Misfits.refuse",
)
def _(real: Any) -> Any:
    return lambda self: None


@bug(
    0,
    "a row's bits depend on how many rows are computed with it",
    "batch equals singles",
    "pilotfish.models.decoder:Decoder.logits",
)
def _(real: Any) -> Any:
    return lambda self, normed, backend: real(self, normed, backend) * (1 + 1e-6 * normed.shape[0])


@bug(
    0,
    "one request of a mixture reads another's table",
    "any mixture equals singles",
    f"{MANAGER}.kv_inputs",
)
def _(real: Any) -> Any:
    def inputs(self: Any, names: Any, counts: Any, *args: Any, **options: Any) -> Any:
        found = real(self, names, counts, *args, **options)
        if len(names) > 2 and 1 in counts:
            found.lookup_table[-1] = found.lookup_table[0]
        return found

    return inputs


@bug(
    0,
    "rows of a large page are written one too far",
    "pages do not matter",
    f"{MANAGER}.kv_inputs",
)
def _(real: Any) -> Any:
    def inputs(self: Any, names: Any, counts: Any, *args: Any, **options: Any) -> Any:
        found = real(self, names, counts, *args, **options)
        if self.page_size_tokens == 16 and counts[0] == 9:
            found.write_slots[-1] += 1
        return found

    return inputs


@bug(
    0,
    "the next row's slot forgets the page",
    "next inputs equal packed inputs",
    "pilotfish.models.inputs:next_row",
)
def _(real: Any) -> Any:
    def next_row(kv: Any, offsets: Any) -> Any:
        found = real(kv, offsets)
        return attrs.evolve(found, write_slots=found.write_slots - found.write_slots % 4)

    return next_row


@bug(
    0,
    "LAST_TOKEN returns first rows",
    "logit modes agree",
    "pilotfish.models.decoder_model:wanted_rows",
)
def _(real: Any) -> Any:
    def wanted(mode: Any, row_counts: Any, counts: Any) -> Any:
        found = real(mode, row_counts, counts)
        if mode != "last_token":
            return found
        starts = [sum(row_counts[:i]) for i in range(len(row_counts))]
        return attrs.evolve(found, indices=starts)

    return wanted


@bug(
    0,
    "buffers are listed in an order of their own",
    "buffers are in declared order",
    "pilotfish.protocols:TensorRecord.buffers",
)
def _(real: Any) -> Any:
    return property(lambda self: tuple(reversed(real.fget(self))))


@bug(
    0,
    "the Hugging Face config is changed while it is read",
    "config round trip",
    "pilotfish_llama3.config:refuse_unread",
)
def _(real: Any) -> Any:
    def want(config: Any, architecture: str) -> None:
        real(config, architecture)
        config.seen = True

    return want


@bug(
    0,
    "a parameter is missing from the memory plan",
    "parameters are known early",
    f"{MODEL}.parameter_shapes",
)
def _(real: Any) -> Any:
    return lambda self: dict(list(real(self).items())[1:])


@bug(
    0,
    "models share what they load",
    "loading twice is the same",
    f"{MODEL}.load_model",
)
def _(real: Any) -> Any:
    loaded: list[Any] = []

    def load(self: Any, weights: Any, *args: Any) -> None:
        real(self, weights, *args)
        if loaded and loaded[-1].dtype == self.dtype:
            self.network.norm.weight *= 1.5
        loaded.append(self)

    return load


@bug(
    0,
    "a greedy answer takes the runner-up",
    "greedy tokens are the oracle's",
    "pilotfish.sampling.sampler:lowest_argmax",
)
def _(real: Any) -> Any:
    def second(scores: Any) -> Any:
        top = scores.topk(2)
        return top.indices[:, 1], top.values[:, 0]

    return second


@bug(
    0,
    "a plan gives attention another scale than the layer's call",
    "planned passes equal called layers",
    "pilotfish.layers.attention:plan_paged_attention",
    is_native=True,
)
def _(real: Any) -> Any:
    def plan(*args: Any, scale: float, **options: Any) -> Any:
        return real(*args, scale=1.01 * scale, **options)

    return plan


@bug(
    0,
    "an elementwise function rounds the end of an array by other code than the rest",
    "batch equals singles",
    "pilotfish.layers.mlp:GatedMLP.__call__",
    is_native=True,
)
def _(real: Any) -> Any:
    def call(self: Any, x: Any, run: Any) -> Any:
        gate, up = self.gate_up(x, run.backend).chunk(2, dim=1)
        gate = torch.nn.functional.gelu(gate.contiguous(), approximate="tanh")
        return self.down(gate * up, run.backend)

    return call


BUGS.append(
    Bug(
        number=0,
        what="a model has an `embed_input`, and nobody calls it",
        promise="optional members are spelt right",
        plant=lambda patch: patch.setattr(
            "pilotfish_llama3.model.Llama3Model.embed_input", None, raising=False
        ),
    )
)


@bug(
    0,
    "sums over ranks are added in the order of ranks",
    "any number of ranks gives the same bits",
    "pilotfish.layers.row_parallel:all_reduce",
    is_native=True,
)
def _(real: Any) -> Any:
    def in_order(group: Any, terms: Any, num_slices: int) -> Any:
        own = terms[0]
        for term in terms[1:]:
            own = own + term
        if group.is_alone:
            return own
        first, *others = all_gather(group, own)
        for other in others:
            first = first + other
        return first

    return in_order


@bug(
    0,
    "results of experts are summed in the order of ranks, not of the row's own choice",
    "any number of ranks gives the same bits",
    "pilotfish.layers.experts_over_replicas:combine_rows",
    EXPERTS,
    is_native=True,
)
def _(real: Any) -> Any:
    def by_rank(x: Any, places: Any, weights: Any, last: Any, backend: Any) -> Any:
        order = places.argsort(dim=1, descending=True)
        return real(x, places.gather(1, order), weights.gather(1, order), last, backend=backend)

    return by_rank
