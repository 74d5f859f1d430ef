"""StartUp: what a worker is told once, before its model is made; and where ranks meet.

Knows: pickle, which serves here alone, between a process and those that it started. Does not know:
how processes are started.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from datetime import timedelta
from types import FunctionType, MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from pilotfish.config.parallel import ParallelConfig
from pilotfish.errors import ConfigError
from pilotfish.parallel.direct import listen
from pilotfish.parallel.gloo import Gloo
from pilotfish.parallel.group import Groups
from pilotfish.ranks.channel import Address
from pilotfish.ranks.launch import CONNECT_S

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

SERVE = "pilotfish.ranks.serve:make_model"


@attrs.frozen(kw_only=True)
class StartUp:
    """rank: among those of all replicas.

    serve: module:function that makes what a worker serves, of a StartUp and its Groups.

    options: arguments of `prepare_from_options`. memory_plan: the driver's. store: where ranks
    meet; None for one that meets nobody.
    """

    parallel: ParallelConfig
    rank: int
    store: Address | None = None
    serve: str = SERVE
    options: Mapping[str, Any] = attrs.field(factory=dict)
    memory_plan: Any = None

    def to_bytes(self) -> bytes:
        """Raises ConfigError for what another process cannot find."""
        file = io.BytesIO()
        try:
            _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"an option cannot be sent to the other ranks: {error}; wanted plain values, and "
                "classes and functions that stand at the top of a module"
            ) from error
        return file.getvalue()

    @staticmethod
    def from_bytes(message: bytes | bytearray) -> StartUp:
        """What `to_bytes` made."""
        found: StartUp = pickle.loads(message)
        return found


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, type | FunctionType) and value.__module__ == "__main__":
            raise pickle.PicklingError(
                f"{value.__qualname__} is in the script that runs, which other ranks do not run"
            )
        if isinstance(value, MappingProxyType):  # pickle knows no way
            return _read_only, (dict(value),)
        return NotImplemented


def _read_only(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def connect(groups: Groups, store: TCPStore, parallel: ParallelConfig, host: str) -> None:
    """Meets the other ranks. Those that split experts are neighbours: 0 and 1, 2 and 3, say.

    host: this machine's address that they reach.
    """
    within = groups.within_replica
    for group, name in (
        (within.tensor, "tensor"),
        (within.expert, f"expert {groups.tensor.rank // within.expert.size}"),
    ):
        if group is groups.expert and group.size == groups.tensor.size:
            group.transport = groups.tensor.transport
        elif not group.is_alone:
            group.transport = Gloo(
                store,
                name,
                group.rank,
                group.size,
                timeout_s=parallel.rank_timeout,
                host=host,
            )


def meet_replicas(groups: Groups, meeting: Address, parallel: ParallelConfig, host: str) -> None:
    """Meets the ranks of other replicas that share experts, all of which come now.

    meeting: a store that no others met at. host: as for `connect`.
    """
    group, timeout_s = groups.expert, max(parallel.rank_timeout, CONNECT_S)
    store, name = join_store(meeting, timeout_s), f"experts {groups.number // group.size}"
    store.set(f"{name} {group.rank}", "")
    everybody = [f"{name} {rank}" for rank in range(group.size)]
    store.wait(everybody, timedelta(seconds=timeout_s))
    if isinstance(group.transport, Gloo):
        group.transport.close()
    group.transport = Gloo(
        store, name, group.rank, group.size, timeout_s=parallel.rank_timeout, host=host
    )


def transports_of(groups: Groups) -> tuple[Gloo, ...]:
    """Those that `connect` made, each once."""
    found = {groups.tensor.transport: None, groups.expert.transport: None}
    return tuple(one for one in found if isinstance(one, Gloo))


def open_store(host: str, timeout_s: float) -> TCPStore:
    """Where ranks meet; on a port of that address alone, which is free when it is dropped."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listening = listen(host)
    return TCPStore(
        host,
        listening.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
        master_listen_fd=listening.detach(),
    )


def join_store(address: Address, timeout_s: float) -> TCPStore:
    """A worker's end of it."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        *address,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
