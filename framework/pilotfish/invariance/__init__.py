"""Invariance: whose rows keep their bits, tried call by call and pass by pass."""
