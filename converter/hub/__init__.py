"""In from the Hugging Face Hub, through its client's cache, and out to it."""
