"""Methods, attributes and classes by the names that other engines, and transformers, give them.

Knows: what to say of each, which is what there is here. Does not know: what they do. None of the
names exists: `hasattr` is False of them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

NO_LIBRARY = "models go by their hub ids, and the names of Ollama's library are not known here"
"""Of a model that is asked for as NAME:TAG."""
_LOADED = "wanted LLM(model, device=..., dtype=...): weights stay where they were loaded"
_GENERATE = "wanted llm.generate(prompts, SamplingParams(...))"
_ASYNC = "wanted LLM, whose llm.agenerate and llm.astream are for coroutines"
_LLM = "wanted LLM(model), which takes these options itself"
_MODEL = "wanted LLM(model): plugins know the architecture, see load_registry()"
_LOGITS = (
    "embeddings and classes are not served; llm.score(token_ids) has the logits of every token"
)
_TRAINED = "nothing is trained here; wanted nothing in its place"

OF_LLM: Mapping[str, str] = {
    "apply_chat_template": "wanted llm.chat_prompt(messages), which gives token ids",
    "beam_search": "beam search is not served; wanted SamplingParams(n=..., logprobs=0)",
    "classify": _LOGITS,
    "config": "wanted llm.pipeline_config",
    "create_chat_completion": "wanted llm.chat(messages, SamplingParams(...))",
    "create_completion": _GENERATE,
    "cuda": _LOADED,
    "decode": "wanted llm.tokenizer.decode(token_ids)",
    "detokenize": "wanted llm.tokenizer.decode(token_ids)",
    "embed": _LOGITS,
    "encode": "wanted llm.tokenizer.encode(text) for token ids; " + _LOGITS,
    "eval": _TRAINED,
    "from_pretrained": "wanted LLM(model): a directory, a .gguf file or a hub id",
    "get_default_sampling_params": "wanted llm.default_sampling_params()",
    "get_tokenizer": "wanted llm.tokenizer",
    "llm_engine": "wanted llm.engine",
    "model_config": "wanted llm.pipeline_config.model",
    "reset_prefix_cache": "wanted llm.forget_cached_prefixes()",
    "set_tokenizer": "the checkpoint's own is used; prompts may be token ids",
    "shutdown": "wanted llm.close()",
    "sleep": "wanted llm.close(), and another LLM later",
    "stream_generate": "wanted llm.stream(prompt, params)",
    "to": _LOADED,
    "tokenize": "wanted llm.tokenizer.encode(text)",
    "wake_up": "wanted another LLM after llm.close()",
}
"""Of an LLM and of its class."""

OF_OUTPUT: Mapping[str, str] = {
    "cumulative_logprob": "wanted SamplingParams(logprobs=0) and the sum of each logprob in "
    "output.logprobs",
    "finished": "an output is whole; output.finish_reason says how it ended",
    "generated_text": "wanted output.text",
    "metrics": "wanted output.timing",
    "prompt": "a prompt's text is not kept; wanted llm.tokenizer.decode(output.prompt_token_ids)",
    "request_id": "wanted output.index, the prompt's place in the call",
    "sequences": "wanted output.prompt_token_ids and output.token_ids",
    "stop_reason": "wanted output.finish_reason; the token that ended it is the last of token_ids",
    "usage": "wanted the lengths of output.prompt_token_ids and output.token_ids",
}
"""Of a RequestOutput."""

OF_PACKAGE: Mapping[str, str] = {
    "AsyncEngineArgs": _LLM,
    "AsyncLLM": _ASYNC,
    "AsyncLLMEngine": _ASYNC,
    "AutoConfig": _MODEL,
    "AutoModel": _MODEL,
    "AutoModelForCausalLM": _MODEL,
    "AutoTokenizer": "wanted llm.tokenizer of an LLM",
    "BeamSearchParams": "beam search is not served; wanted SamplingParams(n=..., logprobs=0)",
    "CompletionOutput": "wanted RequestOutput, one for each answer",
    "Engine": "wanted LLM(model)",
    "EngineArgs": _LLM,
    "GenerationConfig": "wanted SamplingParams",
    "LLMEngine": "wanted LLM(model)",
    "Llama": "wanted LLM(model), which reads .gguf files",
    "LoRARequest": "adapters are not served yet; merge it into the weights",
    "PoolingParams": _LOGITS,
    "StructuredOutputsParams": "grammars and schemas are not served",
    "TextIteratorStreamer": "wanted llm.stream(prompt, params)",
    "TextPrompt": "wanted the text itself, or a dict of prompt",
    "TextStreamer": "wanted llm.stream(prompt, params)",
    "TokensPrompt": "wanted the list of token ids itself, or a dict of prompt_token_ids",
}
"""What `from pilotfish import ...` is asked for."""


def said_of(whose: str, name: str, names: Mapping[str, str]) -> str:
    """The line for a name of `names`."""
    return f"{whose} has no {name!r}: {names[name]}"


class _LLMKind(type):
    """So that the class answers as its objects do."""

    if not TYPE_CHECKING:

        def __getattr__(cls, name: str) -> Any:
            if name in OF_LLM:
                raise AttributeError(said_of("LLM", name, OF_LLM))
            return type.__getattribute__(cls, name)


class AnswersAsLLM(metaclass=_LLMKind):
    """A base for LLM: what it has not, by peers' names, is an AttributeError that says what it has.

    So is what no LLM can do: be called, or go to another process; that is a TypeError.
    """

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in OF_LLM:
                raise AttributeError(said_of("LLM", name, OF_LLM))
            return object.__getattribute__(self, name)  # says it in Python's own words

        def __call__(self, *args: object, **options: object) -> NoReturn:
            """Raises TypeError: `generate` is what was meant."""
            raise TypeError(f"an LLM is not called; {_GENERATE}")

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "an LLM is neither pickled nor copied: it holds its model's memory and threads; wanted "
            "one LLM(...) made in each process"
        )


class AnswersAsOutput:
    """A base for RequestOutput: the same for the names of outputs."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            if name in OF_OUTPUT:
                raise AttributeError(said_of("RequestOutput", name, OF_OUTPUT))
            return object.__getattribute__(self, name)
