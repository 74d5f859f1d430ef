"""What whole models compute with `portable` arithmetic: a sha256 each, kept in golden.txt.

python tests/native/golden.py FOLDER THREADS [DTYPE]   prints the set, then lines: case, digest
python tests/native/golden.py --write                  an arithmetic or a case changed
FOLDER: of golden_checkpoints.py. DTYPE: the cases of one dtype alone. Everything of a case counts:
the logits of every pass of a target (many rows of prefills, batches of decode steps), tokens, log
probabilities, drafts and their laws.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import torch

FILE = Path(__file__).with_name("golden.txt")
DTYPES = ("float32", "bfloat16")
IMAGES = ((2, 3), (4, 2))
"""Rows and columns of their tokens."""


@attrs.frozen(kw_only=True)
class Case:
    """model: a name in the folder, or "demo". options: of LLM."""

    name: str
    model: str
    options: dict[str, Any] = attrs.field(factory=dict)
    draft: str | None = None
    speculative: dict[str, Any] | None = None


def cases(folder: Path, dtype: str = "") -> Iterator[Case]:
    """Those of a dtype, or all. folder: with the checkpoints."""
    return (case for case in _all_cases(folder) if dtype in ("", case.options["dtype"]))


def _all_cases(folder: Path) -> Iterator[Case]:
    drafts = ("dflash", "dflash-softcap", "eagle-1", "eagle-3")
    for path in sorted(folder.iterdir()):
        if path.name in (*drafts, "experts"):
            continue
        for dtype in DTYPES:
            yield Case(name=f"{path.name} {dtype}", model=path.name, options={"dtype": dtype})
    for draft in (*drafts, "ngram"):
        for acceptance in ("coupled", "residual", "relaxed"):
            relaxed = {"thinking_tokens": (5, 6), "relaxed_top": 40, "relaxed_slack": 0.95}
            yield Case(
                name=f"{draft} {acceptance}",
                model="LlamaForCausalLM-plain",
                options={"dtype": "float32"},
                draft=None if draft == "ngram" else draft,
                speculative={
                    **{"method": draft.split("-")[0], "width": 3, "acceptance": acceptance},
                    **(relaxed if acceptance == "relaxed" else {}),
                },
            )
    for dtype in DTYPES:
        yield Case(name=f"demo {dtype}", model="demo", options={"dtype": dtype, "max_length": 256})


def digest(case: Case, folder: Path) -> str:
    """Of everything that the case computes."""
    from pilotfish import LLM, CacheConfig, SpeculativeConfig

    found = hashlib.sha256()
    speculative = case.speculative and SpeculativeConfig(**case.speculative)
    with LLM(
        case.model if case.model == "demo" else str(folder / case.model),
        draft=case.draft and str(folder / case.draft),
        speculative=speculative,
        arithmetic="portable",
        max_batch_size=3,
        max_batch_tokens=48,
        cache=CacheConfig(page_size_tokens=4, num_pages=96),
        **case.options,
    ) as llm:
        model: Any = llm.engine.runner.model
        execute = model.execute

        def recorded(*arguments: Any) -> Any:
            outputs = execute(*arguments)
            assert outputs.logits.isfinite().all(), case.name
            found.update(outputs.logits.contiguous().numpy().tobytes())
            return outputs

        model.execute = recorded
        if llm.proposer is not None:
            propose = llm.proposer.propose

            def proposed(batch: Any) -> Any:
                for proposal in (made := propose(batch)):
                    found.update(repr(proposal.tokens).encode())
                    found.update(
                        b"" if proposal.probs is None else proposal.probs.numpy().tobytes()
                    )
                return made

            llm.proposer.propose = proposed  # type: ignore[method-assign]
        prompts = _prompts(llm)
        for output in llm.generate(prompts, _params()[: len(prompts)]):
            records = (_numbers(output.logprobs), _numbers(output.prompt_logprobs))
            found.update(repr((output.token_ids, *records, output.error)).encode())
    return found.hexdigest()


class _Numbers:
    """The numbers of a TokenLogprobs, written as such a record."""

    def __init__(self, record: Any) -> None:
        self._record = record

    def __repr__(self) -> str:
        names = ("token_id", "logprob", "rank", "top")
        said = ", ".join(f"{name}={getattr(self._record, name)!r}" for name in names)
        return f"TokenLogprobs({said})"


def _numbers(records: Any) -> Any:
    """Without the texts of tokens, which are a tokenizer's."""
    if records is None:
        return None
    return type(records)(record and _Numbers(record) for record in records)


def _prompts(llm: Any) -> list[Any]:
    """Of 1 to 40 tokens, and one with images where the model serves them; 5 begins to think."""
    prompts: list[Any] = [
        [5, *((7 * i * i + 3 * i + count) % 90 for i in range(1, count))]
        for count in (40, 3, 1, 17)
    ]
    if llm.placeholder_ids:
        images = [_image(f"image {rows} {columns}", rows, columns) for rows, columns in IMAGES]
        prompts.append({"prompt": [3, 94, 8, 94, 1], "images": images})
    return prompts


def _image(name: str, rows: int, columns: int) -> dict[str, Any]:
    """One that is preprocessed: four patches a token."""
    from native.formula import signed

    pixels = signed(name, 4 * rows * columns * 3 * 14 * 14, 127) * 2.0**-6
    values = torch.from_numpy(pixels.astype("float32")).view(-1, 3, 14, 14)
    return {"pixel_values": values, "grid_thw": (1, 2 * rows, 2 * columns)}


def _params() -> list[Any]:
    from pilotfish import SamplingParams

    cut = {"top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.3}
    rest = {"frequency_penalty": 0.4, "presence_penalty": 0.2, "logit_bias": {4: 1.5}}
    shared: dict[str, Any] = {"max_tokens": 9, "ignore_eos": True}
    return [
        SamplingParams(temperature=0.0, logprobs=3, prompt_logprobs=0, **shared),
        SamplingParams(temperature=0.8, seed=7, prompt_logprobs=2, **shared),
        SamplingParams(temperature=1.3, seed=8, logprobs=0, **cut, **rest, **shared),
        SamplingParams(temperature=1.0, seed=9, top_p=0.7, **shared),
        SamplingParams(temperature=1.0, seed=10, **shared),
    ]


def expected() -> dict[str, str]:
    """Case -> digest, as the file has them."""
    return dict(line.rsplit(" ", 1) for line in FILE.read_text().splitlines())


def main() -> int:
    """Prints a digest for every case, or writes the file."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from pilotfish.kernels.native import library, why_not

    warnings.filterwarnings("error", "arithmetic is not")
    module: Any = sys.modules["pilotfish.kernels.native.library"]
    module.SMALL_WORK = 1  # so that all threads share even these sizes
    writes = sys.argv[1:] == ["--write"]
    if writes:
        from native.golden_checkpoints import checkpoints

    folder = checkpoints() if writes else Path(sys.argv[1])
    native = library()
    if native is None:
        print(f"no native library: {why_not()}", file=sys.stderr)
        return 2
    if not writes:
        torch.set_num_threads(int(sys.argv[2]))
    print(native.instruction_set, torch.get_num_threads(), flush=True)
    lines = []
    for case in cases(folder, *sys.argv[3:4]):
        lines.append(f"{case.name} {digest(case, folder)}")
        print(lines[-1], flush=True)
    if writes:
        FILE.write_text("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
