"""Loading: all that is decided of a run, from MODEL and options, before weights are read."""
