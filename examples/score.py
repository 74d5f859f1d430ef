"""Scores: which of several endings of a text a model holds for the likeliest.

python examples/score.py [MODEL]
"""

import sys

from pilotfish import LLM, SamplingParams

TEXT = "The capital of France is"
ENDINGS = (" Rome", " Paris", " a kind of cheese")


def main(model: str = "demo") -> None:
    """Prints the endings, likeliest first, with the log probability of all of their tokens."""
    params = SamplingParams(prompt_logprobs=0, max_tokens=1)
    with LLM(model, max_length=256) as llm:
        alone, *outputs = llm.generate([TEXT, *(TEXT + ending for ending in ENDINGS)], params)
    first = len(alone.prompt_token_ids)
    scores = {
        ending: sum(token.logprob for token in (output.prompt_logprobs or ())[first:] if token)
        for ending, output in zip(ENDINGS, outputs, strict=True)
    }
    for ending, score in sorted(scores.items(), key=lambda pair: -pair[1]):
        print(f"{score:9.3f} {TEXT + ending}")


if __name__ == "__main__":
    main(*sys.argv[1:])
