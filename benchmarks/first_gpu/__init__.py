"""The first half hour on a GPU, by ``python -m benchmarks.first_gpu``."""
