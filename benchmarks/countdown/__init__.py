"""The second task of `benchmarks/collapse.py`: its policy, its configuration, and a quick scorer."""
