"""The commands on finished runs, and sweeps: each has a `main`."""
