"""Running a checkpoint's language model, by stock code."""
