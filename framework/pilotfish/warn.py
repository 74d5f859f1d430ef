"""warn_caller: a warning at the line of the user's program that called Pilotfish.

Knows: frames. Does not know: what is warned of.
"""

from __future__ import annotations

import sys
import warnings


class PilotfishWarning(UserWarning):
    """What a user should know that is no error; the command line prints it as a line."""


def warn_caller(message: str, category: type[Warning] = PilotfishWarning) -> None:
    """Warns at the innermost line outside the package, however deep in it this is called."""
    frame, level = sys._getframe().f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").startswith("pilotfish."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)
