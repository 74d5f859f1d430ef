"""What attention kernels in Triton share, once a request's keys are cut into splits.

Knows: the parts in `triton.py`, for kernels of the core and of plugins. Does not know: any of them.
"""
