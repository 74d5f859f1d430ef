"""Where a kernel's test runs it: triton on a GPU where there is one, everything else on the CPU.

Knows: how tensors travel there and back. Does not know: any kernel.
Tests make their tensors on the CPU, and compare there; `placed` sends a call's tensors to the
backend's device as they lie in memory (strides, shared memory, what surrounds a view), and brings
results and every change back. Without a GPU it adds nothing: the call is the kernel's own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import attrs
import torch

from pilotfish.kernels import KernelBackend

DEVICES = {
    "torch": "cpu",
    "native": "cpu",
    "triton": "cuda" if torch.cuda.is_available() else "cpu",
}
"""Where a backend's tensors belong, by the backend's name."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def placed(call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A kernel's public function, run where its `backend` belongs; arguments and results on CPU."""

    @functools.wraps(call)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        backend = kwargs["backend"]
        assert isinstance(backend, KernelBackend)
        return sent(call, DEVICES[backend.name], *args, **kwargs)

    return run


def sent(call: Callable[..., Result], device: str, *args: Any, **kwargs: Any) -> Result:
    """Calls with the tensors on `device`; as they are when that is the CPU."""
    if device == "cpu":
        return call(*args, **kwargs)
    trip = Trip(device)
    found = call(*trip.there(args), **trip.there(kwargs))
    trip.bring_back()
    result: Result = trip.back(found)
    return result


@attrs.define
class Trip:
    """The memory of one call's tensors, here and on the device, by its address on either side."""

    device: str
    _twins: dict[int, tuple[torch.Tensor, torch.Tensor]] = attrs.field(factory=dict)

    def there(self, value: Any) -> Any:
        """The same value with every tensor inside it on the device."""
        return _mapped(value, self._tensor_there)

    def back(self, value: Any) -> Any:
        """A result with its tensors on the CPU; what is an argument's memory is that argument's."""
        return _mapped(value, self._tensor_back)

    def bring_back(self) -> None:
        """Copies all memory back, so that what the call changed is changed here."""
        for here, there in {id(pair): pair for pair in self._twins.values()}.values():
            here.copy_(there)

    def _tensor_there(self, tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.untyped_storage().nbytes() or tensor.device.type != "cpu":
            return tensor.to(self.device)
        address = tensor.untyped_storage().data_ptr()
        if address not in self._twins:
            here = _memory(tensor)
            pair = here, here.to(self.device, copy=True)
            self._twins[address] = pair
            self._twins[pair[1].untyped_storage().data_ptr()] = pair
        return _view(self._twins[address][1], tensor)

    def _tensor_back(self, tensor: torch.Tensor) -> torch.Tensor:
        pair = self._twins.get(tensor.untyped_storage().data_ptr())
        return tensor.cpu() if pair is None else _view(pair[0], tensor)


def _memory(tensor: torch.Tensor) -> torch.Tensor:
    """All bytes of the memory a tensor lies in: [bytes] uint8, no copy."""
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage())


def _view(memory: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """What `like` is of its own memory, of this memory."""
    empty = torch.empty(0, dtype=like.dtype, device=memory.device)
    place = like.storage_offset(), like.shape, like.stride()
    return empty.set_(memory.untyped_storage(), *place)


def _mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Applies `change` to every tensor in containers and attrs records; other values stay."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, change) for item in value)
    if attrs.has(type(value)):
        return _mapped_record(value, change)
    return value


def _mapped_record(record: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    changes: dict[str, Any] = {}
    for field in attrs.fields(type(record)):
        old = getattr(record, field.name)
        # A dict in a record is a memo: it is filled by one record and shared by its copies.
        new = old if isinstance(old, dict) else _mapped(old, change)
        if new is not old and field.init:
            changes[field.alias] = new
    return attrs.evolve(record, **changes) if changes else record
