"""Training on Lightning: from a configuration to a run directory."""
