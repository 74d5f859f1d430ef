"""Drafts by n-grams: fewer passes, the same text; and how many drafts the target accepted.

python examples/speculate.py [MODEL]
"""

import sys

from pilotfish import LLM, SamplingParams, SpeculativeConfig

PROMPT = "red green blue red green blue red green"


def main(model: str = "demo") -> None:
    """Prints the text with drafts, what became of them, and whether plain decoding agrees."""
    params = SamplingParams(temperature=0, max_tokens=32)
    with LLM(model, max_length=256) as llm:
        (plain,) = llm.generate(PROMPT, params)
    ngram = SpeculativeConfig(method="ngram", width=4)
    with LLM(model, max_length=256, speculative=ngram) as llm:
        (output,) = llm.generate(PROMPT, params)
    counts = output.speculative or {}
    print(repr(output.text))
    print(f"{counts['accepted']} of {counts['drafted']} drafted tokens accepted")
    print(f"{counts['mean_committed_per_step']:.2f} tokens a step")
    print("plain: the same text" if plain.text == output.text else "plain: another text")


if __name__ == "__main__":
    main(*sys.argv[1:])
