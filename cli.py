"""Runs the command from a checkout: `python cli.py edit ...` is `chip edit ...`."""

from chip.app import main

main()
