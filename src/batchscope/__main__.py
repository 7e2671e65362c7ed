"""``python -m batchscope``."""

from batchscope.cli import main

main()
