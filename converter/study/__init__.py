"""What is left of a model: questions, answers, figures, and studies over many masks."""
