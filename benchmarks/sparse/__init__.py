"""Benchmarks of `offramp.sparse`."""
