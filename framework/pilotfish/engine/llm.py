"""LLM: the public way to run a model from Python.

Knows: prompts in, outputs out. Does not know: how a pass is scheduled or computed.
Axis letters: T tokens, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, Self

import torch

from pilotfish.config import (
    CacheConfig,
    ParallelConfig,
    PipelineConfig,
    SamplingParams,
    SpeculativeConfig,
)
from pilotfish.config.generation import sampling_of
from pilotfish.config.parallel import Distributed
from pilotfish.config.peer_attributes import AnswersAsLLM
from pilotfish.config.peers import CALL, LOADING, answers_peers
from pilotfish.config.runtime import Arithmetic, BackendName
from pilotfish.config.sampling import OF_SAMPLING
from pilotfish.engine.asking import Asking, Params, scores_of
from pilotfish.engine.async_turns import AsyncTurns
from pilotfish.engine.engine import Engine
from pilotfish.engine.loaded import admission_of, load
from pilotfish.engine.outputs import Delta, RequestOutput
from pilotfish.engine.progress import Progress
from pilotfish.engine.prompt import (
    MultimodalPrompt,
    Prompt,
    listed_images,
)
from pilotfish.engine.turns import Turns
from pilotfish.errors import ConfigError, RequestError
from pilotfish.loading.arithmetic import warn_of
from pilotfish.loading.prepare import prepare_from_options
from pilotfish.platform.memory import available_bytes
from pilotfish.plugins import load_registry
from pilotfish.ranks.launch import launcher_of
from pilotfish.registry import Registry
from pilotfish.speculation import Proposer
from pilotfish.state import MemoryPlan, StateManager
from pilotfish.tokenization.tokenizer import Tokenizer, load_tokenizer, need_tokenizer
from pilotfish.warn import warn_caller


class LLM(AnswersAsLLM):
    """A loaded model that generates text. A context manager.

    Threads may share one: what they ask at once runs in one batch. A call from a signal handler or
    a finalizer that interrupts a pass raises StateError; `close`, and a stream that is dropped,
    wait there for the pass's end. After any exception, an interrupt included, the LLM can be used
    again, and no other call notices. A forked process goes on with native kernels, or one thread;
    else it makes its own.

    model: a directory, a `.gguf` file, a hub id, or "demo".
    draft, speculative: a draft checkpoint and the method that uses it; for more options a
        SpeculativeConfig, or a dict of its fields.
    dtype, device, backend, arithmetic, max_batch_size, max_batch_tokens: see RuntimeConfig.
    generation_config: "auto" takes what the checkpoint's generation_config.json says of sampling
        where a call gives no params; "none" does without.
    cache: see CacheConfig. max_length: limit on the context in tokens; None takes the model's own,
        or what fits the memory; max_batch_size: None takes 16, or what fits. A warning says so.
    tensor_parallel, data_parallel, expert_parallel, reduction_slices, rank_timeout, distributed:
        see ParallelConfig. Of the processes of torchrun, all but rank 0's serve here until that one
        ends, and then raise WorkerEnd, a SystemExit.
    registry: the plugins; None discovers the installed ones.
    before_weights: called with the LLM before weights are fetched and read, when `check`,
        `chat_prompt` and `default_sampling_params` can be asked; what it raises ends the load.

    tokenizer: None for a checkpoint without one. pipeline_config: every option, "auto" resolved.
    proposer: the drafter; None without, and where replicas have theirs. memory_plan: bytes of every
    part, and the size of the page pool. load_s: seconds it took.

    Raises a UserError (CheckpointError, RouteError, ConfigError, WeightsError, CapacityError) that
    says what to do; nothing is allocated before it is known to fit.
    """

    @answers_peers(LOADING, ConfigError, OF_SAMPLING)
    def __init__(
        self,
        model: str,
        draft: str | None = None,
        speculative: str | SpeculativeConfig | Mapping[str, Any] | None = None,
        dtype: str | torch.dtype = "auto",
        device: str = "auto",
        *,
        max_batch_size: int | None = None,
        max_batch_tokens: int = 512,
        cache: CacheConfig | None = None,
        arithmetic: Arithmetic = "invariant",
        max_length: int | None = None,
        backend: BackendName = "auto",
        tensor_parallel: int = 1,
        data_parallel: int = 1,
        expert_parallel: int | None = None,
        reduction_slices: int | None = None,
        rank_timeout: float = 60.0,
        distributed: Distributed = "auto",
        generation_config: Literal["auto", "none"] = "auto",
        registry: Registry | None = None,
        before_weights: Callable[[LLM], object] | None = None,
    ) -> None:
        start = perf_counter()
        if generation_config not in ("auto", "none"):
            raise ConfigError(
                f"generation_config is {generation_config!r}; wanted 'auto' (the checkpoint's "
                "defaults of sampling) or 'none'"
            )
        parallel = ParallelConfig(
            tensor_parallel=tensor_parallel,
            data_parallel=data_parallel,
            expert_parallel=expert_parallel,
            reduction_slices=reduction_slices,
            rank_timeout=rank_timeout,
            distributed=distributed,
        )
        launcher = launcher_of(parallel)
        options: dict[str, Any] = {
            "model": str(model),
            "registry": registry,
            "draft": draft,
            "speculative": speculative,
            "cache": cache,
            "max_length": max_length,
            "dtype": dtype,
            "device": device,
            "backend": backend,
            "arithmetic": arithmetic,
            "max_batch_size": max_batch_size,
            "max_batch_tokens": max_batch_tokens,
        }
        registry = registry if registry is not None else load_registry()
        with ExitStack() as undo:
            undo.callback(launcher.end, (), 0.0)
            launcher.begin_early()
            prepared = prepare_from_options(**{**options, "registry": registry}, parallel=parallel)
            self.pipeline_config: PipelineConfig = prepared.pipeline_config
            self.memory_plan: MemoryPlan = prepared.memory_plan
            if self.memory_plan.note:
                warn_caller(self.memory_plan.note, RuntimeWarning)
            self.tokenizer: Tokenizer | None = load_tokenizer(prepared.checkpoint)
            self._admission = admission_of(prepared, self.tokenizer)
            said = prepared.checkpoint.generation_config if generation_config == "auto" else {}
            self._defaults = partial(sampling_of, said, prepared.vocab_size)
            self._device = str(prepared.device)
            if before_weights is not None:
                before_weights(self)
            loaded = load(prepared, options, registry, launcher)
            undo.pop_all()
        self._state: StateManager | None = loaded.state
        self.proposer: Proposer | None = loaded.proposer
        if arithmetic != "fastest" and self._state is not None:  # replicas say it themselves
            warn_of(prepared)
        # Nothing of these knows the LLM: one that is dropped goes at once, and so does its model.
        may_fork = prepared.backend.name == "native"
        self._turns = Turns(loaded.engine, may_fork=may_fork, at_end=loaded.at_end)
        self._async_turns = AsyncTurns(self._turns)
        self._asking = Asking(self._admission, self._turns, self._defaults)
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
        return self._defaults()

    def check(self, prompt: Prompt, params: SamplingParams) -> None:
        """Raises what `generate` would refuse this prompt with: RequestError, CapacityError."""
        self._admission.admit(prompt, params)

    @answers_peers(CALL, RequestError, OF_SAMPLING)
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
        asked = self._asking.answers(prompts, params)
        with Progress(asked.requests, progress) as bar:
            self._turns.run(asked.requests, bar)
        return asked.outputs()

    @answers_peers(CALL, RequestError, OF_SAMPLING)
    async def agenerate(
        self, prompts: Prompt | Sequence[Prompt], params: Params = None
    ) -> list[RequestOutput]:
        """As `generate`, for a coroutine; what others ask meanwhile runs in the same batch.

        A coroutine that is cancelled lets its requests go.
        """
        asked = await asyncio.to_thread(self._asking.answers, prompts, params)
        await self._async_turns.run(asked.requests)
        return asked.outputs()

    @answers_peers(CALL, RequestError, OF_SAMPLING)
    async def astream(
        self, prompt: Prompt, params: SamplingParams | None = None
    ) -> AsyncGenerator[Delta, None]:
        """As `stream`, for a coroutine: `async for delta in llm.astream(prompt)`.

        The answer runs ahead of a slow reader. A refused prompt raises when it is first read.
        """
        request = await asyncio.to_thread(self._asking.stream, prompt, params)
        pieces = self._async_turns.stream(request)
        try:
            async for delta in pieces:
                yield delta
        finally:
            await pieces.aclose()

    @answers_peers(CALL, RequestError, OF_SAMPLING)
    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[Delta]:
        """Answers one prompt piece by piece.

        Yields a Delta for each step and a last one with finish_reason and the whole output. The
        texts joined are the output's text. Closing the iterator aborts the request. Several
        streams may be read in turns. A refused prompt raises here, before anything is yielded.
        """
        return self._turns.stream(self._asking.stream(prompt, params))

    def score(self, token_ids: Prompt) -> torch.Tensor:
        """The model's raw logits after every token: [T, V] float32; row i tells of token i+1."""
        return self.score_many([token_ids])[0]

    def score_many(self, token_ids: Sequence[Prompt]) -> list[torch.Tensor]:
        """As `score`, for several texts at once.

        Raises RequestError for the first bad one, CapacityError when the logits do not fit.
        """
        requests = self._asking.scores(token_ids, available_bytes(self._device))
        self._turns.run(requests, None)
        return [scores_of(request) for request in requests]

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

    @answers_peers(CALL, RequestError, OF_SAMPLING)
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: Params = None,
        *,
        progress: bool | None = None,
        **variables: Any,
    ) -> list[RequestOutput]:
        """Answers a conversation, or several of them together: `generate` of each `chat_prompt`.

        messages, variables: as `chat_prompt`; a list of lists is several conversations.
        """
        talks: Any = messages
        if isinstance(talks, str) or not (talks and isinstance(talks[0], list | tuple)):
            talks = [talks]
        prompts = [self.chat_prompt(talk, **variables) for talk in talks]
        one = prompts[0] if len(prompts) == 1 else prompts
        return self.generate(one, params, progress=progress)

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

    def __repr__(self) -> str:
        runtime, speculative = self.pipeline_config.runtime, self.pipeline_config.speculative
        facts = {
            "dtype": runtime.dtype,
            "device": runtime.device,
            "backend": runtime.backend,
            "max_length": self.max_seq_len,
        }
        if speculative is not None:
            facts["speculative"] = speculative.method
        said = ", ".join(f"{name}={value!r}" for name, value in facts.items())
        closed = ", closed" if self._turns.is_closed else ""
        return f"LLM({self.pipeline_config.model.model!r}, {said}{closed})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
