"""The explosion zoo: sick training runs to rescue, healthy ones to leave alone (``python -m benchmarks.zoo``)."""
