"""`python -m chip` is `chip`."""

from chip.cli.main import main

main()
