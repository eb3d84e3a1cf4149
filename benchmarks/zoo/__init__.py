"""The explosion zoo: sick training runs to rescue, healthy ones to leave alone. Run it by ``python -m benchmarks.zoo``."""
