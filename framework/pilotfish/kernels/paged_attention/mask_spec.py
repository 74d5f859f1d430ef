"""MaskSpec: which keys a row may see. Rows and keys are named by their positions p and j.

Knows: windows, causal and block mode. Does not know: tensors, pages, or how keys are partitioned.
Ranges are half open.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs
import numpy as np
import numpy.typing as npt

Range: TypeAlias = tuple[int, int]
Ints: TypeAlias = npt.NDArray[np.int64]
FAR = 1 << 60


@attrs.frozen(cache_hash=True)
class MaskSpec:
    """window: keys a row sees on a side, itself included, or None. mode: see `paged_attention`.

    Raises ValueError for another mode, or a window below 1.
    """

    window: int | None = None
    mode: Literal["causal", "block"] = "causal"

    def __attrs_post_init__(self) -> None:
        if self.mode not in ("causal", "block") or (self.window is not None and self.window < 1):
            raise ValueError(
                f"mode is {self.mode!r} and window {self.window}; wanted 'causal' or 'block', and "
                "a window of at least 1 key, or None for all keys"
            )

    def visible_keys(self, rows: Range, num_keys: int) -> Range:
        """From the first to the last key that any of a run of rows sees; num_keys: keys that exist.

        In causal mode the last row must be the last key.
        """
        if self.window is None:
            return 0, num_keys
        return max(0, rows[0] - self.window + 1), min(num_keys, rows[1] + self.window - 1)

    def rows_that_see(self, keys: Range, num_keys: int) -> tuple[Range, Range]:
        """Returns (rows that see any of these keys, rows that see them all), not cut to real rows.

        keys: a partition, of which only the keys below num_keys exist. The second range is empty,
        at the start of the first, where every row needs a mask.
        """
        (start, end), window = keys, FAR if self.window is None else self.window
        causal = self.mode == "causal"
        some = (start if causal else start - window + 1, min(end, num_keys) + window - 1)
        full = (end - 1 if causal else end - window, start + window)
        if full[0] >= full[1] or end > num_keys:
            full = (some[0], some[0])
        return some, full

    def hidden(self, p: Ints, j: Ints, num_keys: Ints) -> npt.NDArray[np.bool_]:
        """Where row p may not see key j, in the shape the three arrays broadcast to."""
        p, j, num_keys = np.broadcast_arrays(p, j, num_keys)
        hidden: npt.NDArray[np.bool_] = j > p if self.mode == "causal" else j >= num_keys
        if self.window is not None:
            hidden = hidden | (np.abs(p - j) >= self.window)
        return hidden
