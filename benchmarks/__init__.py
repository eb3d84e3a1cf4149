"""Benchmarks of the guard: what it saves, what it leaves alone, and what it costs."""
