"""Detokenizer: the text of an answer as its tokens come, cut at stop strings.

Knows: one answer's text that may be shown, and text that may yet become a stop string. Does not
know: token limits, or when a request ends for another reason.
"""

from __future__ import annotations

from collections.abc import Sequence

from pilotfish.tokenization.text_stream import text_stream
from pilotfish.tokenization.tokenizer import Tokenizer

_FIRST_MARK, _MOST_MARKS = 0xD800, 0x800
"""Lone surrogates, which are in no text that was decoded."""


class Detokenizer:
    """Turns one answer's token ids to text that is never taken back.

    stop: strings that end the answer and are cut from it. Of several, the one that is complete
        first ends it, so the cut does not depend on how the text was split into tokens. Names of
        special tokens in them stand for those tokens, and for their text.
    context: ids of the text that the answer continues; see `text_stream`.
    skip_special_tokens: whether names of special tokens are left out of the text.
    tokenizer: the one that it was made with. stopped_by: the stop string that ended the answer;
        None while there was none.

    Without a stop string in it, all that `add` and `finish` give, joined, is
    `tokenizer.decode(all ids)`. The work per token depends on the token and the stop strings only.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        context: Sequence[int] = (),
        skip_special_tokens: bool = True,
    ) -> None:
        self.tokenizer = tokenizer
        self._stream = text_stream(
            tokenizer, skip_special_tokens=skip_special_tokens, context=context
        )
        self._stop = {text: text for text in stop}
        self._marks: dict[int, str] = {}
        if stop and skip_special_tokens:
            self._mark_special(tokenizer)
        self._held = ""
        self._parts: list[str] = []
        self.stopped_by: str | None = None

    def _mark_special(self, tokenizer: Tokenizer) -> None:
        """Special tokens give no text, so those that stop strings name are matched as marks."""
        names = tokenizer.special_texts
        found = [name for name in names if any(name in text for text in self._stop)]
        found.sort(key=len, reverse=True)  # a name within another's is part of that
        marks = {name: chr(_FIRST_MARK + place) for place, name in enumerate(found[:_MOST_MARKS])}
        for text in tuple(self._stop):
            marked = text
            for name, mark in marks.items():
                marked = marked.replace(name, mark)
            self._stop.setdefault(marked, text)
        self._marks = {names[name]: mark for name, mark in marks.items()}

    @property
    def text(self) -> str:
        """All text given so far."""
        return "".join(self._parts)

    def add(self, token_id: int, *, may_stop: bool = True) -> str:
        """Takes the next token; returns the text that may be shown now, often "".

        Text that may be the beginning of a stop string is held until that is decided.
        may_stop: False lets stop strings that are completed by this token pass, as before
            min_tokens. After a stop nothing more may be added.
        """
        assert self.stopped_by is None, "the answer has ended"
        new = self._stream.push(token_id)
        if self._stop:
            return self._take(new + self._marks.get(token_id, ""), may_stop)
        if new:
            self._parts.append(new)
        return new

    def finish(self, *, may_stop: bool = True) -> str:
        """The text that was held; the answer ended without a stop string, or ends with one here."""
        if self.stopped_by is not None:
            return ""
        given = self._take(self._stream.finish(), may_stop)
        if self.stopped_by is None:
            given += self._give(self._held)
            self._held = ""
        return given

    def _take(self, new: str, may_stop: bool) -> str:
        if not self._stop or not new:
            return self._give(new)
        text = self._held + new
        if may_stop:
            start = self._find_stop(text, len(self._held))
            if start is not None:
                self._held = ""
                return self._give(text[:start])
        num_held = self._num_to_hold(text)
        self._held = text[len(text) - num_held :]
        return self._give(text[: len(text) - num_held])

    def _give(self, text: str) -> str:
        if self._marks:
            text = "".join(letter for letter in text if letter not in self._marks.values())
        if text:
            self._parts.append(text)
        return text

    def _find_stop(self, text: str, num_old: int) -> int | None:
        """Where the stop string begins that is complete first, past the old letters."""
        best: tuple[int, int, str] | None = None
        for stop in self._stop:
            start = text.find(stop, max(0, num_old - len(stop) + 1))
            if start >= 0 and (best is None or (start + len(stop), start) < best[:2]):
                best = (start + len(stop), start, stop)
        if best is None:
            return None
        self.stopped_by = self._stop[best[2]]
        return best[1]

    def _num_to_hold(self, text: str) -> int:
        """Letters at the end that are the beginning of a stop string, the longest such."""
        longest = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
