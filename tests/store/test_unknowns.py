"""Answers that nobody has described: counted by their shape, bounded, and in nobody's way."""

from __future__ import annotations

from threading import Barrier, Thread

from sqlalchemy import Engine, event

from store import unknowns
from store.unknowns import MAX_PER_PROVIDER, UnknownAnswer
from tests.support.builders import column
from tokenfleet.jobs import AccountId


def _answer(code: str, *, provider: str = "acme", account: int = 1) -> UnknownAnswer:
    return UnknownAnswer(provider, code, f"400 {{{code}:word}}", AccountId(account))


def _record(engine: Engine, *answers: UnknownAnswer) -> int:
    """Record ``answers`` in one transaction; returns how many statements that took."""
    statements: list[str] = []
    with engine.begin() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: statements.append(args[2]))
        unknowns.record(connection, answers)
    return len(statements)


def test_answers_of_one_shape_are_one_row_and_one_statement(engine: Engine) -> None:
    _record(engine, _answer("odd", account=1), _answer("odd", account=2), _answer("strange"))
    assert _record(engine, *[_answer("odd", account=number) for number in range(3, 500)]) == 1
    with engine.connect() as connection:
        odd, strange = sorted(unknowns.remembered(connection), key=lambda each: each.code)
    assert (odd.code, odd.times, odd.account_id) == ("odd", 499, 499)
    assert odd.first_seen_at < odd.last_seen_at
    assert (strange.code, strange.times, strange.shape) == ("strange", 1, "400 {strange:word}")


def test_a_provider_that_invents_shapes_pushes_out_its_own_oldest_ones(engine: Engine) -> None:
    _record(engine, _answer("kept", provider="other"))
    for start in range(0, MAX_PER_PROVIDER + 100, 100):
        _record(engine, *[_answer(f"n{number:04d}") for number in range(start, start + 100)])
    with engine.connect() as connection:
        codes = {each.code for each in unknowns.remembered(connection, "acme")}
        assert len(codes) == MAX_PER_PROVIDER
        assert codes == {f"n{number:04d}" for number in range(100, MAX_PER_PROVIDER + 100)}
        assert [each.code for each in unknowns.remembered(connection, "other")] == ["kept"]
        everything = unknowns.remembered(connection)
    assert len(everything) == MAX_PER_PROVIDER + 1
    newest = [each.last_seen_at for each in everything if each.provider == "acme"]
    assert newest == sorted(newest, reverse=True)


def test_workers_that_meet_the_same_new_shapes_at_once_lose_no_count(engine: Engine) -> None:
    together = Barrier(4)
    codes = [f"c{number}" for number in range(50)]

    def work(order: list[str]) -> None:
        together.wait(30)
        for _ in range(5):
            _record(engine, *map(_answer, order))

    threads = [Thread(target=work, args=(codes[::step],)) for step in (1, -1, 1, -1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert column(engine, "SELECT DISTINCT times FROM tokenfleet.unknown_answers") == [20]
    assert column(engine, "SELECT count(*) FROM tokenfleet.unknown_answers") == [50]
