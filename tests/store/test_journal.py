"""The journal under what really happens to processes and disks: SIGKILL, full disks, torn and rotten files."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from textwrap import dedent
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from store import journal as journals
from store.answers import SavedTokens
from store.journal import Journal, JournalUnwritable, segments, summary
from store.orphans import UNBORN_SECONDS, Orphan, orphans
from store.records import Damage, frame
from tests.support.racing import race, wait_until
from tokenfleet.errors import UserError
from tokenfleet.jobs import AccountId, Epoch

MOMENT = datetime(2026, 1, 15, 12, 30, 0, 123456, tzinfo=UTC)


def record(number: int, *, size: int = 40) -> SavedTokens:
    """An answer for account ``number``; its sealed tokens are ``size`` bytes long."""
    return SavedTokens(
        account_id=AccountId(number),
        epoch=Epoch(7),
        generation=3,
        access_token=bytes([number % 256]) * size,
        refresh_token=b"sealed refresh",
        token_type="Bearer",
        scope=None,
        expires_at=MOMENT,
        obtained_at=MOMENT,
        refresh_token_expires_at=None,
        variables={"api_base": "https://eu.example"},
        next_refresh_at=MOMENT,
        job_id=UUID("00000000-0000-4000-8000-00000000000a"),
        duration_ms=200,
        activates=False,
    )


def die(journal: Journal) -> None:
    """Leave the files as a killed process does, in this process: the kernel drops its lock."""
    os.close(journal._descriptor)
    assert journal._lock is not None
    os.close(journal._lock)


def trouble_of(journal: Journal) -> str | None:
    """What keeps the journal from being written, when it is looked at now."""
    journal.check()
    return journal.trouble


def adopted(root: Path) -> Orphan:
    [orphan] = orphans(root)
    return orphan


def accounts(orphan: Orphan) -> list[int]:
    return [each.account_id for each in orphan]


# Writing and adopting


@given(
    answer=st.builds(
        SavedTokens,
        account_id=st.integers(1, 2**63 - 1),
        epoch=st.integers(1, 2**63 - 1),
        generation=st.integers(1, 2**63 - 1),
        access_token=st.binary(max_size=3000),
        refresh_token=st.none() | st.binary(max_size=3000),
        token_type=st.none() | st.text(),
        scope=st.none() | st.text(),
        expires_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        obtained_at=st.datetimes(timezones=st.just(UTC)),
        refresh_token_expires_at=st.none() | st.datetimes(timezones=st.just(UTC)),
        variables=st.dictionaries(st.text(), st.text(), max_size=3),
        next_refresh_at=st.datetimes(timezones=st.just(UTC)),
        job_id=st.uuids(),
        duration_ms=st.integers(0, 2**31 - 1),
        activates=st.booleans(),
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_answer_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, answer: SavedTokens
) -> None:
    root = tmp_path_factory.mktemp("journal")
    journal = Journal(root, "one")
    journal.append(answer)
    die(journal)

    orphan = adopted(root)
    assert list(orphan) == [answer]
    assert orphan.damage == []
    orphan.release()


def test_answers_are_replayed_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    for number in range(50):
        journal.append(record(number))
    die(journal)

    orphan = adopted(tmp_path)
    assert accounts(orphan) == list(range(50))
    orphan.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(record(1))

    paths = [journal.directory, *journal.directory.iterdir()]
    assert [path for path in paths if path.stat().st_mode & 0o077] == []
    journal.close()


def test_a_journal_in_which_all_is_settled_leaves_nothing_behind(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    segment = journal.append(record(1))
    journal.append(record(2))
    journal.settle(segment, 2)
    journal.close()

    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_is_closed_with_unsettled_answers_is_left_to_be_adopted(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.settle(journal.append(record(1)))
    journal.append(record(2))
    assert journal.unsettled() == 1
    journal.close()

    orphan = adopted(tmp_path)
    assert accounts(orphan) == [1, 2], "replaying a settled one does no harm"
    orphan.discard()


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    with pytest.raises(UserError, match="cannot be written"):
        Journal(tmp_path, "one")
    journal.close()


# Segments


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 4000)


@pytest.mark.usefixtures("small_segments")
def test_a_full_segment_is_followed_by_a_new_one_and_removed_when_all_in_it_is_settled(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, "one")
    written = [journal.append(record(number, size=500)) for number in range(20)]
    numbers = sorted(set(written))
    assert len(numbers) > 2
    assert len(segments(journal.directory)) == len(numbers)

    journal.settle(numbers[1], written.count(numbers[1]))
    journal.settle(numbers[0], written.count(numbers[0]) - 1)
    assert len(segments(journal.directory)) == len(numbers) - 1
    journal.settle(numbers[0])
    assert len(segments(journal.directory)) == len(numbers) - 2

    die(journal)
    assert accounts(adopted(tmp_path)) == list(range(written.index(numbers[2]), 20))


@pytest.mark.usefixtures("small_segments")
def test_a_segment_that_is_settled_before_it_is_full_is_removed_when_it_is_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    for number in range(40):
        journal.settle(journal.append(record(number, size=500)))

    assert len(segments(journal.directory)) == 1
    assert journal.unsettled() == 0
    journal.close()


@pytest.mark.usefixtures("small_segments")
def test_a_disk_that_refuses_a_new_segment_once_is_forgiven(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "one")
    full = -(-journals.SEGMENT_BYTES // len(frame(record(0, size=500))))
    for number in range(full):
        journal.append(record(number, size=500))
    with monkeypatch.context() as patched:
        patched.setattr(journals, "_sync_data", partial(refuse, OSError(5, "Input/output error")))
        with pytest.raises(JournalUnwritable, match="Input/output error"):
            journal.append(record(99))

    for number in range(full, full + 20):
        journal.append(record(number, size=500))
    die(journal)
    assert accounts(adopted(tmp_path)) == list(range(full + 20))


def refuse(error: OSError, _: int) -> None:
    raise error


# Death


WRITER = dedent("""
    import os, sys
    from dataclasses import replace
    from pathlib import Path
    from store.journal import Journal
    from store.records import read
    from store import journal as journals
    [seed] = read(Path(sys.argv[2]), [])
    journals.SEGMENT_BYTES = 20_000
    journal = Journal(Path(sys.argv[1]), f"writer-{os.getpid()}")
    number = 0
    while True:
        number += 1
        journal.append(replace(seed, account_id=number))
        # What was acknowledged before the kill must be there afterwards.
        os.write(1, b"%d\\n" % number)
