"""The battery: what a conversion and its sisters come through, counted; `make battery` runs all of it.

``python -m tests.battery`` prints the tables of docs/reliability.md, and exits with 1 where a promise was broken.
"""
