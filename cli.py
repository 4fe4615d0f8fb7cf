"""The command line from a checkout: ``python cli.py IN OUT --mask mask.json``."""

from converter.cli import main

if __name__ == "__main__":
    main()
