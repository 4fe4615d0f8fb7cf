"""The trained mini LLaVA that ships with the package, and what can be shown with it."""
