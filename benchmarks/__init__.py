"""Benchmarks: each is a module to be run, `python -m benchmarks.NAME`; the Makefile has a target for each."""