""")


def run(program: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def seed(tmp_path: Path) -> Path:
    path = tmp_path / "seed"
    path.write_bytes(frame(record(1)))
    return path


@pytest.mark.parametrize("acknowledged", [1, 40, 500])
def test_what_was_appended_survives_kill_9_of_the_process(
    tmp_path: Path, seed: Path, acknowledged: int
) -> None:
    root = tmp_path / "journal"
    with run(WRITER, root, seed) as writer:
        assert writer.stdout is not None
        for _ in range(acknowledged):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read()
        writer.wait()

    last = acknowledged + rest.count(b"\n")
    orphan = adopted(root)
    found = accounts(orphan)
    assert found[:last] == list(range(1, last + 1))
    # The one that was being written is whole, absent, or torn where the kernel went from page to page.
    assert (len(found) - last, len(orphan.damage)) in {(0, 0), (1, 0), (0, 1)}
    orphan.discard()


def test_a_living_process_keeps_its_journal(tmp_path: Path, seed: Path) -> None:
    root = tmp_path / "journal"
    with run(WRITER, root, seed) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert list(orphans(root)) == []
        writer.send_signal(signal.SIGSTOP)
        assert list(orphans(root)) == [], "a stopped process may go on"
        writer.send_signal(signal.SIGKILL)
        writer.communicate()

    adopted(root).release()


def test_a_process_does_not_adopt_its_own_journal(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(record(1))

    assert list(orphans(tmp_path)) == []
    journal.close()


# Adoption


def test_two_adopters_never_hold_the_same_orphan(tmp_path: Path) -> None:
    for number in range(6):
        journal = Journal(tmp_path, f"dead-{number}")
        journal.append(record(number))
        die(journal)

    found = race([lambda: list(orphans(tmp_path))] * 6)

    names = [orphan.directory.name for share in found for orphan in share]
    assert sorted(names) == [f"dead-{number}" for number in range(6)]
    for share in found:
        for orphan in share:
            orphan.release()


def test_an_orphan_that_was_left_is_adopted_by_the_next_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "dead")
    journal.append(record(1))
    die(journal)
    adopted(tmp_path).release()

    assert accounts(adopted(tmp_path)) == [1]


ADOPTER = dedent("""
    import sys
    from pathlib import Path
    from store.orphans import orphans
    root, seen = Path(sys.argv[1]), []
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(200):
        for orphan in orphans(root):
            seen += [(orphan.directory.name, record.account_id) for record in orphan]
            orphan.discard()
    print(*(f"{name}:{account}" for name, account in seen))
