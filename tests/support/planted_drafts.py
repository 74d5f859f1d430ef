"""Bugs of speculation: what is accepted, what is drafted, and what an exception leaves."""

from __future__ import annotations

from typing import Any

import attrs
import torch

from pilotfish.engine.request import Request
from pilotfish.testing.promises import draft_probs
from pilotfish_small_model.proposer import SmallModelProposer
from support.planted_bugs import BUGS, Bug, Patch, bug

ANY = "no drafter changes a text"
COUNT = "right drafts count, wrong ones do not"
WARM_DRAFT = "a warm prefix drafts as a cold one"
LAW = "residual acceptance keeps the law"
DECIDE = "pilotfish.speculation.acceptance:CoupledAcceptance.decide"
SPECULATION = "pilotfish.engine.speculative:Speculation"
SEQUENTIAL = "pilotfish.speculation.sequential:SequentialProposer"


def _changed(real: Any, change: Any) -> Any:
    """A rule whose decisions are changed one by one; change: (request, decision) -> decision."""

    def decide(self: Any, logits: Any, requests: Any) -> Any:
        decided = real(self, logits, requests)
        return [change(r, one) for r, one in zip(requests, decided, strict=True)]

    return decide


@bug(27, "the first drafted token counts without being verified", ANY, DECIDE)
def _(real: Any) -> Any:
    def change(request: Any, one: Any) -> Any:
        if one.num_accepted or not request.drafts or request.drafts[0] > 90:
            return one
        tokens = (request.drafts[0], *one.tokens)
        return attrs.evolve(one, num_accepted=1, tokens=tokens, logprobs=one.logprobs * 2)

    return _changed(real, change)


@bug(25, "log probabilities of an accepted block are those of its last row", ANY, DECIDE)
def _(real: Any) -> Any:
    return _changed(
        real, lambda _, one: attrs.evolve(one, logprobs=one.logprobs[-1:] * len(one.tokens))
    )


@bug(
    24,
    "penalties of a verify row leave out the drafted tokens before it",
    ANY,
    "pilotfish.sampling.penalties:TokenHistory.counts_with",
)
def _(real: Any) -> Any:
    return lambda self, draft_ids: real(self, ())


@bug(
    19,
    "all rows of a block are sampled with the noise of its first position",
    ANY,
    "pilotfish.engine.request:Request.sampling_row",
)
def _(real: Any) -> Any:
    def sampling_row(self: Any, draft_ids: Any = ()) -> Any:
        return attrs.evolve(real(self, draft_ids), position=len(self.tokens))

    return sampling_row


@bug(17, "an accepted block overshoots the end of an answer", ANY, SPECULATION + "._request")
def _(real: Any) -> Any:
    over: set[Any] = set()

    def request_of(self: Any, request: Any, result: Any, width: int) -> Any:
        made = real(self, request, result, width)
        if request not in over and len(made.tokens) + 4 >= request.rules.max_total_tokens:
            over.add(request)
            request.rules = attrs.evolve(
                request.rules, max_total_tokens=request.rules.max_total_tokens + 1
            )
        return made

    return request_of


@bug(28, "nothing is drafted any more after a rejection", COUNT, SPECULATION + "._request")
def _(real: Any) -> Any:
    rejected: set[str] = set()

    def request_of(self: Any, request: Any, result: Any, width: int) -> Any:
        if result.num_accepted < len(result.drafted):
            rejected.add(request.request_id)
        return real(self, request, result, 0 if request.request_id in rejected else width)

    return request_of


@bug(
    0,
    "the drafter's exception is swallowed",
    "a failing drafter loses nothing",
    SPECULATION + ".draft",
)
def _(real: Any) -> Any:
    def draft(self: Any, *args: Any) -> None:
        try:
            real(self, *args)
        except RuntimeError:
            raise
        except Exception:
            return

    return draft


@bug(
    14,
    "an exception while drafting loses a page",
    "target and draft fail together",
    "pilotfish.state.manager:StateManager.reset",
)
def _(real: Any) -> Any:
    def reset(self: Any) -> None:
        real(self)
        self.pool.allocate(1)

    return reset


