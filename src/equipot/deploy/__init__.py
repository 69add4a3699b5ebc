"""Models as files: reading checkpoints, writing and loading deployed models, checking them."""
