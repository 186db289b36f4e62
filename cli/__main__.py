"""``tokenfleet``, also as ``python -m cli``."""

from __future__ import annotations

import signal

# Until the command line is loaded there is nobody to end quietly: Ctrl-C just ends the process, as any other one.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from cli.main import main

if __name__ == "__main__":
    main()
