"""The provider's definite word on a grant, on its way to Postgres."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from tokenfleet.jobs import AccountId, Epoch


@dataclass(frozen=True, slots=True)
class Rejection:
    """The provider's definite word on the grant that ``generation`` held.

    ``explained``: a process of ours died with the answer to the request before this one, so the loss is ours and
    known one by one (see ``store.guard``). ``after_success``: since the last rejection of this app, this process has
    had a success of it.
    """

    account_id: AccountId
    epoch: Epoch
    generation: int
    reason: str
    code: str
    job_id: UUID
    duration_ms: int
    explained: bool = False
    after_success: bool = False
