"""Benchmarks of `offramp.policy`."""
