"""Loading the model that a command line describes, and what is seen of it meanwhile.

Knows: flags as `engine_options` reads them, and the terminal. Does not know: what a verb does.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from pilotfish.cli.chat_keys import Meanwhile, TypedKeys
from pilotfish.cli.options import engine_options
from pilotfish.cli.status_line import StatusLine

if TYPE_CHECKING:
    from pilotfish.engine import LLM


def load_llm(
    args: argparse.Namespace, check: Callable[[LLM], object], keys: TypedKeys | None = None
) -> LLM:
    """The model that the flags describe, ready to generate.

    check: raises where that cannot be, before weights are fetched and read. keys: kept meanwhile.
    """
    line = StatusLine(lambda: f"loading {args.model}")

    def check_first(llm: LLM) -> None:
        check(llm)
        line.end()  # the weights have a bar

    with line, Meanwhile(keys or TypedKeys(None), line.look), warnings.catch_warnings():
        from pilotfish.engine import LLM
        from pilotfish.loading.planning import NOTE

        warnings.filterwarnings("ignore", NOTE)  # it is said here, on one line
        llm = LLM(
            args.model,
            generation_config=args.generation_config,
            before_weights=check_first,
            **engine_options(args),
        )
    if llm.memory_plan.note:
        print(f"pilotfish: {llm.memory_plan.note}", file=sys.stderr)
    return llm
