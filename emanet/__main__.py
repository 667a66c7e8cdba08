"""`python -m emanet`."""

from .cli import main

main()
