"""Kernels: one folder an operation, with a readable reference beside the fast ones."""

from pilotfish.kernels.backend import KernelBackend

__all__ = ["KernelBackend"]
