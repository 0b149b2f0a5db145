"""The wire: Open Inference Protocol server and channel, and the link emulator."""
