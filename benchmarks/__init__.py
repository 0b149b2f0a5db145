"""Benchmarks: each mirrors a package of offramp, times the alternative in the same run, prints the spread."""
