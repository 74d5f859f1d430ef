"""Options by the names that other engines, and transformers, give them.

Knows: which of ours means the same, and what to say where none does. Does not know: what the
options do. What means the same is taken, any other is refused by a line that says what there is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import attrs

from pilotfish.config.checks import Refusal
from pilotfish.nearest import did_you_mean
from pilotfish.warn import warn_caller

P = ParamSpec("P")
T = TypeVar("T")
C = TypeVar("C", bound=type)

NOTHING = "nothing"
"""In the place of an option of ours: whatever the value, it changes nothing."""


@attrs.frozen
class Answer:
    """What an option of a peer's is here.

    ours: the option of ours that takes its value, or NOTHING; "" where there is none.
    means: values that ask for something we have, with the options of ours that give it.
    says: what to do instead, for every other value.
    warned: those of `means` that change nothing and may be meant to: a warning says so.
    """

    ours: str = ""
    means: tuple[tuple[Any, Mapping[str, Any]], ...] = ()
    says: str = ""
    warned: tuple[Any, ...] = ()

    def options(self, value: Any) -> Mapping[str, Any]:
        """Ours, from its value. Raises ValueError saying what to do instead."""
        if self.ours == NOTHING:
            return {}
        if self.ours:
            return {self.ours: value}
        for known, options in self.means:
            if value is known or (type(value) is type(known) and value == known):
                return options
        raise ValueError(self.says)


def _only(*values: Any, says: str) -> Answer:
    """Taken where the value asks for what is done anyway."""
    return Answer(means=tuple((value, {}) for value in values), says=says)


def _refused(says: str) -> Answer:
    return _only(None, says=says)


def _any(why: str) -> Answer:
    """Any value changes nothing here."""
    return Answer(ours=NOTHING, says=why)


_GRAMMARS = "grammars and schemas are not served: an answer is text that the caller reads"
_BEAMS = "beam search is not served: n samples can be asked for, and ranked by their logprobs"

SAMPLING: Mapping[str, Answer] = {
    "max_new_tokens": Answer("max_tokens"),
    "num_predict": Answer("max_tokens"),
    "n_predict": Answer("max_tokens"),
    "min_new_tokens": Answer("min_tokens"),
    "num_return_sequences": Answer("n"),
    "repeat_penalty": Answer("repetition_penalty"),
    "stop_strings": Answer("stop"),
    "do_sample": Answer(
        means=((True, {}), (False, {"temperature": 0})),
        says="wanted True, or False, which is temperature=0",
    ),
    "best_of": _only(
        1, None, says="best_of is not served: ask for n answers with logprobs, and choose"
    ),
    "use_beam_search": _only(False, None, says=_BEAMS),
    "num_beams": _only(1, None, says=_BEAMS),
    "length_penalty": _only(1.0, 1, None, says=_BEAMS),
    "early_stopping": _only(False, None, says=_BEAMS),
    "typical_p": _only(1.0, 1, None, says="use top_p or min_p"),
    "mirostat": _only(0, None, says="use top_p or min_p"),
    "guided_decoding": _refused(_GRAMMARS),
    "structured_outputs": _refused(_GRAMMARS),
    "grammar": _refused(_GRAMMARS),
    "bad_words": _only(None, [], says="use suppress_tokens, of single tokens"),
    "bad_words_ids": _only(None, [], says="use suppress_tokens, of single tokens"),
    "allowed_token_ids": _refused("use logit_bias or suppress_tokens"),
    "no_repeat_ngram_size": _only(0, None, says="use repetition_penalty or frequency_penalty"),
    "logits_processors": _refused("use logit_bias; code of one's own is not run on logits"),
    "logits_processor": _refused("use logit_bias; code of one's own is not run on logits"),
    "eos_token_id": _refused("the checkpoint's end tokens end an answer; others: stop_token_ids"),
    "pad_token_id": _any("nothing is padded"),
    "use_cache": _only(True, None, says="there is always a cache"),
    "skip_special_tokens": _only(True, None, says="decode token_ids with llm.tokenizer"),
    "spaces_between_special_tokens": _any("texts have no special tokens"),
    "include_stop_str_in_output": _only(False, None, says="token_ids have what was cut from text"),
    "detokenize": _only(True, None, says="token_ids are there too; text costs little"),
    "output_kind": _refused("generate gives whole answers, stream and astream pieces"),
}

_ADAPTERS = "adapters are not served yet; merge it into the weights"
_PIPELINES = "pipelines are not served; ranks share every layer: wanted tensor_parallel=N"
_OF_DRAFTS = "the ranks of a target share its draft too: wanted tensor_parallel=N for both"

LOADING: Mapping[str, Answer] = {
    "max_model_len": Answer("max_length"),
    "n_ctx": Answer("max_length"),
    "num_ctx": Answer("max_length"),
    "max_num_seqs": Answer("max_batch_size"),
    "max_num_batched_tokens": Answer("max_batch_tokens"),
    "torch_dtype": Answer("dtype"),
    "device_map": Answer("device"),
    "model_path": Answer("model"),
    "enable_prefix_caching": _only(
        True, None, says="wanted cache=CacheConfig(prefix_caching=False), to share nothing"
    ),
    "tensor_parallel_size": Answer("tensor_parallel"),
    "tp_size": Answer("tensor_parallel"),
    "enable_expert_parallel": _any("experts are spread over all ranks; see expert_parallel"),
    "data_parallel_size": Answer("data_parallel"),
    "dp_size": Answer("data_parallel"),
    "pipeline_parallel_size": _only(1, None, says=_PIPELINES),
    "trust_remote_code": _only(
        False, None, says="code in a checkpoint is never run; architectures come as plugins"
    ),
    "gpu_memory_utilization": _refused(
        "the plan takes what fits (pilotfish inspect shows it); wanted "
        "cache=CacheConfig(memory_bytes=...) for another size of the caches"
    ),
    "swap_space": _refused("requests that give their pages up are computed again"),
    "cpu_offload_gb": _refused("weights lie on the one device"),
    "n_gpu_layers": _refused("all layers lie on the one device: device='cuda' or 'cpu'"),
    "n_threads": _refused("the variable OMP_NUM_THREADS, set before Python starts"),
    "enforce_eager": _any("nothing is compiled"),
    "quantization": _refused("weights run as the file has them"),
    "load_in_4bit": _only(False, None, says="weights run as the file has them: use a GGUF file"),
    "load_in_8bit": _only(False, None, says="weights run as the file has them: use a GGUF file"),
    "quantization_config": _refused("weights run as the file has them"),
    "kv_cache_dtype": _only("auto", None, says="wanted cache=CacheConfig(dtype=...)"),
    "block_size": _refused("wanted cache=CacheConfig(page_size_tokens=...)"),
    "speculative_config": _refused(
        "wanted draft= and speculative=, a method or a dict of SpeculativeConfig's fields"
    ),
    "speculative_model": _refused("wanted draft=, and speculative= for the method"),
    "seed": Answer(
        means=((None, {}), (0, {})),
        warned=(0,),
        says="a seed belongs to a request: SamplingParams(seed=...)",
    ),
    "download_dir": _refused("the variable HF_HOME, set before Python starts, names the folder"),
    "cache_dir": _refused("the variable HF_HOME, set before Python starts, names the folder"),
    "tokenizer": _refused("the checkpoint's own is used; prompts may be token ids"),
    "revision": _refused("wanted it behind the hub id: organisation/name@revision"),
    "attn_implementation": _refused("wanted backend='native', 'torch' or 'triton'"),
    "enable_lora": _only(False, None, says=_ADAPTERS),
    "disable_log_stats": _any("nothing is logged"),
    "verbose": _any("nothing is logged"),
}

_DRAFTS = "wanted LLM(draft=...), which names the draft's checkpoint"

SPECULATION: Mapping[str, Answer] = {
    "num_speculative_tokens": Answer("width"),
    "num_assistant_tokens": Answer("width"),
    "prompt_lookup_num_tokens": Answer("width"),
    "model": _refused(_DRAFTS),
    "assistant_model": _refused(_DRAFTS),
    "prompt_lookup_max": _refused("the text's last 5 tokens are looked up, else fewer, to 2"),
    "prompt_lookup_min": _refused("the text's last 5 tokens are looked up, else fewer, to 2"),
    "draft_tensor_parallel_size": _only(1, None, says=_OF_DRAFTS),
}

CACHE: Mapping[str, Answer] = {
    "block_size": Answer("page_size_tokens"),
    "cache_dtype": Answer("dtype"),
    "enable_prefix_caching": Answer("prefix_caching"),
    "num_gpu_blocks": Answer("num_pages"),
    "gpu_memory_utilization": _refused("wanted memory_bytes, of all caches together"),
    "swap_space": _refused("requests that give their pages up are computed again"),
}

CALL: Mapping[str, Answer] = {
    "sampling_params": Answer("params"),
    "generation_config": Answer("params"),
    "use_tqdm": Answer("progress"),
    "prompt_token_ids": _refused("wanted token ids as the prompts: generate([ids, ids], params)"),
    "lora_request": _refused(_ADAPTERS),
    "guided_options_request": _refused(_GRAMMARS),
    "priority": _refused("requests run in the order in which they came"),
    "streamer": _refused("stream(prompt, params) gives the pieces"),
    "stream": _only(False, None, says="stream(prompt, params) gives the pieces"),
}


@attrs.frozen
class Elsewhere:
    """Options that belong in another place.

    takes: whether that place takes one, by any name. says: what is said of one and its value; ""
    where it is none.
    """

    takes: Callable[[str], bool] = lambda name: False
    says: Callable[[str, Any], str] = lambda name, value: ""


def answers_peers(
    names: Mapping[str, Answer],
    error: Refusal,
    elsewhere: Elsewhere = Elsewhere(),
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """A function that takes options by peers' names too, and refuses unknown ones by `error`.

    names: see `Answer`. elsewhere: where others may belong.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters.values()
        own = [one.name for one in parameters if one.kind is not one.VAR_KEYWORD]
        has_others = len(own) < len(parameters)
        known = [name for name in own if name != "self"]
        whose = function.__qualname__.removesuffix(".__init__")

        def ours(name: str, value: Any) -> Mapping[str, Any]:
            if name not in names:
                if meant := elsewhere.says(name, value):
                    raise error(f"{whose} has no option {name!r}: {meant}")
                raise error(
                    f"{whose} has no option {name!r}{did_you_mean(name, known)}; there are "
                    f"{', '.join(known)}"
                )
            answer = names[name]
            try:
                options = answer.options(value)
            except ValueError as refusal:
                raise error(f"{whose} got {name}={value!r}: {refusal}") from None
            if value in answer.warned:
                warn_caller(f"{whose} got {name}={value!r}, which changes nothing: {answer.says}")
            return options

        @wraps(function)
        def call(*args: P.args, **given: P.kwargs) -> T:
            for name in [name for name in given if name not in own]:
                if name in names or not has_others or elsewhere.takes(name):
                    for found, value in ours(name, given.pop(name)).items():
                        if found in given:
                            raise error(f"{whose} got {name} and {found}; wanted one of them")
                        given[found] = value
            return function(*args, **given)

        return call

    return decorate


def answering_peers(
    names: Mapping[str, Answer],
    error: Refusal,
    elsewhere: Elsewhere = Elsewhere(),
) -> Callable[[C], C]:
    """The same of a class, for what it is made with."""

    def decorate(kind: C) -> C:
        kind.__init__ = answers_peers(names, error, elsewhere)(kind.__init__)  # type: ignore[misc]
        return kind

    return decorate
