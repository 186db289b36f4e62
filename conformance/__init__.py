"""The conformance kit: plays the provider that a definition describes, and holds the fleet's own code against it.

:func:`run` puts a definition through every scenario of DESIGN section 5, over real HTTP on loopback. With ``played`` it
plays another truth than the fleet believes: that is how the kit shows that it can fail. ``docs/conformance.md`` tells
what each scenario proves.
"""

from __future__ import annotations

from conformance.kit import Kit, run, run_all
from conformance.report import Report, Result, Verdict

__all__ = ["Kit", "Report", "Result", "Verdict", "run", "run_all"]
