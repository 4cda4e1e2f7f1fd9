"""Runs the command from a checkout: `python cli.py edit ...` is `chip edit ...`."""

from chip.cli.main import main

main()
