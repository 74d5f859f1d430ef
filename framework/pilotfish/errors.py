"""Every error that a user of Pilotfish can meet.

Knows: the hierarchy, and which errors are the user's mistake. Does not know: how they are shown.
A message says what went wrong, what was got, what was wanted, and what to do about it.
"""

from __future__ import annotations


class PilotfishError(Exception):
    """Base of every error that Pilotfish raises on purpose."""


class UserError(PilotfishError):
    """A mistake that the caller can mend: the command line shows one line and exits with 2."""


class ConfigError(UserError, ValueError):
    """An option or a checkpoint's configuration is wrong or not understood; names the option."""


class CheckpointError(UserError):
    """A checkpoint cannot be read: missing path, missing file, corrupt or unsupported data."""


class WeightsError(CheckpointError):
    """The tensors of a checkpoint do not fit the architecture: missing, extra or misshapen."""


class RouteError(UserError, LookupError):
    """No plugin serves what was asked: unknown architecture, method, or a pair that misfits."""


class PluginError(UserError):
    """A plugin cannot be used: it failed to import, misspells a hook, or needs another version."""


class PluginConflictError(PluginError):
    """Two distributions claim one plugin name or one architecture; the message names both."""


class RequestError(UserError, ValueError):
    """One request is wrong: empty or too long prompt, token id out of range, bad parameter."""


class CapacityError(UserError, MemoryError):
    """Weights and state do not fit the memory; says what was needed and what to lower."""


class StateError(PilotfishError):
    """The lifecycle of a request's state was broken: double claim, unknown request, bad commit."""


class OutOfPagesError(StateError):
    """The page pool cannot serve a reservation; the scheduler preempts a request and retries."""


class OutOfSlotsError(StateError):
    """Every slot of a cache has an owner; the scheduler never runs more requests than slots."""


class WorkerEnd(SystemExit):
    """Ends a process that served as a rank under torchrun, when rank 0's has ended; code 0."""


class RankError(PilotfishError):
    """A rank of a model on several devices died, hung or raised: the message names it. The model
    is of no more use; make another one.
    """
