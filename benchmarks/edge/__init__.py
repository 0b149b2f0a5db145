"""Benchmarks of what an edge device needs."""
