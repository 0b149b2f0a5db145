"""Benchmarks of the edge loop."""
