"""Benchmarks of `offramp.bundle`."""
