"""`python -m morfi`, the same as the console script."""

from morfi.cli import main

main()
