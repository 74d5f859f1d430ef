"""TensorRecord: a frozen record of tensors, which can be listed.

Knows: fields. Does not know: what they hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    import torch


@attrs.frozen(kw_only=True)
class TensorRecord:
    """A frozen record whose tensors can be listed in declared order.

    Fields may hold tensors, None, tuples of tensors, nested records, or plain host data.
    """

    @property
    def buffers(self) -> tuple[torch.Tensor, ...]:
        """The tensors in declared field order, nested records flattened in place.

        Graph capture copies these into persistent buffers; generated from the class.
        """
        import torch

        found: list[torch.Tensor] = []
        for field in attrs.fields(type(self)):
            value = getattr(self, field.name)
            for item in value if isinstance(value, tuple) else (value,):
                if isinstance(item, torch.Tensor):
                    found.append(item)
                elif isinstance(item, TensorRecord):
                    found.extend(item.buffers)
        return tuple(found)
