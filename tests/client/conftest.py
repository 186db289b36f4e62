"""Property tests are about truth, not about speed: on a busy machine one example may take its time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")
