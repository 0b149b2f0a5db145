"""Traces: what every exit says about every sample, recorded once and replayed by policies."""
