"""Tests of the dflash plugin. A package, so that z-lab's of the same name does not hide it."""
