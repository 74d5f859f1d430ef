"""The hub: a checkpoint fetched from it, headers first, and what to say where that fails."""
