"""Sets of twelve sick and twelve healthy runs; none of their authors had seen the guard's rules or benchmarks."""
