"""Two sets of twelve sick and twelve healthy runs, each by an author who had seen neither the guard's rules nor its other benchmarks."""
