"""LLM: the public way to run a model from Python.

Knows: prompts in, outputs out. Does not know: how a pass is scheduled or computed.
Axis letters: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

import torch

from pilotfish.config import (
    CacheConfig,
    PipelineConfig,
    SamplingParams,
    SpeculativeConfig,
)
from pilotfish.config.generation import sampling_of
from pilotfish.config.runtime import Arithmetic, BackendName
from pilotfish.engine.admission import Admission
from pilotfish.engine.arithmetic import why_not_invariant, why_not_portable
from pilotfish.engine.assembly import counters_for, make_engine
from pilotfish.engine.engine import Engine
from pilotfish.engine.images import ImageAdmission
from pilotfish.engine.length_rules import LengthRules
from pilotfish.engine.loading import Prepared, prepare_from_options
from pilotfish.engine.outputs import Delta, RequestOutput
from pilotfish.engine.progress import Progress
from pilotfish.engine.prompt import (
    MultimodalPrompt,
    Prompt,
    given_ids,
    listed_images,
    listed_prompts,
)
from pilotfish.engine.request import Request
from pilotfish.engine.tokenizer import Tokenizer, load_tokenizer, need_tokenizer
from pilotfish.engine.turns import Turns
from pilotfish.errors import ConfigError, PilotfishError, RequestError, UserError
from pilotfish.plugins import load_registry
from pilotfish.registry import Registry
from pilotfish.speculation import Proposer
from pilotfish.state import MemoryPlan, StateManager, available_bytes
from pilotfish.warn import warn_caller

Params = SamplingParams | Sequence[SamplingParams] | None


class LLM:
    """A loaded model that generates text. A context manager.

    Threads may share one: their calls wait for one another. To run requests together pass them
    together, or read streams in turns. A call from a signal handler or a finalizer that interrupts
    a pass raises StateError; `close`, and a stream that is dropped, wait there for the pass's end.
    After any exception, an interrupt included, the LLM can be used again, and no other stream
    notices. A forked process goes on with native kernels, or one thread; else it makes its own.

    model: a directory, a `.gguf` file, a hub id, or "demo".
    draft, speculative: a draft checkpoint and the method (or SpeculativeConfig) that uses it.
    dtype, device, backend, arithmetic, max_batch_size, max_batch_tokens: see RuntimeConfig.
    generation_config: "auto" takes what the checkpoint's generation_config.json says of sampling
        where a call gives no params; "none" does without.
    cache: see CacheConfig. max_length: limit on the context in tokens; None takes the model's own,
        or what fits the memory; max_batch_size: None takes 16, or what fits. A warning says so.
    registry: the plugins; None discovers the installed ones.

    tokenizer: None for a checkpoint without one. pipeline_config: every option, "auto" resolved.
    proposer: the drafter; None without. memory_plan: bytes of every part, and the size of the page
    pool. load_s: seconds it took.

    Raises a UserError (CheckpointError, RouteError, ConfigError, WeightsError, CapacityError) that
    says what to do; nothing is allocated before it is known to fit.
    """

    def __init__(
        self,
        model: str,
        draft: str | None = None,
        speculative: str | SpeculativeConfig | None = None,
        dtype: str = "auto",
        device: str = "auto",
        *,
        max_batch_size: int | None = None,
        max_batch_tokens: int = 512,
        cache: CacheConfig | None = None,
        arithmetic: Arithmetic = "invariant",
        max_length: int | None = None,
        backend: BackendName = "auto",
        generation_config: Literal["auto", "none"] = "auto",
        registry: Registry | None = None,
    ) -> None:
        start = perf_counter()
        if generation_config not in ("auto", "none"):
            raise ConfigError(
                f"generation_config is {generation_config!r}; wanted 'auto' (the checkpoint's "
                "defaults of sampling) or 'none'"
            )
        registry = registry if registry is not None else load_registry()
        prepared = prepare_from_options(
            str(model),
            registry=registry,
            draft=draft,
            speculative=speculative,
            cache=cache,
            max_length=max_length,
            dtype=dtype,
            device=device,
            backend=backend,
            arithmetic=arithmetic,
            max_batch_size=max_batch_size,
            max_batch_tokens=max_batch_tokens,
        )
        self.pipeline_config: PipelineConfig = prepared.pipeline_config
        self.memory_plan: MemoryPlan = prepared.memory_plan
        if self.memory_plan.note:
            warn_caller(self.memory_plan.note, RuntimeWarning)
        self.tokenizer: Tokenizer | None = load_tokenizer(prepared.checkpoint)
        self._state: StateManager | None = prepared.load()
        unproved = [] if arithmetic == "fastest" else [prepared]
        self.proposer: Proposer | None = prepared.load_proposer(registry)
        engine = make_engine(prepared, self._state, self.proposer)
        # Nothing of these knows the LLM: one that is dropped goes at once, and so does its model.
        self._warn = partial(_warn_once, unproved)
        self._turns = Turns(engine, self._warn, may_fork=prepared.backend.name == "native")
        self._admission = Admission(
            vocab_size=prepared.vocab_size,
            max_seq_len=prepared.model.config.get_max_seq_len(),
            eos_token_ids=prepared.checkpoint.eos_token_ids or _eos_of(self.tokenizer),
            max_cached_tokens=prepared.memory_plan.max_cached_tokens,
            tokenizer=self.tokenizer,
            model_path=self.model_path,
            lengths=LengthRules.of(
                prepared.model.config, None if prepared.draft is None else prepared.draft.config
            ),
            new_counters=counters_for(prepared),
            images=ImageAdmission(
                architecture=prepared.route.hf_architecture,
                processor=prepared.image_processor,
                max_seq_len=prepared.model.config.get_max_seq_len(),
                tokenizer=self.tokenizer,
                unserved_token_ids=prepared.unserved_token_ids,
            ),
        )
        self._sampling_said = (
            prepared.checkpoint.generation_config if generation_config == "auto" else {}
        )
        self._device = str(prepared.device)
        self.load_s = perf_counter() - start
        self._admission.load_s = self.load_s

    # What was loaded

    @property
    def model_path(self) -> str:
        """The directory or file on disk."""
        return self.pipeline_config.model.path

    @property
    def dtype(self) -> str:
        """Of weights and activations, "auto" resolved."""
        return self.pipeline_config.runtime.dtype

    @property
    def engine(self) -> Engine:
        """The loop behind it, for those who measure or test. Raises PilotfishError when closed."""
        return self._turns.engine

    @property
    def vocab_size(self) -> int:
        """Token ids that the model knows are below it."""
        return self._admission.vocab_size

    @property
    def placeholder_ids(self) -> frozenset[int]:
        """Token ids that stand for an image or the like, and so are in no prompt of text."""
        images = self._admission.images
        return frozenset() if images is None else images.placeholder_ids

    @property
    def max_seq_len(self) -> int:
        """Tokens of a context, prompt and answer together."""
        return self._admission.max_seq_len

    @property
    def num_preemptions(self) -> int:
        """How often a request had to give its pages back and start again, since loading."""
        return self._turns.engine.scheduler.num_preemptions

    # Running it

    def default_sampling_params(self) -> SamplingParams:
        """What a call without params is sampled with: what generation_config.json says.

        Raises CheckpointError for a value there that cannot be meant.
        """
        return sampling_of(self._sampling_said, self.vocab_size)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: Params = None,
        *,
        progress: bool | None = None,
    ) -> list[RequestOutput]:
        """Answers all prompts together, in their order.

        prompts: a text, a list of token ids, a record of one of these and images (MultimodalPrompt,
            or a dict of its fields), or a list of these.
        params: for all prompts, or one each, taken as they are written; None means
            `default_sampling_params()`.
        progress: whether a bar is shown on stderr; None shows one on a terminal, after a second.

        A single prompt that is refused raises RequestError or CapacityError. Of several, the
        refused ones get an output with finish_reason "error" and the message, and the others run.
        A list of params of another length than prompts always raises. Any other exception, an
        interrupt included, gives back what the requests hold and is raised; the LLM stays usable.
        """
        listed = listed_prompts(prompts)
        each = _params_for(listed, self.default_sampling_params() if params is None else params)
        return self._turns.take(partial(self._generate, listed, each, progress))

    def _generate(
        self, listed: list[Prompt], each: list[SamplingParams], progress: bool | None
    ) -> list[RequestOutput]:
        outputs: list[RequestOutput | None] = [None] * len(listed)
        requests: list[Request] = []
        for index, (prompt, options) in enumerate(zip(listed, each, strict=True)):
            try:
                requests.append(self._admission.admit(prompt, options, index=index))
            except UserError as error:
                if len(listed) == 1:
                    raise
                outputs[index] = RequestOutput.refused(
                    index, given_ids(prompt), options.seed, error
                )
        with Progress(requests, progress) as bar:
            self._turns.run(requests, bar)
        for request in requests:
            outputs[request.index] = _terminal(request)
        return [output for output in outputs if output is not None]

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Answers one prompt piece by piece.

        Yields a Delta for each step and a last one with finish_reason and the whole output. The
        texts joined are the output's text. Closing the iterator aborts the request. Several
        streams may be read in turns. A refused prompt raises here, before anything is yielded.
        """
        self._turns.check_open()
        options = self.default_sampling_params() if params is None else params
        admit = partial(self._admission.admit, prompt, options, streams=True)
        return self._turns.stream(self._turns.take(admit))

    def score(self, token_ids: Prompt) -> torch.Tensor:
        """The model's raw logits after every token: [T, V] float32; row i tells of token i+1."""
        return self.score_many([token_ids])[0]

    def score_many(self, token_ids: Sequence[Prompt]) -> list[torch.Tensor]:
        """As `score`, for several texts at once.

        Raises RequestError for the first bad one, CapacityError when the logits do not fit.
        """
        return self._turns.take(partial(self._score, token_ids))

    def _score(self, token_ids: Sequence[Prompt]) -> list[torch.Tensor]:
        requests = [self._admission.admit_scoring(ids) for ids in token_ids]
        num_rows = sum(request.num_prompt_tokens for request in requests)
        self._admission.check_scores(num_rows, available_bytes(self._device))
        self._turns.run(requests, None)
        scores = []
        for request in requests:
            output = _terminal(request)
            if output.finish_reason == "abort":
                raise PilotfishError("this LLM was closed before the text was scored")
            if output.finish_reason == "error":
                raise PilotfishError(str(output.error))
            assert request.kept_logits is not None
            scores.append(request.kept_logits)
        return scores

    def chat_prompt(
        self, messages: str | Sequence[Mapping[str, Any]], **variables: Any
    ) -> list[int]:
        """Token ids of a conversation in the checkpoint's chat template, ready for an answer.

        messages: a user's message, or a list of {"role", "content"}, whose content is text or a
            list of parts. variables: tools, documents, continue_final_message and what else
            `ChatTemplate.render` takes, enable_thinking for one.
        Raises RequestError without a tokenizer or a template, for a variable that the template does
        not read, and for a part of a kind that is not served: templates may leave those out.
        """
        assert self._admission.images is not None
        self._admission.images.check_parts(messages)
        return need_tokenizer(self.tokenizer, self.model_path).encode_chat(messages, **variables)

    def image_chat_prompt(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        images: Sequence[Any],
        **variables: Any,
    ) -> MultimodalPrompt:
        """A conversation with images, ready for an answer. images: see MultimodalPrompt.

        messages: as `chat_prompt`; a user's message gets the images before its text, and a list
        has its own parts {"type": "image"}, one for each image. Raises as `chat_prompt`.
        """
        if isinstance(messages, str):
            parts = [{"type": "image"} for _ in listed_images(images)]
            content: Any = [*parts, {"type": "text", "text": messages}] if parts else messages
            messages = [{"role": "user", "content": content}]
        return MultimodalPrompt(prompt=self.chat_prompt(messages, **variables), images=images)

    def forget_cached_prefixes(self) -> None:
        """Empties the prefix cache."""
        self._turns.take(self._turns.engine.forget_cached_prefixes)

    def close(self) -> None:
        """Frees model and state. May be called twice, and from any thread or signal handler.

        Requests that still run or stream, in other threads too, end with "abort" after their pass.
        """
        self._state = self.proposer = None
        self._turns.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _warn_once(unproved: list[Prepared]) -> None:
    """Says, once and before the first pass, when what was asked of arithmetic does not hold.

    Not when loading: what can be kept here is found by a probe that the first pass makes.
    unproved: what was loaded, until this is known; then empty.
    """
    for prepared in tuple(unproved):
        why_not = why_not_invariant(prepared.model, prepared.vocab_size)
        unproved.clear()
        if why_not:
            warn_caller(
                f"arithmetic is not invariant here: {why_not}; with one seed a text may differ "
                "between batches; arithmetic='fastest' says so on purpose"
            )
        elif prepared.backend.portable and (why_not := why_not_portable(prepared)):
            warn_caller(
                f"arithmetic is not portable here: {why_not}; with one seed a text may differ "
                "between processors; arithmetic='invariant' promises this one alone"
            )


def _eos_of(tokenizer: Tokenizer | None) -> tuple[int, ...]:
    return () if tokenizer is None else tokenizer.eos_token_ids


def _terminal(request: Request) -> RequestOutput:
    output = request.outbox[-1].output
    assert output is not None, "a request that ended has an output"
    return output


def _params_for(
    prompts: Sequence[Prompt], params: SamplingParams | Sequence[SamplingParams]
) -> list[SamplingParams]:
    if isinstance(params, SamplingParams):
        return [params] * len(prompts)
    wrong = [params] if isinstance(params, Mapping) else params
    for item in wrong:
        if not isinstance(item, SamplingParams):
            raise RequestError(
                f"params has {type(item).__name__}; wanted SamplingParams, or a list of them"
            )
    if len(params) != len(prompts):
        raise RequestError(
            f"got {len(params)} params for {len(prompts)} prompts; wanted one each, or one for all"
        )
    return list(params)
