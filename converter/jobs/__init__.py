"""The verbs of the package: what a user asks for, from names of files to a result."""
