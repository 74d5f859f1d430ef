"""The native functions that only this architecture needs, in a library of its own.

Knows: where the library lies. kernels.h lists the functions; each folder's native.h has one.
"""

from pathlib import Path

from pilotfish.kernels.native import plugin_library

LIBRARY = plugin_library(Path(__file__).parent)
"""Loaded when a function is first called."""
