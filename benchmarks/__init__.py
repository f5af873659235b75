"""The benchmark rig: one load, one model server, several ways to ask it about each event of a stream."""
