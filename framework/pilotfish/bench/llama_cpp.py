"""llama.cpp on the GGUF file itself, through the C interface that llama-cpp-python opens.

Knows: its contexts, sequences and batches. Does not know: what is timed. Imports no torch: the
process is to be as small as llama.cpp's own users have it.

All is as llama.cpp has it by default (mmap, flash attention, weights repacked, batches of 512), but
for the number of threads. Each token is the largest logit, found by numpy, so that no
sampler is timed: of 49152 logits that takes about 0.02 ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pilotfish.bench.workloads import TokenIds
from pilotfish.errors import ConfigError, PilotfishError

_BATCH_ROWS = 512
_CONTEXT_STEP = 512
_ERROR = 4
"""GGML_LOG_LEVEL_ERROR."""


def check_llama_cpp(model: str) -> None:
    """Raises ConfigError where the peer is not installed, or cannot read what is named."""
    if find_spec("llama_cpp") is None:
        raise ConfigError(
            "peer 'llama.cpp' is run by the package llama-cpp-python; got none installed; "
            "run: pip install llama-cpp-python (it compiles for some minutes)"
        )
    if Path(model).suffix != ".gguf":
        raise ConfigError(f"llama.cpp reads .gguf files; got {model}")


@cache
def _log() -> Any:
    """What llama.cpp calls with each line of its log: errors are shown. Kept, since C calls it."""
    import llama_cpp

    def show(level: int, text: bytes, _: Any) -> None:
        if level == _ERROR:
            print(text.decode(errors="replace"), end="", file=sys.stderr)

    return llama_cpp.llama_log_callback(show)


@cache
def _crashes(path: str) -> bool:
    """Whether the model, loaded as it is by default, ends a process: found by a process that does.

    On some processors llama.cpp's AMX products do (its issue 20824), from several rows on.
    """
    program = (
        "import sys; from pilotfish.bench.llama_cpp import LlamaCppSide; "
        "side = LlamaCppSide(sys.argv[1], dtype='', num_threads=1, as_stored=False); "
        "side.generate([[1] * 40], 2)"
    )
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=False)
    return done.returncode < 0


class LlamaCppSide:
    """Plain greedy decoding; several prompts are sequences of one batch, decoded together.

    about: its version, the instructions that it was compiled with, and whether AMX had to be left.
    """

    name = "llama.cpp"

    def __init__(
        self, path: str, *, dtype: str, num_threads: int, as_stored: bool | None = None
    ) -> None:
        """Loads the model and a context of 512 tokens.

        dtype: not used; the file has its own. as_stored: weights are not repacked, for AMX or
        else; None does so only where llama.cpp has AMX and crashes with it.
        """
        import llama_cpp

        self._lib: Any = llama_cpp
        self._num_threads = num_threads
        self._context: Any = None
        self._model: Any = None
        llama_cpp.llama_log_set(_log(), None)
        llama_cpp.llama_backend_init()
        built = llama_cpp.llama_print_system_info().decode().strip(" |")
        if as_stored is None:
            as_stored = "AMX_INT8 = 1" in built and _crashes(path)
        options = llama_cpp.llama_model_default_params()
        options.n_gpu_layers = 0
        options.use_extra_bufts = not as_stored
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(path), options)
        if not self._model:
            raise PilotfishError(f"llama.cpp cannot load {path}; stderr says why")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(
            llama_cpp.llama_model_get_vocab(self._model)
        )
        self._batch = llama_cpp.llama_batch_init(_BATCH_ROWS, 0, 1)
        self._make_context(1, _CONTEXT_STEP)
        self.about = f"llama-cpp-python {llama_cpp.__version__} ({built})"
        if as_stored:
            self.about += ", weights not repacked, since it crashes here with AMX"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        self._forget(len(prompts), max(map(len, prompts)) + num_tokens)
        rows = [[token] for token in self._prefill(prompts)]
        for _ in range(num_tokens - 1):
            places = [len(p) + len(row) - 1 for p, row in zip(prompts, rows, strict=True)]
            step = [(row[-1], places[i], i, True) for i, row in enumerate(rows)]
            for row, token in zip(rows, self._decode(step), strict=True):
                row.append(token)
        return rows

    def _prefill(self, prompts: Sequence[TokenIds]) -> list[int]:
        """The token after each prompt."""
        inputs = [
            (token, place, sequence, place == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for place, token in enumerate(prompt)
        ]
        firsts: list[int] = []
        for start in range(0, len(inputs), _BATCH_ROWS):
            firsts += self._decode(inputs[start : start + _BATCH_ROWS])
        return firsts

    def _decode(self, inputs: Sequence[tuple[int, int, int, bool]]) -> list[int]:
        """Runs rows of (token, place, sequence, whether its logits are wanted).

        Returns the likeliest token after each row that is wanted, in their order.
        """
        import numpy as np

        batch = self._batch
        batch.n_tokens = len(inputs)
        for row, (token, place, sequence, is_wanted) in enumerate(inputs):
            batch.token[row], batch.pos[row], batch.logits[row] = token, place, is_wanted
            batch.n_seq_id[row], batch.seq_id[row][0] = 1, sequence
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise PilotfishError(f"llama_decode of {len(inputs)} rows returned {code}; wanted 0")
        wanted = [row for row, (*_, is_wanted) in enumerate(inputs) if is_wanted]
        logits = [self._lib.llama_get_logits_ith(self._context, row) for row in wanted]
        shape = (self._vocab_size,)
        return [int(np.ctypeslib.as_array(values, shape).argmax()) for values in logits]

    def _forget(self, num_sequences: int, num_tokens: int) -> None:
        """Empties the context, or makes another where it holds too little.

        Each sequence has cells of its own, llama.cpp's default, so that none is masked out of
        another's attention.
        """
        if num_sequences != self._num_sequences or num_tokens > self._num_tokens:
            self._make_context(num_sequences, num_tokens)
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), False)

    def _make_context(self, num_sequences: int, num_tokens: int) -> None:
        if self._context is not None:
            self._lib.llama_free(self._context)
        self._num_sequences = num_sequences
        self._num_tokens = -(-num_tokens // _CONTEXT_STEP) * _CONTEXT_STEP
        options = self._lib.llama_context_default_params()
        options.n_ctx = self._num_tokens * num_sequences
        options.n_seq_max = num_sequences
        options.n_batch = options.n_ubatch = _BATCH_ROWS
        options.n_threads = options.n_threads_batch = self._num_threads
        self._context = self._lib.llama_init_from_model(self._model, options)
        if not self._context:
            raise PilotfishError(
                f"llama.cpp makes no context of {options.n_ctx} tokens; stderr says why"
            )

    def __del__(self) -> None:
        if self._model:
            self._lib.llama_free(self._context)
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_model_free(self._model)


class LlamaCppLookup(LlamaCppSide):
    """One prompt at a time, with llama-cpp-python's own drafts: the prompt's continuation of the
    last two tokens. Two tokens a draft, as its readme recommends for a CPU: four or ten are slower.
    """

    name = "llama.cpp with prompt lookup"

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

        drafter = LlamaPromptLookupDecoding(num_pred_tokens=2)
        return [self._generate(drafter, prompt, num_tokens) for prompt in prompts]

    def _generate(self, drafter: Any, prompt: TokenIds, num_tokens: int) -> TokenIds:
        import numpy as np

        self._forget(1, len(prompt) + num_tokens)
        memory = self._lib.llama_get_memory(self._context)
        ids = [*prompt, *self._prefill([prompt])]
        end = len(prompt) + num_tokens
        while len(ids) < end:
            drafts = drafter(np.array(ids, dtype=np.intc)).tolist()[: end - len(ids) - 1]
            inputs = [ids[-1], *drafts]
            first = len(ids) - 1
            tokens = self._decode([(t, first + i, 0, True) for i, t in enumerate(inputs)])
            right = [draft == token for draft, token in zip(drafts, tokens, strict=False)]
            ids += tokens[: [*right, False].index(False) + 1]
            if not self._lib.llama_memory_seq_rm(memory, 0, len(ids) - 1, -1):
                raise PilotfishError("llama.cpp cannot take back rows of this model")
        return ids[len(prompt) :]
