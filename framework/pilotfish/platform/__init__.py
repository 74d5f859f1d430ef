"""The process and its libraries: memory, threads, and torch below its own surface."""
