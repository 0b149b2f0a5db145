"""What runs on edge and server: stages, gate, tail and edge loop, without sockets."""
