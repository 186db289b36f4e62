"""Gathers what is judged: the processes' witnesses, the ledger, and the database with its tokens opened."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from sqlalchemy import text

from chaos import witness
from chaos.customers import Sample
from chaos.holdings import holdings
from chaos.orders import Deed
from chaos.points import Role
from chaos.processes import Child
from chaos.scene import Scene
from chaos.stage import CALL_SECONDS, Stage
from chaos.verdict import Evidence, Flip, Loss, Presentation, Window, ill_told, taken_by_physics
from chaos.witness import Step
from providers.connections import CONNECT_SHARE
from tokenfleet.account import TRANSITIONS, EventType, Trigger
from tokenfleet_client.contract import AccountStatus

PATIENCE_SECONDS: Final = CALL_SECONDS * (1 - CONNECT_SHARE)
"""A call waits at least so long for its answer, however long its connection took."""
FREEZING_SECONDS: Final = 1.0
"""What another thread still did while the process was being stopped is as good as frozen."""
JUDGED_EVENTS: Final = frozenset({EventType.AUTHENTICATION_ERROR, EventType.REACTIVATED})

_FLIPS = text("""
    SELECT a.external_id, EXTRACT(epoch FROM e.at)::float AS at, COALESCE(e.detail->>'reason', e.code) AS reason
    FROM tokenfleet.account_events e JOIN tokenfleet.accounts a ON a.id = e.account_id
    WHERE e.kind = 'account.grant_rejected' AND e.status_to = 'needs_reauth'
""")
_HISTORY = text("""
    SELECT kind, EXTRACT(epoch FROM at)::float AS at, actor FROM tokenfleet.account_events
    WHERE account_id = :id AND at <= to_timestamp(:at) ORDER BY at DESC LIMIT 6
""")
_MOVES = text("""
    SELECT a.external_id, e.kind, e.status_from, count(*) AS times
    FROM tokenfleet.account_events e JOIN tokenfleet.accounts a ON a.id = e.account_id
    WHERE e.kind LIKE 'account.%' AND e.status_from IS NOT NULL AND e.status_from <> e.status_to
    GROUP BY 1, 2, 3
""")
_TOLD = text("""
    SELECT a.external_id, o.event_type, count(*) AS times
    FROM tokenfleet.outbox o JOIN tokenfleet.accounts a ON a.id = o.account_id
    GROUP BY 1, 2
""")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What the processes wrote down: every presentation of every refresh token, by its fingerprint."""

    tokens: Mapping[str, Sequence[Presentation]]
    last_request: Mapping[int, float]
    """When each account was asked about last."""


def read_witnesses(children: Iterable[Child], misbehaving: Sequence[tuple[float, float]] = ()) -> Recorded:
    """Read what every worker wrote down. All of them have ended.

    ``misbehaving`` is when the provider cut off its answers.
    """
    tokens: dict[str, list[Presentation]] = defaultdict(list)
    last_request: dict[int, float] = {}
    for child in children:
        if child.order.role is Role.WORKER:
            _read(child, tokens, last_request, misbehaving)
    for presentations in tokens.values():
        presentations.sort(key=lambda each: each.at)
    return Recorded(tokens, last_request)


def _read(
    child: Child,
    tokens: dict[str, list[Presentation]],
    last_request: dict[int, float],
    misbehaving: Sequence[tuple[float, float]],
) -> None:
    unsaved: dict[tuple[int, int], Presentation] = {}
    # A process that ended in good order has saved what it had, or broken its promise.
    died = child.killed or (child.ended if child.was_killed else None)
    frozen = float("-inf")
    for line in witness.read(child.witness):
        key = line.account_id, line.epoch
        match line.step:
            case Step.SENT:
                presentation = Presentation(line.account_id, child.order.number, line.at)
                tokens[line.token].append(presentation)
                unsaved[key] = presentation
                if line.at - frozen < FREEZING_SECONDS:
                    presentation.gone = line.at
                last_request[line.account_id] = max(last_request.get(line.account_id, 0.0), line.at)
            case Step.JOURNALLED | Step.COMMITTED:
                if key in unsaved:
                    unsaved.pop(key).saved = line.at
            case Step.REFUSED:
                if key in unsaved:
                    unsaved.pop(key).refused = line.at
            case Step.UNANSWERED:
                # Its own word for it counts only where it can be true: its time was over, or the provider cut its
                # answers off just then. Whoever gives up sooner, or misreads an answer, has held it.
                waited = key in unsaved and line.at - unsaved[key].at >= PATIENCE_SECONDS
                if key in unsaved and (
                    waited or any(began <= line.at <= ends for began, ends in misbehaving)
                ):
                    unsaved[key].gone = line.at
            case Step.STRUCK if child.order.deed is Deed.FREEZE:
                frozen = line.at
                for presentation in unsaved.values():
                    presentation.gone = presentation.gone or line.at
            case Step.STRUCK:
                died = line.at
            case _:
                pass
    for presentation in unsaved.values():
        presentation.gone = presentation.gone or died


