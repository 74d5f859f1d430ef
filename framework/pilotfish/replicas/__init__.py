"""Replicas: whole copies of a model in processes of their own, and what tells them what to do."""
