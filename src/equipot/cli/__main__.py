"""``python -m equipot.cli``, for torchrun."""

from equipot.cli import main

main()
