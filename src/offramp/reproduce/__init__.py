"""The papers' experiments, and those that say where their ideas pay: one file per study."""
