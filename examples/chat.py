"""A chat: answers are printed as they come, and every turn has those before it.

python examples/chat.py [MODEL [QUESTION ...]]
"""

import sys

from pilotfish import LLM, SamplingParams

QUESTIONS = ("What is the capital of France?", "And of Italy?")


def main(model: str = "demo", *questions: str) -> None:
    """Asks the questions one after another; greedy, so a small model stays on its subject."""
    params = SamplingParams(temperature=0, max_tokens=24)
    messages: list[dict[str, str]] = []
    with LLM(model, max_length=512) as llm:
        for question in questions or QUESTIONS:
            print(f"> {question}")
            messages.append({"role": "user", "content": question})
            answer = ""
            for delta in llm.stream(llm.chat_prompt(messages), params):
                print(delta.text, end="", flush=True)
                answer += delta.text
            print()
            messages.append({"role": "assistant", "content": answer})


if __name__ == "__main__":
    main(*sys.argv[1:])