""")


def test_processes_that_adopt_and_discard_at_once_replay_every_answer_once_and_none_fails(
    tmp_path: Path,
) -> None:
    """One removes what another one looks at: an adopter must neither fail nor hold what is gone."""
    for number in range(60):
        journal = Journal(tmp_path, f"dead-{number}")
        journal.append(record(number))
        die(journal)
    adopters = [
        subprocess.Popen(
            [sys.executable, "-c", ADOPTER, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for adopter in adopters:
        assert adopter.stdout is not None
        adopter.stdout.readline()
    answers = race([partial(adopter.communicate, "go\n", 60) for adopter in adopters])

    assert [errors for _, errors in answers] == [""] * 4
    seen = sorted(word for output, _ in answers for word in output.split())
    assert seen == sorted(f"dead-{number}:{number}" for number in range(60))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_is_won_after_the_journal_was_removed_adopts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, "dead")
    die(journal)
    first = adopted(tmp_path)
    lock = journals.lock_file

    def slow_lock(descriptor: int) -> int | None:
        # The file is open by now; its holder finishes before we ask for the lock.
        first.discard()
        return lock(descriptor)

    monkeypatch.setattr("store.orphans.lock_file", slow_lock)
    assert list(orphans(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_journal_whose_process_died_while_it_probed_the_disk_can_be_discarded(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "dead")
    journal.append(record(1))
    (journal.directory / "probe").write_bytes(bytes(100))
    die(journal)

    adopted(tmp_path).discard()

    assert list(tmp_path.iterdir()) == []


def test_the_next_adopter_clears_away_what_an_interrupted_removal_left(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "dead")
    journal.append(record(1))
    die(journal)
    journal.directory.rename(tmp_path / ".dead.done")

    assert list(orphans(tmp_path)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_was_never_born_is_cleared_away_once_nobody_can_be_making_it(tmp_path: Path) -> None:
    fresh, stillborn = tmp_path / ".fresh", tmp_path / ".stillborn"
    for directory in (fresh, stillborn):
        directory.mkdir()
        (directory / "lock").touch()
    long_ago = time.time() - 2 * UNBORN_SECONDS
    os.utime(stillborn, (long_ago, long_ago))

    assert list(orphans(tmp_path)) == []
    assert list(tmp_path.iterdir()) == [fresh]


def test_a_journal_with_an_answer_that_postgres_refuses_is_kept_for_a_person(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "dead")
    journal.append(record(1))
    die(journal)
    orphan = adopted(tmp_path)
    assert accounts(orphan) == [1]
    orphan.refuse("SQLSTATE 22021")
    orphan.discard()

    [kept] = (tmp_path / "damaged").iterdir()
    assert kept.read_bytes() == frame(record(1))
    assert list(orphans(tmp_path)) == []


def test_strange_things_in_the_journal_directory_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a directory").mkdir()
    (tmp_path / ".unborn").mkdir()

    assert list(orphans(tmp_path)) == []
    assert list(orphans(tmp_path / "absent")) == []


# Damage


def damaged(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> Orphan:
    """Five answers in one segment, whose bytes ``spoil`` has changed."""
    journal = Journal(tmp_path, "dead")
    for number in range(5):
        journal.append(record(number))
    [segment] = segments(journal.directory)
    die(journal)
    segment.write_bytes(spoil(segment.read_bytes()))
    return adopted(tmp_path)


ONE = len(frame(record(0)))


@pytest.mark.parametrize("missing", range(1, ONE, 9))
def test_a_torn_tail_is_reported_and_all_before_it_is_replayed(tmp_path: Path, missing: int) -> None:
    orphan = damaged(tmp_path, lambda content: content[:-missing])

    assert accounts(orphan) == [0, 1, 2, 3]
    [damage] = orphan.damage
    assert damage.offset == 4 * ONE
    assert "torn" in damage.reason
    orphan.release()


@pytest.mark.parametrize("position", range(0, ONE, 7))
def test_a_flipped_bit_costs_one_answer_and_not_those_behind_it(tmp_path: Path, position: int) -> None:
    def spoil(content: bytes) -> bytes:
        place = 2 * ONE + position
        return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]

    orphan = damaged(tmp_path, spoil)

    assert accounts(orphan) == [0, 1, 3, 4]
    assert [damage.offset for damage in orphan.damage] == [2 * ONE]
    orphan.release()


def test_a_tail_of_zeroes_as_a_power_cut_leaves_it_is_one_damage(tmp_path: Path) -> None:
    orphan = damaged(tmp_path, lambda content: content[: 3 * ONE] + bytes(70_000))

    assert accounts(orphan) == [0, 1, 2]
    assert len(orphan.damage) == 1
    orphan.release()


@pytest.mark.parametrize(
    "spoil", [bytes.swapcase, lambda content: os.urandom(len(content)), lambda _: b"\x00"]
)
def test_rubbish_yields_nothing_and_is_reported(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    orphan = damaged(tmp_path, spoil)

    assert accounts(orphan) == []
    assert orphan.damage
    orphan.release()


def test_damaged_segments_are_kept_for_a_person_and_the_rest_is_removed(tmp_path: Path) -> None:
    def spoil(content: bytes) -> bytes:
        return (
            content[: ONE + 20]
            + b"\xff"
            + content[ONE + 21 : 3 * ONE + 20]
            + b"\xff"
            + content[3 * ONE + 21 :]
        )

    orphan = damaged(tmp_path, spoil)
    for _ in range(2):
        assert accounts(orphan) == [0, 2, 4]
        assert len(orphan.damage) == 2, "reading again does not report again"

    orphan.discard()

    assert [path.name for path in tmp_path.iterdir()] == ["damaged"]
    [kept] = (tmp_path / "damaged").iterdir()
    assert kept.name.startswith("dead-")
    assert list(orphans(tmp_path)) == []


def test_damage_names_place_and_reason_and_shows_no_content(tmp_path: Path) -> None:
    orphan = damaged(tmp_path, lambda content: content[:-3])
    list(orphan)

    assert orphan.damage == [Damage(segments(orphan.directory)[0], 4 * ONE, "torn record")]
    orphan.release()


# Disks that refuse


FULL_DISK = dedent("""
    import os, resource, sys
    from dataclasses import replace
    from pathlib import Path
    from store.journal import Journal, JournalUnwritable
    from store.records import read
    [seed] = read(Path(sys.argv[2]), [])
    journal = Journal(Path(sys.argv[1]), "full")
    limit = 50_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    number = 0
    while True:
        number += 1
        try:
            journal.append(replace(seed, account_id=number))
        except JournalUnwritable as refusal:
            error = refusal
            break
    print(number - 1, journal.trouble, error, sep=",")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.append(replace(seed, account_id=1_000_000))
    sys.stdout.flush()
    os._exit(0)
