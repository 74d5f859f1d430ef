"""Kernels that only this architecture needs."""
