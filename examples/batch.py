"""A batch with seeds: a request's text depends on its prompt, its options and its seed alone.

python examples/batch.py [MODEL]
"""

import sys

from pilotfish import LLM, SamplingParams

PROMPTS = ["The capital of France is", "Once upon a time", "One, two, three,"]


def main(model: str = "demo") -> None:
    """Prints each answer of a batch with its seed, and asks for one of them again, alone."""
    params = [SamplingParams(temperature=0.8, seed=seed, max_tokens=12) for seed in (1, 2, 3)]
    with LLM(model, max_length=256) as llm:
        outputs = llm.generate(PROMPTS, params)
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            print(f"seed {output.seed}: {prompt!r} -> {output.text!r}")
        (alone,) = llm.generate(PROMPTS[1], params[1])
    print("alone: the same text" if alone.text == outputs[1].text else "alone: another text")


if __name__ == "__main__":
    main(*sys.argv[1:])
