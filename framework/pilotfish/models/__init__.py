"""Models: everything a decoder does that is not its architecture, and its pass as native calls."""
