"""Formats: the files that tensors lie in, opened by their headers and read one tensor at a time."""
