"""Policies: where to split and when to offload. One algorithm per file."""
