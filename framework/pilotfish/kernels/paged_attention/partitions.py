"""Partitions of the key axis, fixed by absolute position: [0,128) [128,256) [256,512) [512,1024)...

Knows: where partitions begin. Does not know: rows, tensors or pages.
Small ones first, so that a short context costs little; at most 512 keys, the length up to which
the flash kernel takes a row's keys in one block.
"""

from __future__ import annotations

from pilotfish.kernels.paged_attention.mask_spec import Range

SMALLEST, LARGEST = 128, 512


def partition(index: int) -> Range:
    """The keys of partition 0, 1, 2..."""
    if index < 2:
        return index * SMALLEST, (index + 1) * SMALLEST
    if index == 2:
        return 2 * SMALLEST, LARGEST
    return (index - 2) * LARGEST, (index - 1) * LARGEST


def partition_of(key: int) -> int:
    """The index of the partition that holds a key."""
    if key < LARGEST:
        return min(key // SMALLEST, 2)
    return key // LARGEST + 2


def partitions_of(keys: Range) -> range:
    """The indices of the partitions that a non-empty run of keys touches."""
    return range(partition_of(keys[0]), partition_of(keys[1] - 1) + 1)
