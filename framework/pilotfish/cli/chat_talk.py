"""One conversation: its messages, how answers are sampled, and an answer as it is printed.

Knows: messages and answers. Does not know: commands, or where messages come from.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.cli.chat_keys import Meanwhile, TypedKeys
from pilotfish.cli.deltas import draft_colors, plain_text, say_if_cut
from pilotfish.cli.interrupts import Interrupts, interrupts_of_an_answer
from pilotfish.cli.standard_streams import no_text
from pilotfish.cli.status_line import StatusLine, reading_line
from pilotfish.cli.terminal import say_dim
from pilotfish.errors import RequestError

if TYPE_CHECKING:
    from pilotfish.config import SamplingParams
    from pilotfish.engine import LLM
    from pilotfish.engine.outputs import Delta, RequestOutput


@attrs.define(kw_only=True)
class Answer:
    """What was measured of an answer, whole or cut off.

    first_s, rest_s: seconds to the first token, and from there to the last. output: None for one
    that was cut off.
    """

    num_prompt_tokens: int
    text: str = ""
    num_tokens: int = 0
    first_s: float = 0.0
    rest_s: float = 0.0
    output: RequestOutput | None = None

    def took(self, delta: Delta, seconds: float) -> None:
        """Counts what came so many seconds after the question."""
        if not self.num_tokens:
            self.first_s = seconds
        self.rest_s = seconds - self.first_s
        self.num_tokens += len(delta.token_ids)
        self.text += delta.text
        self.output = delta.output

    def stats(self) -> str:
        """One line: how much, and how fast."""
        facts = [f"{self.num_tokens} tokens"]
        if self.rest_s:
            facts.append(f"{(self.num_tokens - 1) / self.rest_s:.1f} tokens/s")
        facts.append(f"the first after {self.first_s:.2f} s")
        drafts = None if self.output is None else self.output.speculative
        if drafts and drafts["drafted"]:
            facts.append(f"{drafts['accepted'] / drafts['drafted']:.0%} of drafts accepted")
        return ", ".join(facts)


@attrs.define(kw_only=True)
class Talk:
    """A conversation with a model.

    options: what the chat template is given. messages: {"role", "content"}, a system message
    first. last: the last answer; None before one.
    """

    llm: LLM
    keys: TypedKeys
    params: SamplingParams
    options: dict[str, Any] = attrs.field(factory=dict)
    shows_drafts: bool = False
    shows_stats: bool = False
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    last: Answer | None = None

    @property
    def system(self) -> str | None:
        """The system message; None without."""
        first = self.messages[0] if self.messages else {"role": ""}
        return first["content"] if first["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = ([{"role": "system", "content": text}] if text else []) + rest

    def reset(self) -> None:
        """Forgets all but the system message."""
        self.messages = [] if self.system is None else self.messages[:1]
        self.last = None

    def check(self, messages: list[dict[str, Any]]) -> None:
        """Raises RequestError where the chat template takes no message after them."""
        asked = bool(messages) and messages[-1]["role"] == "user"
        more = [] if asked else [{"role": "user", "content": "hello"}]
        self.llm.chat_prompt([*messages, *more], **self.options)

    def ask(self, text: str) -> None:
        """Prints the answer to a message. Raises RequestError and CapacityError, nothing kept."""
        try:
            text.encode()  # bytes that are no text come as lone surrogates
        except UnicodeError as error:
            raise no_text(error) from error
        self._answer([*self.messages, {"role": "user", "content": text}])

    def regenerate(self) -> None:
        """Prints another answer to the last message. Raises as `ask`, nothing changed."""
        messages = list(self.messages)
        if messages and messages[-1]["role"] == "assistant":
            messages.pop()
        if not messages or messages[-1]["role"] != "user":
            raise RequestError("there is nothing to answer; wanted a message first")
        if self.params.seed is not None or self.params.is_greedy:
            say_dim("[with a seed, or temperature 0, it is the same again; /set changes them]")
        self._answer(messages)

    def _answer(self, messages: list[dict[str, Any]]) -> None:
        """Prints an answer and keeps both; nothing where Ctrl-C came before its first word."""
        answer, is_cut, reading = None, False, reading_line(self.llm)
        with interrupts_of_an_answer() as interrupts, reading, Meanwhile(self.keys, reading.look):
            try:
                prompt = self.llm.chat_prompt(messages, **self.options)
                answer = Answer(num_prompt_tokens=len(prompt))
                is_cut = self._print(prompt, answer, reading, interrupts)
            except KeyboardInterrupt:
                is_cut = True
        if answer is None or (is_cut and not answer.text):
            say_dim("[interrupted before a word was said; the message is taken back]")
            return
        print(flush=True)
        self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        self.last = answer
        if is_cut:
            say_dim("[interrupted]")
        elif answer.output is not None:
            say_if_cut(self.llm, answer.output)
        if self.shows_stats:
            say_dim(f"[{answer.stats()}]")

    def _print(
        self, prompt: list[int], answer: Answer, reading: StatusLine, interrupts: Interrupts
    ) -> bool:
        """Prints the answer as it comes; whether Ctrl-C cut it between two pieces."""
        show = draft_colors(self.llm) if self.shows_drafts else plain_text
        start = perf_counter()
        params = attrs.evolve(self.params, max_tokens=self._most_tokens(len(prompt)))
        deltas: Any = self.llm.stream(prompt, params)
        try:
            for delta in deltas:
                interrupts.waits = True  # the next piece is near
                reading.end()
                if delta.output is not None and delta.output.error is not None:
                    raise RequestError(delta.output.error)
                answer.took(delta, perf_counter() - start)
                print(show(delta), end="", flush=True)
                if interrupts.has_come:
                    return answer.output is None
        finally:
            deltas.close()
        return False

    def _most_tokens(self, num_prompt_tokens: int) -> int:
        """What was asked for, as far as context and cache have room; the prompt may have none."""
        llm = self.llm
        room = min(llm.max_seq_len, llm.memory_plan.max_cached_tokens + 1) - num_prompt_tokens
        return max(1, self.params.min_tokens, min(self.params.max_tokens, room))
