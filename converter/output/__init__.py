"""What a conversion says of itself: the manifest, the model card, pictures of its heads."""
