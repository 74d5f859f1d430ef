"""Admission: turns a prompt and its options into a request, or refuses it before any work.

Knows: the vocabulary, the context and how much state there is. Does not know: what runs.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import attrs

from pilotfish.batch import PlacedImage
from pilotfish.config import SamplingParams
from pilotfish.config.checks import plain
from pilotfish.config.sampling import seed_of_sample
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.prompt import RAW, MultimodalPrompt, Prompt
from pilotfish.engine.request import Request
from pilotfish.engine.stopping import StopRules
from pilotfish.errors import CapacityError, RequestError
from pilotfish.multimodal.admission import ImageAdmission
from pilotfish.speculation import SpeculationCounters
from pilotfish.tokenization.detokenizer import Detokenizer
from pilotfish.tokenization.tokenizer import Tokenizer, need_tokenizer


@attrs.define(kw_only=True)
class Admission:
    """What a request must fit.

    vocab_size: ids that the model knows. max_seq_len: tokens of a context, prompt and answer.
    eos_token_ids: tokens that end an answer. max_cached_tokens: rows that the whole state holds.
    tokenizer: None for a checkpoint without one. model_path: the checkpoint's, for messages.
    lengths: the model's. new_counters: of a request's speculation; None without. load_s: reported
        in each output.
    images: what images it takes; None for a model of which that is not known: text only.
    """

    vocab_size: int
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    max_cached_tokens: int
    tokenizer: Tokenizer | None = None
    model_path: str | None = None
    lengths: LengthRules = attrs.field(factory=LengthRules)
    new_counters: Callable[[], SpeculationCounters | None] | None = None
    load_s: float = 0.0
    images: ImageAdmission | None = None
    _num_admitted: int = 0

    def admit_samples(self, prompt: Prompt, params: SamplingParams, index: int) -> list[Request]:
        """A request for each of the answers that `params.n` asks for. Raises as `admit`."""
        self._check_params(params)
        if params.n == 1:
            return [self.admit(prompt, params, index=index)]
        seed = secrets.randbits(63) if params.seed is None else params.seed
        each = [
            attrs.evolve(params, seed=seed_of_sample(seed, sample)) for sample in range(params.n)
        ]
        requests = [self.admit(prompt, one, index=index) for one in each]
        for sample, request in enumerate(requests):
            request.sample = sample
        return requests

    def admit(
        self, prompt: Prompt, params: SamplingParams, *, index: int = 0, streams: bool = False
    ) -> Request:
        """A request for an answer.

        prompt: text, or token ids, or a record with images. max_tokens is cut to what the context
        leaves; then the answer ends with "length". Raises RequestError for an empty prompt, a
        token id out of range, a prompt that leaves no room for an answer, text or stop strings
        without a tokenizer, images that the model does not serve or that cannot be read;
        CapacityError when the state could not hold it even alone.
        """
        self._check_params(params)
        tokens, images = self._placed(prompt)
        if len(tokens) >= self.max_seq_len:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; wanted at most {self.max_seq_len - 1}: the "
                f"context of {self.max_seq_len} holds prompt and answer. Shorten the prompt, or "
                "raise max_length if the model allows it"
            )
        rules = StopRules.of(
            params,
            num_prompt_tokens=len(tokens),
            eos_token_ids=[token for token in self.eos_token_ids if 0 <= token < self.vocab_size],
            max_seq_len=self.max_seq_len,
        )
        # The last token of an answer is never computed, so it takes no row.
        self._check_capacity(len(tokens), rules.max_total_tokens - 1)
        request = self._request(tokens, params, rules, images, streams=streams)
        request.index = index
        if self.tokenizer is not None:
            is_text = isinstance(MultimodalPrompt.of(prompt).prompt, str)
            continued = tuple(tokens) if is_text else ()  # the list grows with the answer
            request.new_detokenizer = partial(
                Detokenizer, self.tokenizer, params.stop, context=continued
            )
            request.detokenizer = request.new_detokenizer()
        request.counters = None if self.new_counters is None else self.new_counters()
        return request

    def admit_scoring(self, prompt: Prompt) -> Request:
        """A request for the logits of every token of a prompt, which may fill the context."""
        tokens, images = self._placed(prompt)
        if len(tokens) > self.max_seq_len:
            raise RequestError(
                f"the text has {len(tokens)} tokens; wanted at most {self.max_seq_len}, the context"
            )
        self._check_capacity(len(tokens), len(tokens))
        rules = StopRules(end_ids=frozenset(), min_tokens=0, max_total_tokens=len(tokens))
        return self._request(tokens, SamplingParams(seed=0), rules, images, keeps_logits=True)

    def check_scores(self, num_rows: int, available: int) -> None:
        """Raises CapacityError when logits of so many rows do not fit `available` bytes."""
        num_bytes = num_rows * self.vocab_size * 4
        if num_bytes > available:
            raise CapacityError(
                f"the logits of {num_rows} tokens take {num_bytes / 1e9:.1f} GB in float32 and "
                f"{available / 1e9:.1f} GB are free; score fewer or shorter texts at once"
            )

    def _request(
        self,
        tokens: list[int],
        params: SamplingParams,
        rules: StopRules,
        images: tuple[PlacedImage, ...],
        **options: Any,
    ) -> Request:
        self._num_admitted += 1
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        return Request(
            request_id=f"request-{self._num_admitted}",
            tokens=tokens,
            num_prompt_tokens=len(tokens),
            images=images,
            index=0,
            params=params,
            seed=seed,
            rules=rules,
            lengths=self.lengths,
            load_s=self.load_s,
            **options,
        )

    def _placed(self, prompt: Prompt) -> tuple[list[int], tuple[PlacedImage, ...]]:
        """The prompt's ids with its images in their places."""
        record = MultimodalPrompt.of(prompt)
        tokens = self._tokens(record.prompt)
        if self.images is not None:
            return self.images.place(tokens, record.images)
        if record.images:
            raise RequestError("the prompt has images and the model serves text only")
        return tokens, ()

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        """The prompt's ids, in a list of our own."""
        tokens: list[Any]
        if isinstance(prompt, str):
            tokens = need_tokenizer(self.tokenizer, self.model_path).encode_prompt(prompt)
        elif isinstance(prompt, Sequence) and not isinstance(prompt, RAW):
            tokens = list(map(plain, prompt))
        else:
            raise RequestError(
                f"a prompt is {type(prompt).__name__}; wanted text or a list of token ids"
            )
        if not tokens:
            raise RequestError("the prompt is empty; wanted at least one token")
        for place, token in enumerate(tokens):
            if type(token) is not int or not 0 <= token < self.vocab_size:
                raise RequestError(
                    f"token {place} of the prompt is {token!r}; wanted a whole number from 0 to "
                    f"{self.vocab_size - 1}, the model's vocabulary"
                )
        return tokens

    def _check_params(self, params: SamplingParams) -> None:
        if params.stop and self.tokenizer is None:
            raise RequestError(
                "stop strings need a tokenizer and the checkpoint has none; use stop_token_ids"
            )
        ids = {
            name: getattr(params, name)
            for name in ("logit_bias", "suppress_tokens", "stop_token_ids")
        }
        for name, tokens in ids.items():
            for token in tokens:
                if token >= self.vocab_size:
                    raise RequestError(
                        f"{name} has token id {token}; wanted ids from 0 to {self.vocab_size - 1}, "
                        "the model's vocabulary"
                    )

    def _check_capacity(self, num_prompt_tokens: int, num_rows: int) -> None:
        if num_rows > self.max_cached_tokens:
            raise CapacityError(
                f"a prompt of {num_prompt_tokens} tokens with its answer takes {num_rows} rows and "
                f"the cache has {self.max_cached_tokens}, so it could never run; lower max_tokens, "
                "shorten the prompt, or raise num_pages"
            )