def gather(
    scene: Scene,
    windows: Sequence[Window],
    samples: Sequence[Sample],
    *,
    refreshes: int,
    unsettled: int,
) -> Evidence:
    """Return the evidence of a run whose processes have all ended, after telling the ledger what died with them."""
    stage = scene.stage
    stage.learn_ids()
    names = {int(account_id): subject for subject, account_id in stage.ids.items()}
    misbehaving = [
        (each.began, each.ended + CALL_SECONDS) for each in windows if each.name.startswith("provider.")
    ]
    recorded = read_witnesses(stage.processes.children, misbehaving)
    suspects = {each.refresh_token_sha256 for each in stage.provider.violations()}
    died_with_process = [
        (names[presentations[0].account_id], token)
        for token, presentations in recorded.tokens.items()
        if taken_by_physics(presentations, held_against_us=token in suspects)
    ]
    stage.provider.declare_lost(died_with_process)

    archive = Archive(stage, recorded, windows[0].began)
    with stage.engine.connect() as connection:
        flips = [Flip(row.external_id, row.at, row.reason) for row in connection.execute(_FLIPS)]
        due = Counter[tuple[str, str]]()
        for row in connection.execute(_MOVES):
            trigger = Trigger(row.kind.removeprefix("account."))
            move = TRANSITIONS.get((AccountStatus(row.status_from), trigger))
            if move is not None and move.event in JUDGED_EVENTS:
                due[row.external_id, move.event] += row.times
        told = Counter[tuple[str, str]]()
        for row in connection.execute(_TOLD):
            if row.event_type in JUDGED_EVENTS:
                told[row.external_id, row.event_type] += row.times
    return Evidence(
        windows=windows,
        refreshes=refreshes,
        violations=[
            archive.loss(each.subject, each.refresh_token_sha256) for each in stage.provider.violations()
        ],
        strays=[archive.last(subject) for subject in strays(stage)],
        losses=[archive.loss(each.subject, each.refresh_token_sha256) for each in stage.provider.losses()],
        flips=[replace(flip, story=archive.story_of_flip(flip)) for flip in flips],
        revocations=scene.revocations,
        samples=[(sample.at, sample.lowest) for sample in samples],
        ill_told=ill_told(due, told),
        unsettled=unsettled,
    )


class Archive:
    """Looks up who did what with a refresh token."""

    def __init__(self, stage: Stage, recorded: Recorded, began: float) -> None:
        self._stage = stage
        self._recorded = recorded
        self._began = began
        self._of_account: dict[int, list[Presentation]] = defaultdict(list)
        for presentations in recorded.tokens.values():
            for each in presentations:
                self._of_account[each.account_id].append(each)

    def loss(self, subject: str, token: str) -> Loss:
        """Return what is to be said of the refresh token of that fingerprint."""
        presentations = self._recorded.tokens.get(token)
        if not presentations:
            return Loss(subject, self._began)
        rows = (self._row(each.process) for each in presentations)
        row = next((row for row in rows if row is not None), None)
        return Loss(subject, presentations[0].at, row, f"{subject}: {self._story(presentations)}")

    def last(self, subject: str) -> Loss:
        """Return what is to be said of an account by its last request."""
        presentations = sorted(self._of_account[self._stage.ids[subject]], key=lambda each: each.at)
        if not presentations:
            return Loss(subject, self._began)
        last = presentations[-1]
        return Loss(
            subject, last.at, self._row(last.process), f"{subject}: {self._story(presentations[-3:])}"
        )

    def story_of_flip(self, flip: Flip) -> str:
        """Return the latest requests about an account before it flipped, and what its history says."""
        if flip.reason == "rotation_lost":
            return ""
        presentations = sorted(self._of_account[self._stage.ids[flip.subject]], key=lambda each: each.at)
        before = [each for each in presentations if each.at <= flip.at][-4:]
        with self._stage.engine.connect() as connection:
            events = connection.execute(_HISTORY, {"id": self._stage.ids[flip.subject], "at": flip.at}).all()
        history = ", ".join(
            f"{row.kind} at {row.at - self._began:.2f} s by {row.actor}" for row in reversed(events)
        )
        return f": {self._story(before)}; history: {history}"

    def _row(self, process: int) -> str | None:
        order = self._stage.processes.children[process].order
        if order.point is None:
            return None
        return "worker.frozen" if order.deed is Deed.FREEZE else f"{order.role}.{order.point}"

    def _story(self, presentations: Sequence[Presentation]) -> str:
        return "; ".join(self._sentence(each) for each in presentations)

    def _sentence(self, each: Presentation) -> str:
        child = self._stage.processes.children[each.process]
        who = f"worker {each.process}"
        if child.order.point is not None:
            who += f" ({child.order.deed} at {child.order.point})"
        words = f"{who} asked at {each.at - self._began:.2f} s"
        if each.refused is not None:
            words += f", was refused at {each.refused - self._began:.2f} s"
        if each.gone is not None:
            words += f", was gone at {each.gone - self._began:.2f} s"
        if each.saved is not None:
            words += f", saved at {each.saved - self._began:.2f} s"
        return words


def strays(stage: Stage) -> list[str]:
    """Return the active accounts whose tokens in the database are not the live ones at the provider."""
    live = {each.subject: each for each in stage.provider.live()}
    return [
        holding.subject
        for holding in holdings(stage.engine, stage.vault)
        if not (live[holding.subject].alive and holding.has_tokens_of(live[holding.subject]))
    ]
