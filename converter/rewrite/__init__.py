"""From a checkpoint and a mask to a new checkpoint: the plan, the compensations, the writer, staging and commit."""
