"""The sides of a comparison: Pilotfish, and transformers on the same weights.

Knows: how to make each side generate greedily from token ids. Does not know: what is timed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs

from pilotfish.bench.workloads import TokenIds
from pilotfish.config import CacheConfig, ParallelConfig, SamplingParams
from pilotfish.config.runtime import Arithmetic
from pilotfish.engine import LLM
from pilotfish.errors import CheckpointError, ConfigError


class Side(Protocol):
    """One system under test."""

    name: str

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """Exactly num_tokens greedy tokens for every prompt, all prompts at once."""
        ...


class PilotfishSide:
    """Our own public `LLM`."""

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        arithmetic: Arithmetic = "invariant",
        prefix_caching: bool = False,
        speculative: str | None = None,
        parallel: ParallelConfig | None = None,
    ) -> None:
        self.name = "pilotfish" if arithmetic == "invariant" else f"pilotfish {arithmetic}"
        self.llm = LLM(
            model,
            dtype=dtype,
            device="cpu",
            arithmetic=arithmetic,
            speculative=speculative,
            cache=CacheConfig(prefix_caching=prefix_caching),
            max_batch_tokens=512,
            **attrs.asdict(parallel or ParallelConfig()),
        )

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        return _answers(self.llm, prompts, num_tokens, temperature=0)


class SampledSide:
    """A loaded LLM of ours whose tokens are drawn, as most users have it."""

    name = "pilotfish sampled"

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """As many tokens as Side's, but not greedy ones."""
        return _answers(self.llm, prompts, num_tokens, temperature=0.8, top_p=0.95, seed=0)


def _answers(
    llm: LLM, prompts: Sequence[TokenIds], num_tokens: int, **sampling: Any
) -> list[TokenIds]:
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True, **sampling)
    return [list(out.token_ids) for out in llm.generate(list(prompts), params, progress=False)]


class OneByOne:
    """A side that is asked one prompt at a time."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self.name = side.name

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        return [row for prompt in prompts for row in self._side.generate([prompt], num_tokens)]


class TransformersSide:
    """transformers' `generate`, prompts padded on the left; loads what `LLM` loads."""

    name = "transformers"

    def __init__(self, directory: str, *, dtype: str, num_threads: int | None = None) -> None:
        """num_threads: of torch, in a process of its own; None leaves them as they are."""
        import torch
        from transformers import AutoTokenizer

        if num_threads is not None:
            torch.set_num_threads(num_threads)
        _no_bars()
        model_class = _transformers_class(directory)
        self.model: Any = model_class.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()
        has_tokenizer = (Path(directory) / "tokenizer.json").exists()
        self.tokenizer = AutoTokenizer.from_pretrained(directory) if has_tokenizer else None

    def generate(self, prompts: Sequence[TokenIds], num_tokens: int) -> list[TokenIds]:
        """See Side."""
        import torch

        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        with torch.inference_mode():
            out = self.model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        rows: list[TokenIds] = out[:, width:].tolist()
        return rows


def _transformers_class(directory: str) -> Any:
    """The class that the checkpoint names; the causal one of its config where it names none."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(directory)
    names = config.architectures or ("",)
    return getattr(transformers, names[0], transformers.AutoModelForCausalLM)


def _no_bars() -> None:
    """Switches transformers' progress bars off; that of GGUF files knows no switch."""
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    logging.disable_progress_bar()
    if hasattr(gguf, "tqdm"):
        gguf.tqdm = lambda items, **_: items


def as_safetensors_directory(path: str, dtype: str, scratch: str) -> str:
    """A safetensors directory with the checkpoint's weights and tokenizer, for all sides.

    transformers itself dequantizes a GGUF file, so its weights are its own.
    """
    if Path(path).is_dir():
        return path
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _no_bars()
    folder, name = str(Path(path).parent), Path(path).name
    try:
        source = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    except (ValueError, ImportError) as error:
        if "accelerate" in str(error):
            raise ConfigError(
                "transformers reads a GGUF file only with accelerate; got none installed; "
                "run: pip install accelerate"
            ) from error
        raise CheckpointError(f"transformers cannot read {path}: {error}") from error
    config = source.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(source)(config).to(torch.float32)
    plain.load_state_dict(source.state_dict())
    plain.to(getattr(torch, dtype)).save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    return scratch
