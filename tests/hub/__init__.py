"""A Hugging Face Hub on the loopback, for tests with the real huggingface_hub client.

``server`` starts it, ``faults`` says what may go wrong, ``conftest`` gives the fixture ``hub``.
"""
