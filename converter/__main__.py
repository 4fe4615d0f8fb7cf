"""``python -m s4convert``: the command line."""

from .cli import main

main()
