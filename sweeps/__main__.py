"""`python -m sweeps` is the program `sweeps`."""

from sweeps.cli import main

main()
