"""`python -m pilotfish.kernels.native [FOLDER ...]`: compiles a library (see building.py)."""

from pilotfish.kernels.native.building import main

main()
