"""`python -m chip` is `chip`."""

from chip.app import main

main()
