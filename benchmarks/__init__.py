"""Side-by-side measurements, one command each; what they found stands in docs/benchmarks.md. No test is timed."""
