"""The bundle: what training writes and what edge and server read."""
