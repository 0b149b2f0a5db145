"""Benchmarks of `offramp.serving`."""
