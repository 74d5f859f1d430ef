"""quiet: transformers without its bars and reports.

Knows: how they are turned off. Does not know: what is loaded meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and load reports."""
    from transformers.utils import logging as hf_logging

    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    if level != logging.CRITICAL:  # either way all loggers forget what they know
        hf_logging.set_verbosity(logging.CRITICAL)
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if level != logging.CRITICAL:
            hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
