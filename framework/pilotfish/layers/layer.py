"""Layer: the base of every part of a network: it declares tensors by name and takes each once.

Knows: names, shapes, and when a part is complete. Does not know: files, kernels or architectures.
Not an `nn.Module`: a packed weight is no parameter, and a module's call and attribute look-ups
cost as much as the small operations of a decode step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from pilotfish.errors import PluginError
from pilotfish.kernels import KernelBackend
from pilotfish.parallel.shard import Shard

if TYPE_CHECKING:
    import torch

    from pilotfish.parallel.group import Groups
    from pilotfish.weights import StoredRows

Shape = tuple[int, ...]
KeepsBits: TypeAlias = bool | Literal["portable"]
"""What the author of a class says of what its own methods compute, as `keeps_bits`: True, a row has
bits of its own on one machine; "portable", with native kernels the same ones on every processor."""


class Written:
    """A class that keeps its attributes as they were written, so that a patch can be noticed."""

    __slots__ = ()
    _written: ClassVar[Mapping[str, Any]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        says = vars(cls).get("keeps_bits", False)
        if says not in (True, False, "portable"):
            raise PluginError(
                f"{cls.__qualname__}.keeps_bits is {says!r}; wanted True (a row's bits are its own "
                "on one machine), 'portable' (and the same on every processor) or False"
            )
        cls._written = dict(vars(cls))


class Layer(Written):
    """A part of a network.

    Subclasses call `declare` for their own tensors and keep other layers as plain attributes (or
    in lists and tuples); a parameter's name is the path of attributes that leads to it:
    "layers.3.attention.qkv.weight".
    takes_stored: whether its matrices may come as StoredRows, which `complete` then gets.
    """

    takes_stored: ClassVar[bool] = False

    def declare(self, name: str, shape: Shape) -> None:
        """Says that this layer wants a tensor, which `complete` gets with all the others.

        Raises PluginError for a name that no path of attributes can end in: one with a dot. Only a
        layer with an `assign` of its own finds such.
        """
        if not name or ("." in name and type(self).assign is Layer.assign):
            inner, _, rest = name.rpartition(".")
            raise PluginError(
                f"{type(self).__name__} declares the tensor {name!r}; wanted a name without dots: "
                f"{'_'.join(filter(None, name.split('.'))) or 'weight'!r}"
                + (f", or a Layer at {inner!r} that declares {rest!r}" if inner else "")
            )
        self._declared()[name] = shape

    def parameter_shapes(self, prefix: str = "") -> dict[str, Shape]:
        """Every tensor of this layer and of the layers inside it: name -> shape."""
        found = {prefix + name: shape for name, shape in self._declared().items()}
        for name, child in self._children():
            found.update(child.parameter_shapes(f"{prefix}{name}."))
        return found

    def shard(self, groups: Groups, name: str = "") -> None:
        """Leaves this rank its part of the layers inside; called once, before tensors arrive.

        By default a layer keeps its own tensors whole and computes the same rows on every rank, and
        the layers inside it are asked: whatever they keep, they take and give whole rows.
        groups: the ranks of the model. name: the path to this layer, for messages: "layers.3.mlp.".
        Raises ConfigError naming a layer that cannot be split so.
        """
        for child_name, child in self._children():
            child.shard(groups, f"{name}{child_name}.")

    def keep(self, name: str, shard: Shard) -> None:
        """Says that of the declared tensor called `name` this rank gets a part."""
        assert name in self._declared(), name
        self.__dict__.setdefault("_kept_shards", {})[name] = shard

    def shards(self, prefix: str = "") -> dict[str, Shard]:
        """What this rank gets of every tensor, here and inside, that it does not get whole."""
        found = {prefix + name: shard for name, shard in self._shards().items()}
        for name, child in self._children():
            found.update(child.shards(f"{prefix}{name}."))
        return found

    def held_shape(self, name: str) -> Shape:
        """Of what this rank gets of the declared tensor called `name`."""
        whole, shard = self._declared()[name], self._shards().get(name)
        return whole if shard is None else shard.shape(whole)

    def assign(self, name: str, tensor: torch.Tensor | StoredRows, backend: KernelBackend) -> None:
        """Hands the tensor called `name` to the layer that declared it. Raises KeyError if none."""
        head, _, rest = name.partition(".")
        if not rest:
            self._take_own(name, tensor, backend)
            return
        for child_name, child in self._children():
            if name.startswith(child_name + "."):
                child.assign(name.removeprefix(child_name + "."), tensor, backend)
                return
        raise KeyError(f"no layer called {head!r} wants {name!r}")

    def may_stay(self, name: str) -> bool:
        """Whether the matrix called `name` may come as StoredRows. Raises KeyError."""
        return self._owner(name).takes_stored

    def complete(self, tensors: dict[str, torch.Tensor], backend: KernelBackend) -> None:
        """Called once, when every declared tensor has arrived: keep them, or pack them.

        tensors: name -> tensor, the layer's own from now on. The default sets attributes.
        """
        del backend
        for name, tensor in tensors.items():
            setattr(self, name, tensor)

    def layers_inside(self) -> Iterator[Layer]:
        """This layer and every layer inside it."""
        return (layer for _, layer in self.named_layers())

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Layer]]:
        """The same, each with the path to it, which its tensors' names begin with."""
        yield prefix, self
        for name, child in self._children():
            yield from child.named_layers(f"{prefix}{name}.")

    def _declared(self) -> dict[str, Shape]:
        return self.__dict__.setdefault("_declared_shapes", {})  # type: ignore[no-any-return]

    def _shards(self) -> dict[str, Shard]:
        return self.__dict__.get("_kept_shards", {})  # type: ignore[no-any-return]

    def _owner(self, name: str) -> Layer:
        """The layer that declared the tensor called `name`."""
        if name in self._declared():
            return self
        for child_name, child in self._children():
            if name.startswith(child_name + "."):
                return child._owner(name.removeprefix(child_name + "."))
        raise KeyError(f"no layer wants {name!r}")

    def _take_own(
        self, name: str, tensor: torch.Tensor | StoredRows, backend: KernelBackend
    ) -> None:
        shapes = self._declared()
        if name not in shapes:
            raise KeyError(f"{type(self).__name__} wants {sorted(shapes)}, got {name!r}")
        assert tuple(tensor.shape) == self.held_shape(name), (name, tensor.shape)
        waiting: dict[str, Any] = self.__dict__.setdefault("_waiting", {})
        waiting[name] = tensor
        if len(waiting) == len(shapes):
            del self.__dict__["_waiting"]
            self.complete(waiting, backend)

    def _children(self) -> Iterator[tuple[str, Layer]]:
        for name, value in self.__dict__.items():
            if isinstance(value, Layer):
                yield name, value
            elif isinstance(value, list | tuple):
                for index, item in enumerate(value):
                    if isinstance(item, Layer):
                        yield f"{name}.{index}", item
