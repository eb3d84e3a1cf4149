"""From a step's gradients to numbers on the host: norms, the size of the update, what processes know together."""
