"""The client of remote model servers. Imports no Beam: one event loop per process, time and randomness injected."""
