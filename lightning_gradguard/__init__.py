"""Keep deep-learning training alive: gradients -> statistics -> verdict -> decision -> remedy -> record."""
