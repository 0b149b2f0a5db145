"""Benchmarks of the edge: what it installs, how soon it answers, its loop."""
