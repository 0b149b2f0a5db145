from tiny_bundle import clock, make_bundle, says, tiny  # noqa: F401
