"""Sampling in C++: what `pilotfish.sampling` calls where the logits lie on a CPU.

Knows: where the kernels lie. Does not know: options, requests, or when the library is there.
"""
