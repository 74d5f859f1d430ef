"""Standard input and output, as they are: closed, of another encoding, or no text.

Knows: what they carry. Does not know: prompts or answers.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pilotfish.errors import RequestError


def check_input() -> None:
    """Raises RequestError where standard input is closed."""
    if sys.stdin is None:
        raise RequestError("standard input is closed; wanted text there, or --prompt TEXT")


def read_input() -> str:
    """All of standard input. Raises RequestError where it is closed or no text."""
    check_input()
    try:
        text = sys.stdin.read()
        text.encode()  # bytes that are no text may come as lone surrogates
    except UnicodeError as error:
        raise no_text(error) from error
    return text


def no_text(error: UnicodeError) -> RequestError:
    """What is said of bytes that are no text."""
    return RequestError(f"standard input is not UTF-8 text: {error}; wanted text")


def print_json(facts: Any) -> None:
    """One line of JSON; letters that the output's encoding may lack are written as \\u escapes."""
    is_utf8 = (sys.stdout.encoding or "utf-8").lower().replace("_", "-") in ("utf-8", "utf8")
    print(json.dumps(facts, ensure_ascii=not is_utf8))
