"""Native kernels: C++ for CPUs, one library for all, the instruction set chosen at run time.

Knows: how the library is built, found and called. Does not know: any kernel; each stands in its
own folder as native.h (what it computes) and native.py (its arguments).
"""

from pilotfish.kernels.native.library import PluginLibrary, library, plugin_library, run, why_not

__all__ = ["PluginLibrary", "library", "plugin_library", "run", "why_not"]
