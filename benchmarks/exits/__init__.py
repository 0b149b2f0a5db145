"""Benchmarks of `offramp.exits`."""
