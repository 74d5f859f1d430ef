"""Worker: the process of one rank beside the driver's. Serves what it is told to make.

Knows: messages in their order, and that it ends when its driver does. Does not know: any model.
"""

from __future__ import annotations

import os
import select
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from typing import Any, NoReturn

from pilotfish.ranks.channel import Address, Channel, HungUp

CLOSE = b""
"""The message that ends what is served."""
READY, ERROR = "ready", "error"
LAUNCH = "launch"
"""What the lead of a replica says where another process starts its ranks: a rank, and where it
listens for it."""
_LOOK_S = 1.0
"""How often a worker looks whether its driver lives, beside what its standard input tells."""


def main(address: Address, key: bytes, rank: int) -> NoReturn:
    """Of a process that the driver started: serves until it is told to close, or that is gone."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()
    code = 0
    try:
        serve(Channel.connect(address, key, rank))
    except HungUp:
        pass
    except BaseException:
        code = 1
    end_process(code)


def import_early() -> None:
    """What every model needs, while the driver looks at this one."""
    import_module("pilotfish.ranks.start_up")  # torch: who has connected answers at once
    import_module("pilotfish.loading.prepare")


def end_process(code: int) -> NoReturn:
    """At once: what other ranks wait for here ends, and there is nothing to tidy that the system
    does not.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve(channel: Channel) -> None:
    """Serves one model, until the driver closes it. Raises HungUp where the driver is gone, and
    whatever fails, which the driver has been told then.
    """
    try:
        _serve(channel)
    except HungUp:
        raise
    except BaseException as error:
        _say(channel, error)
        raise


def _serve(channel: Channel) -> None:
    from pilotfish.parallel.group import Groups
    from pilotfish.ranks.messages import decode, encode
    from pilotfish.ranks.start_up import StartUp, connect, join_store

    message = channel.recv()
    if message == CLOSE:
        return
    start = StartUp.from_bytes(message)
    groups = Groups.of_rank(start.rank, start.parallel)
    if start.store is not None:
        store = join_store(start.store, start.parallel.rank_timeout)
        connect(groups, store, start.parallel, channel.host)
    module, _, name = start.serve.partition(":")
    served: Any = getattr(import_module(module), name)(start, groups)
    if hasattr(served, "run"):  # it hears and answers by itself
        served.run(channel)
        return
    channel.send(encode([(READY, ())]))
    known, device = served.known, getattr(served, "device", "cpu")
    while (message := channel.recv()) != CLOSE:
        for method, arguments in decode(message, known, device):
            getattr(served, method)(*arguments())


def is_of_others(error: BaseException) -> bool:
    """Whether another rank's end caused it."""
    return isinstance(error, ConnectionError | TimeoutError)


def _say(channel: Channel, error: BaseException) -> None:
    """Tells the driver what was raised, if it is there."""
    from pilotfish.ranks.messages import encode

    said = (type(error).__name__, str(error), traceback.format_exc(), is_of_others(error))
    with suppress(Exception):
        channel.send(encode([(ERROR, said)]))


def _watch(driver: int) -> None:
    """Ends this process when the driver has ended, whatever it is doing.

    The pipe tells at once, unless a fork of the driver holds it open.
    """
    while os.getppid() == driver:
        ready, _, _ = select.select([sys.stdin], [], [], _LOOK_S)
        if ready and not os.read(sys.stdin.fileno(), 1):
            break
    os._exit(1)
