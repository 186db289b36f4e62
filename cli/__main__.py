"""``python -m cli`` is ``tokenfleet``."""

from cli.main import main

main()
