"""Docstrings as the site shows them; `mkdocs.yml` names this file as an extension of griffe.

Knows: that an entry has a docstring. Does not know: how its lines are broken (site_pages.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.append(str(Path(__file__).parent))

from site_pages import broken


class Fields(griffe.Extension):
    """Lines `name: meaning` stand one below the other."""

    def on_object(self, *, obj: Any, loader: Any, **kwargs: Any) -> None:
        """As griffe asks, once an object is known."""
        if obj.docstring is not None:
            obj.docstring.value = broken(obj.docstring.value)
