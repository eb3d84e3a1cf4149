"""From a step's gradients to numbers on the host: norms, the size of the update, and what several processes know together."""
