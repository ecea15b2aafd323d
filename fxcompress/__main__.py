"""``python -m fxcompress``."""

from fxcompress.cli import main

main()
