"""``python -m portconv``."""

from .command import main

main()
