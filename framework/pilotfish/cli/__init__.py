"""The command line, one file a verb."""

from pilotfish.cli.main import main

__all__ = ["main"]