@bug(0, "the bonus token is that of another row", "the draft changes no text", DECIDE)
def _(real: Any) -> Any:
    return _changed(
        real, lambda _, one: attrs.evolve(one, tokens=(*one.tokens[:-1], one.tokens[0]))
    )


@bug(
    0,
    "a drafter proposes one token more than was asked for",
    "the draft is what was asked for",
    SEQUENTIAL + ".propose",
)
def _(real: Any) -> Any:
    def propose(self: Any, batch: Any) -> Any:
        return [attrs.evolve(p, tokens=(*p.tokens, 0)) for p in real(self, batch)]

    return propose


@bug(
    0,
    "a drafter proposes ids of another vocabulary",
    "the draft is what was asked for",
    SEQUENTIAL + ".propose",
)
def _(real: Any) -> Any:
    def propose(self: Any, batch: Any) -> Any:
        return [
            attrs.evolve(p, tokens=tuple(token + 10**6 for token in p.tokens))
            for p in real(self, batch)
        ]

    return propose


@bug(
    6,
    "a prefix hit comes without the draft's rows",
    WARM_DRAFT,
    "pilotfish.state.manager:StateManager.claim",
)
def _(real: Any) -> Any:
    def claim(self: Any, request_id: str, *args: Any, **options: Any) -> Any:
        found = real(self, request_id, *args, **options)
        for name, cache in self._paged_caches.items():
            for block in cache.blocks if name != "kv" else ():
                block[list(self.pages_of(request_id))] = 0
        return found

    return claim


@bug(
    31,
    "ids of a draft are taken for those beside them",
    "drafts are the oracle's",
    "pilotfish_small_model.proposer:fitted",
)
def _(real: Any) -> Any:
    return lambda logits, size: real(logits, size).roll(1, -1)


@bug(
    35,
    "drafted tokens of a batch share one request's noise",
    "a draft batch equals singles",
    "pilotfish.speculation.choosing:TokenChooser._sample",
)
def _(real: Any) -> Any:
    return lambda self, logits, rows: real(self, logits, [rows[0]] * len(rows))


def _with_other_probs(real: Any, power: float) -> Any:
    def verify(self: Any) -> Any:
        made = real(self)
        if made.draft.probs is None:
            return made
        flat = made.draft.probs**power
        draft = attrs.evolve(made.draft, probs=flat / flat.sum(-1, keepdim=True))
        return attrs.evolve(made, draft=draft)

    return verify


@bug(
    18,
    "q is not the law that the draft was drawn from",
    LAW,
    "pilotfish.engine.request:Request.verify_request",
)
def _(real: Any) -> Any:
    return _with_other_probs(real, 0.3)


def _flattened(patch: Patch) -> None:
    """And the tokens have no noise that the kit would know."""
    real, start = Request.verify_request, draft_probs.Tally.__init__
    patch.setattr(Request, "verify_request", _with_other_probs(real, 0.5))
    patch.setattr(
        draft_probs.Tally, "__init__", lambda self, with_noise: start(self, with_noise=False)
    )


BUGS.append(
    Bug(
        number=18,
        what="a draft is drawn from its law, and the square root of that is said",
        promise=LAW,
        plant=_flattened,
    )
)


def _asks_for_more(patch: Patch) -> None:
    kind: Any = SmallModelProposer
    start, real = kind.__init__, kind.propose

    def init(self: Any, setup: Any) -> None:
        start(self, setup)
        self.asked = setup.target

    def propose(self: Any, batch: Any) -> Any:
        self.asked.embed(torch.tensor([1]))
        return real(self, batch)

    patch.setattr(kind, "__init__", init)
    patch.setattr(kind, "propose", propose)


BUGS.append(
    Bug(
        number=0,
        what="a drafter asks its target for embeddings, and does not say that it needs them",
        promise="the draft is what was asked for",
        plant=_asks_for_more,
    )
)


@bug(
    20,
    "a residual of nothing is divided by zero",
    LAW,
    "pilotfish.speculation.acceptance:residual_probs",
)
def _(real: Any) -> Any:
    def probs(p: Any, q: Any) -> Any:
        left = (p - q).clamp(min=0.0)
        return left / left.sum()

    return probs
