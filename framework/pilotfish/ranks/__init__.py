"""Ranks: the worker processes of a model that lies on several devices, and what they are told."""