""")


def test_a_full_disk_refuses_an_answer_loudly_and_spoils_neither_earlier_nor_later_ones(
    tmp_path: Path, seed: Path
) -> None:
    root = tmp_path / "journal"
    with run(FULL_DISK, root, seed) as writer:
        output, errors = writer.communicate(timeout=60)
    assert errors == b""
    fitted, trouble, reason = output.decode().strip().split(",")
    assert reason in {"short write", "File too large"}
    assert trouble == reason, "no new request may start"

    orphan = adopted(root)
    assert accounts(orphan) == [*range(1, int(fitted) + 1), 1_000_000]
    assert orphan.damage == []
    orphan.release()


@pytest.mark.skipif(sys.platform != "linux", reason="tmpfs is mounted by Linux")
def test_a_journal_on_a_full_file_system_is_not_writable_and_is_so_again_when_there_is_room(
    tmp_path: Path,
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a file system is not permitted here")
    try:
        journal = Journal(small, "one")
        ballast = small / "ballast"
        with pytest.raises(OSError, match="No space left"):
            ballast.write_bytes(bytes(100_000))
        with pytest.raises(JournalUnwritable, match=r"No space left|short write"):
            journal.append(record(1, size=5000))
        assert "No space left" in (trouble_of(journal) or "")

        ballast.unlink()

        assert trouble_of(journal) is None
        journal.append(record(2))
        die(journal)
        orphan = adopted(small)
        assert accounts(orphan) == [2]
        orphan.release()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_directory_that_cannot_be_written_is_one_sentence_that_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("a file where the directory should be")

    with pytest.raises(UserError) as refused:
        Journal(tmp_path / "journal", "one")

    message = str(refused.value)
    assert "\n" not in message
    assert str(tmp_path / "journal") in message
    assert "TOKENFLEET_JOURNAL_DIR" in message


def test_a_directory_that_somebody_removed_is_noticed_at_the_next_sync_and_made_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "one")
    journal.append(record(1))
    journal.sync()
    shutil.rmtree(journal.directory)

    with pytest.raises(JournalUnwritable, match="removed"):
        journal.sync()
    assert "removed" in (journal.trouble or "")
    assert trouble_of(journal) is None
    journal.append(record(2))
    journal.sync()
    assert list(orphans(tmp_path)) == [], "nobody adopts it while its process lives"
    die(journal)
    orphan = adopted(tmp_path)
    assert accounts(orphan) == [2]
    orphan.release()


def test_a_removed_directory_that_cannot_be_made_anew_is_trouble_until_it_can(tmp_path: Path) -> None:
    root = tmp_path / "journal"
    journal = Journal(root, "one")
    shutil.rmtree(root)
    root.touch()
    assert "Not a directory" in (trouble_of(journal) or "")
    root.unlink()
    assert trouble_of(journal) is None
    journal.close()
    assert list(root.iterdir()) == []


def test_appending_and_syncing_on_two_threads_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENT_BYTES", 20_000)
    journal = Journal(tmp_path, "one")
    finished: list[bool] = []

    def append() -> None:
        for number in range(2000):
            journal.append(record(number))
        finished.append(True)

    def sync() -> None:
        while not finished:
            journal.sync()

    race([append, sync])
    die(journal)
    orphan = adopted(tmp_path)
    assert accounts(orphan) == list(range(2000))
    orphan.release()


def test_an_append_costs_microseconds(tmp_path: Path) -> None:
    """The event loop appends between an answer and everything else; measured at 10 to 20 microseconds."""
    journal = Journal(tmp_path, "one")
    answer = record(1, size=1200)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(20):
            journal.append(answer)
        best = min(best, (time.perf_counter() - began) / 20)

    assert best < 0.0005
    die(journal)


def test_the_summary_tells_how_much_each_journal_holds(tmp_path: Path) -> None:
    assert summary(tmp_path / "absent") == {}
    journal = Journal(tmp_path, "one")
    for number in range(3):
        journal.append(replace(record(number), account_id=AccountId(1)))

    assert summary(tmp_path) == {"one": sum(path.stat().st_size for path in segments(journal.directory))}
    assert summary(tmp_path)["one"] > 0
    journal.settle(journals.Segment(1), 3)
    journal.close()
    wait_until(lambda: summary(tmp_path) == {}, "removal")
