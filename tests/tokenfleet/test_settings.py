"""Settings: every mistake at once, each by the name of its variable, and nothing secret in print."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenfleet.errors import SettingsError, UserError
from tokenfleet.settings import PREFIX, Settings, Tunables, redact_url
from tokenfleet_client.envelope import KeyEncryptionKey, Ring

ACCESS_KEY = f"access-1:{base64.b64encode(bytes(range(32))).decode()}"
REFRESH_KEY = f"refresh-1:{base64.b64encode(bytes(range(32, 64))).decode()}"
OLDER_KEY = f"access-0:{base64.b64encode(bytes(range(64, 96))).decode()}"


@pytest.fixture
def sound(tmp_path: Path) -> dict[str, str]:
    """The least that makes usable settings."""
    return {
        "TOKENFLEET_DATABASE_URL": "postgresql://reader@localhost/tokenfleet",
        "TOKENFLEET_REDIS_URL": "redis://localhost:6379/0",
        "TOKENFLEET_HOME": str(tmp_path),
    }


def problems_of(environ: Mapping[str, str]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as refusal:
        Settings.from_environ(environ)
    return refusal.value.problems


def problem_of(environ: Mapping[str, str]) -> str:
    problems = problems_of(environ)
    assert len(problems) == 1, problems
    return problems[0]


def write_keys(path: Path, content: object, *, mode: int = 0o600) -> Path:
    path.touch(mode=0o600)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return path


# The whole


def test_a_sound_environment_is_read(sound: dict[str, str], tmp_path: Path) -> None:
    settings = Settings.from_environ(sound)
    assert settings.database_url == "postgresql+psycopg://reader@localhost/tokenfleet"
    assert settings.broker_url == settings.redis_url == "redis://localhost:6379/0"
    assert settings.home == tmp_path
    assert settings.journal_dir == tmp_path / "journal"
    assert settings.providers_dir is None
    assert settings.tunables == Tunables()


def test_the_common_names_are_understood_and_ours_win(sound: dict[str, str]) -> None:
    common = {
        "DATABASE_URL": "postgres://elsewhere/one",
        "REDIS_URL": "redis://elsewhere:6379/1",
        "TOKENFLEET_HOME": sound["TOKENFLEET_HOME"],
    }
    settings = Settings.from_environ(common)
    assert settings.database_url == "postgresql+psycopg://elsewhere/one"
    assert settings.redis_url == "redis://elsewhere:6379/1"
    settings = Settings.from_environ(common | sound)
    assert settings.database_url == "postgresql+psycopg://reader@localhost/tokenfleet"


def test_an_empty_environment_is_told_what_is_missing(tmp_path: Path) -> None:
    problems = problems_of({"TOKENFLEET_HOME": str(tmp_path)})
    assert [problem.split()[0] for problem in problems] == ["TOKENFLEET_DATABASE_URL", "TOKENFLEET_REDIS_URL"]
    assert "tokenfleet up" in problems[0]


def test_every_problem_is_reported_at_once_by_the_name_of_its_variable(tmp_path: Path) -> None:
    wrong = {
        "TOKENFLEET_DATABASE_URL": "mysql://localhost/tokenfleet",
        "TOKENFLEET_REDIS_URL": "http://localhost",
        "TOKENFLEET_BROKER_URL": "sqs://localhost",
        "TOKENFLEET_PROVIDERS_DIR": str(tmp_path / "absent"),
        "TOKENFLEET_KEYS_FILE": str(tmp_path / "absent.json"),
        "TOKENFLEET_ACCESS_KEYS": "nonsense",
        "TOKENFLEET_HTTP_TIMEOUT_SECONDS": "soon",
        "TOKENFLEET_WORKER_THREADS": "0",
        "TOKENFLEET_LOG_LEVEL": "loud",
        "TOKENFLEET_METRICS_PORT": "70000",
        "TOKENFLEET_ALLOW_HTTP_PROVIDERS": "perhaps",
        "TOKENFLEET_HOME": str(tmp_path),
    }
    problems = problems_of(wrong)
    for name in wrong.keys() - {"TOKENFLEET_HOME", "TOKENFLEET_ACCESS_KEYS"}:
        assert [problem for problem in problems if problem.startswith(name)], name
    assert [problem for problem in problems if problem.startswith("access key ring")]
    assert len(problems) == len(wrong) - 1


def test_the_message_of_a_settings_error_is_one_line_for_each_problem(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        Settings.from_environ({"TOKENFLEET_HOME": str(tmp_path)})
    assert isinstance(refusal.value, SettingsError)
    assert str(refusal.value).splitlines() == list(refusal.value.problems)


def test_an_account_without_a_home_directory_is_told_to_name_one(sound: dict[str, str]) -> None:
    problem = problem_of(sound | {"TOKENFLEET_HOME": "~an-account-that-does-not-exist/tokenfleet"})
    assert problem.startswith("TOKENFLEET_HOME")


def test_a_tilde_in_a_path_means_the_home_directory(sound: dict[str, str]) -> None:
    settings = Settings.from_environ(sound | {"TOKENFLEET_JOURNAL_DIR": "~/journal"})
    assert settings.journal_dir == Path("~/journal").expanduser()


@pytest.mark.parametrize("value", ["file", "absent"])
def test_a_providers_directory_that_is_none_is_reported(
    sound: dict[str, str], tmp_path: Path, value: str
) -> None:
    (tmp_path / "file").touch()
    problem = problem_of(sound | {"TOKENFLEET_PROVIDERS_DIR": str(tmp_path / value)})
    assert problem.startswith("TOKENFLEET_PROVIDERS_DIR")
    assert "not a directory" in problem


# URLs


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_database_url_is_read_for_the_one_driver_we_use(sound: dict[str, str], scheme: str) -> None:
    url = f"{scheme}://user:word@localhost:5432/tokenfleet?sslmode=require"
    settings = Settings.from_environ(sound | {"TOKENFLEET_DATABASE_URL": url})
    assert settings.database_url == (
        "postgresql+psycopg://user:word@localhost:5432/tokenfleet?sslmode=require"
    )


@pytest.mark.parametrize(
    "url", ["mysql://localhost/x", "postgresql+asyncpg://localhost/x", "sqlite:///x", "postgresql:x", "://"]
)
def test_another_database_is_refused(sound: dict[str, str], url: str) -> None:
    problem = problem_of(sound | {"TOKENFLEET_DATABASE_URL": url})
    assert problem.startswith("TOKENFLEET_DATABASE_URL")
    assert "postgresql://" in problem


@pytest.mark.parametrize("url", ["redis://localhost/1", "rediss://localhost:6380/0", "redis://[::1]:6379/0"])
def test_a_redis_url_serves_as_the_brokers_too(sound: dict[str, str], url: str) -> None:
    settings = Settings.from_environ(sound | {"TOKENFLEET_REDIS_URL": url})
    assert settings.redis_url == settings.broker_url == url


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis:localhost", "amqp://localhost"])
def test_another_lease_server_is_refused(sound: dict[str, str], url: str) -> None:
    problem = problem_of(sound | {"TOKENFLEET_REDIS_URL": url})
    assert problem.startswith("TOKENFLEET_REDIS_URL")
    assert "redis://" in problem


@pytest.mark.parametrize("url", ["amqp://localhost//", "amqps://localhost/", "redis://localhost/2"])
def test_the_broker_may_be_another_server(sound: dict[str, str], url: str) -> None:
    settings = Settings.from_environ(sound | {"TOKENFLEET_BROKER_URL": url})
    assert settings.broker_url == url
    assert settings.redis_url == sound["TOKENFLEET_REDIS_URL"]


def test_redis_by_socket_needs_a_broker_of_its_own(sound: dict[str, str]) -> None:
    by_socket = sound | {"TOKENFLEET_REDIS_URL": "unix:///run/redis.sock"}
    problem = problem_of(by_socket)
    assert problem.startswith("TOKENFLEET_BROKER_URL")
    settings = Settings.from_environ(by_socket | {"TOKENFLEET_BROKER_URL": "amqp://localhost//"})
    assert settings.redis_url == "unix:///run/redis.sock"


@pytest.mark.parametrize("name", ["TOKENFLEET_DATABASE_URL", "TOKENFLEET_REDIS_URL", "TOKENFLEET_BROKER_URL"])
@pytest.mark.parametrize(
    "place", ["[::1", "host:port/0", "host:70000/0", "user:planted#word@host/0", "user:planted/word@host/0"]
)
def test_a_url_that_cannot_be_taken_apart_is_reported_without_its_password(
    sound: dict[str, str], name: str, place: str
) -> None:
    scheme = "postgresql" if "DATABASE" in name else "redis"
    problem = problem_of(sound | {name: f"{scheme}://{place}"})
    assert problem.startswith(name)
    assert "planted" not in problem


# Numbers and words


@pytest.mark.parametrize("name", sorted(Tunables.model_fields))
def test_every_tunable_is_read_from_its_variable(sound: dict[str, str], name: str) -> None:
    default = getattr(Tunables(), name)
    words = {"log_level": "debug", "log_format": "console"}
    if isinstance(default, bool):
        changed = "true"
    elif isinstance(default, str):
        changed = words.get(name, "example")
    else:
        changed = str(default + 1 if isinstance(default, int) else default * 1.01)
    settings = Settings.from_environ(sound | {PREFIX + name.upper(): changed})
    assert str(getattr(settings.tunables, name)).lower() == changed


@pytest.mark.parametrize("name", sorted(Tunables.model_fields))
def test_an_empty_tunable_is_an_absent_one(sound: dict[str, str], name: str) -> None:
    assert Settings.from_environ(sound | {PREFIX + name.upper(): ""}).tunables == Tunables()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "1e300", "soon"])
@pytest.mark.parametrize(
    "name", sorted(name for name, field in Tunables.model_fields.items() if field.annotation in {int, float})
)
def test_a_number_that_is_none_is_reported_by_name(sound: dict[str, str], name: str, value: str) -> None:
    variable = PREFIX + name.upper()
    assert problem_of(sound | {variable: value}).startswith(f"{variable}: ")


@pytest.mark.parametrize(
    ("environ", "lower", "upper"),
    [
        pytest.param({"HTTP_TIMEOUT": "13"}, "twice HTTP_TIMEOUT", "LEASE", id="call and replay, lease"),
        pytest.param({"LEASE": "24"}, "twice HTTP_TIMEOUT", "LEASE", id="equal is not less"),
        pytest.param({"LEASE": "31"}, "LEASE", "CLAIM", id="lease, claim"),
        pytest.param({"CLAIM": "301"}, "CLAIM", "VISIBILITY_TIMEOUT", id="claim, visibility timeout"),
    ],
)
def test_every_rung_of_the_time_ladder_is_checked(
    sound: dict[str, str], environ: dict[str, str], lower: str, upper: str
) -> None:
    problem = problem_of(sound | {f"{PREFIX}{name}_SECONDS": value for name, value in environ.items()})
    lower = lower.replace("HTTP", f"{PREFIX}HTTP") if "HTTP" in lower else PREFIX + lower
    assert problem.startswith(f"{lower}_SECONDS (")
    assert f"must be less than {PREFIX}{upper}_SECONDS (" in problem


def test_two_broken_rungs_are_two_problems(sound: dict[str, str]) -> None:
    problems = problems_of(
        sound | {"TOKENFLEET_HTTP_TIMEOUT_SECONDS": "20", "TOKENFLEET_CLAIM_SECONDS": "400"}
    )
    assert len(problems) == 2


def test_the_defaults_are_a_ladder(sound: dict[str, str]) -> None:
    tunables = Settings.from_environ(sound).tunables
    assert (
        2 * tunables.http_timeout_seconds
        < tunables.lease_seconds
        < tunables.claim_seconds
        < tunables.visibility_timeout_seconds
    )


# Key rings


def test_keys_are_read_from_the_home_directory(sound: dict[str, str], tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {"access": [ACCESS_KEY, OLDER_KEY], "refresh": [REFRESH_KEY]})
    settings = Settings.from_environ(sound)
    assert list(settings.access_ring.keys) == ["access-1", "access-0"]
    assert settings.access_ring.primary == KeyEncryptionKey.parse(ACCESS_KEY)
    assert settings.refresh_ring.primary == KeyEncryptionKey.parse(REFRESH_KEY)
    assert settings.refresh_ring.ring is Ring.REFRESH


def test_a_process_without_keys_has_empty_rings(sound: dict[str, str]) -> None:
    settings = Settings.from_environ(sound)
    assert settings.access_ring.primary is None
    assert dict(settings.refresh_ring.keys) == {}


def test_a_named_key_file_is_read_instead(sound: dict[str, str], tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {"access": [OLDER_KEY]})
    named = write_keys(tmp_path / "other.json", {"access": [ACCESS_KEY], "refresh": [REFRESH_KEY]})
    settings = Settings.from_environ(sound | {"TOKENFLEET_KEYS_FILE": str(named)})
    assert list(settings.access_ring.keys) == ["access-1"]


def test_keys_in_the_environment_win_ring_by_ring(sound: dict[str, str], tmp_path: Path) -> None:
    write_keys(tmp_path / "keys.json", {"access": [OLDER_KEY], "refresh": [REFRESH_KEY]})
    settings = Settings.from_environ(sound | {"TOKENFLEET_ACCESS_KEYS": f"{ACCESS_KEY},{OLDER_KEY}"})
    assert list(settings.access_ring.keys) == ["access-1", "access-0"]
    assert list(settings.refresh_ring.keys) == ["refresh-1"]


def test_a_reader_may_hold_the_access_ring_alone(sound: dict[str, str]) -> None:
    settings = Settings.from_environ(sound | {"TOKENFLEET_ACCESS_KEYS": ACCESS_KEY})
    assert settings.access_ring.primary is not None
    assert settings.refresh_ring.primary is None


def test_a_named_key_file_that_is_missing_is_reported(sound: dict[str, str], tmp_path: Path) -> None:
    problem = problem_of(sound | {"TOKENFLEET_KEYS_FILE": str(tmp_path / "absent.json")})
    assert problem.startswith("TOKENFLEET_KEYS_FILE")
    assert "does not exist" in problem
    assert "tokenfleet keys generate" in problem


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o777])
def test_a_key_file_that_others_can_read_is_reported(
    sound: dict[str, str], tmp_path: Path, mode: int
) -> None:
    path = write_keys(tmp_path / "keys.json", {"access": [ACCESS_KEY], "refresh": [REFRESH_KEY]}, mode=mode)
    assert problem_of(sound) == f"{path} can be read by others: run 'chmod 600 {path}'"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_key_file_of_ones_own_is_accepted(sound: dict[str, str], tmp_path: Path, mode: int) -> None:
    write_keys(tmp_path / "keys.json", {"access": [ACCESS_KEY], "refresh": [REFRESH_KEY]}, mode=mode)
    assert Settings.from_environ(sound).access_ring.primary is not None


@pytest.mark.parametrize(
    "content",
    [
        pytest.param("", id="empty"),
        pytest.param("{", id="cut off"),
        pytest.param([], id="a list"),
        pytest.param("planted-value", id="text"),
        pytest.param({"access": ACCESS_KEY, "refresh": [REFRESH_KEY]}, id="a key instead of a list"),
        pytest.param({"access": None, "refresh": [REFRESH_KEY]}, id="null instead of a list"),
        pytest.param({"access": {"access-1": ACCESS_KEY}}, id="an object instead of a list"),
        pytest.param({"access": [[ACCESS_KEY]]}, id="a list within the list"),
        pytest.param("\udcff\udcfe", id="not UTF-8"),
    ],
)
def test_a_malformed_key_file_is_one_problem_that_shows_nothing_of_it(
    sound: dict[str, str], tmp_path: Path, content: object
) -> None:
    path = tmp_path / "keys.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.touch(mode=0o600)
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    problem = problem_of(sound)
    assert problem.startswith(f"{path} is not a readable key file")
    assert "planted" not in problem
    assert ACCESS_KEY.partition(":")[2][:10] not in problem


def test_a_directory_in_place_of_the_key_file_is_reported(sound: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "keys.json").mkdir(mode=0o700)
    assert "is not a readable key file" in problem_of(sound)


def test_a_malformed_key_is_reported_by_ring_and_never_repeated(
    sound: dict[str, str], tmp_path: Path
) -> None:
    short = f"access-1:{base64.b64encode(b'planted-value').decode()}"
    write_keys(tmp_path / "keys.json", {"access": [short], "refresh": ["planted-value"]})
    problems = problems_of(sound)
    assert [problem.partition(":")[0] for problem in problems] == ["access key ring", "refresh key ring"]
    assert "'access-1' has 13 bytes" in problems[0]
    assert not [problem for problem in problems if "planted" in problem or short[9:] in problem]


def test_two_keys_of_one_name_are_reported(sound: dict[str, str]) -> None:
    twin = f"access-1:{OLDER_KEY.partition(':')[2]}"
    problem = problem_of(sound | {"TOKENFLEET_ACCESS_KEYS": f"{ACCESS_KEY},{twin}"})
    assert problem.startswith("access key ring")
    assert "'access-1'" in problem


# In print

PLANTED = {
    "TOKENFLEET_DATABASE_URL": "postgresql://user:planted-1@localhost/tokenfleet?password=planted-2",
    "TOKENFLEET_REDIS_URL": "redis://:planted-3@localhost:6379/0",
    "TOKENFLEET_BROKER_URL": "amqp://user:planted-4@localhost//",
    "TOKENFLEET_ACCESS_KEYS": ACCESS_KEY,
    "TOKENFLEET_REFRESH_KEYS": REFRESH_KEY,
}


def test_printed_settings_show_no_password_and_no_key(sound: dict[str, str]) -> None:
    settings = Settings.from_environ(sound | PLANTED)
    described = settings.describe()
    for text in (repr(settings), str(settings), json.dumps(described)):
        assert "planted" not in text
        assert ACCESS_KEY.partition(":")[2][:12] not in text
        assert REFRESH_KEY.partition(":")[2][:12] not in text
    assert described["database"] == "postgresql://user:[secret]@localhost/tokenfleet"
    assert described["redis"] == "redis://:[secret]@localhost:6379/0"
    assert described["access ring"] == "access-1"


def test_a_refusal_shows_no_password_either(sound: dict[str, str]) -> None:
    wrong = {
        "TOKENFLEET_DATABASE_URL": "mysql://user:planted-1@localhost/x",
        "TOKENFLEET_REDIS_URL": "http://user:planted-2@localhost",
        "TOKENFLEET_WORKER_THREADS": "planted-3",
    }
    problems = problems_of(sound | wrong)
    assert len(problems) == 3
    assert "planted" not in "".join(problems)


def test_a_url_without_credentials_is_shown_whole() -> None:
    assert redact_url("redis://localhost:6379/0") == "redis://localhost:6379/0"
    assert redact_url("unix:///run/redis.sock") == "unix:///run/redis.sock"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user:planted@host/name",
        "postgresql://user:planted#word@host/name",
        "postgresql://user:12#planted@host/name",
        "postgresql://user:12/planted@host/name",
        "postgresql://user:12?planted@host/name",
        "postgresql://user:pla@nted@host/name?password=planted",
        "postgresql:///name?host=/run&password=planted",
        "redis://:planted@host",
        "redis://:planted@[::1",
        "redis://user:planted",
        "user:planted@host",
    ],
)
def test_no_password_survives_redaction(url: str) -> None:
    shown = redact_url(url)
    assert "nted" not in shown
    assert "word" not in shown


@given(password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8).map("~{}~".format))
def test_no_password_survives_redaction_however_it_is_spelled(password: str) -> None:
    assert password not in redact_url(f"postgresql://user:{password}@host/name")


def test_a_mistyped_setting_is_named_with_the_right_one() -> None:
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ({"TOKENFLEET_CLAIM_SECOND": "5"})
    assert "TOKENFLEET_CLAIM_SECOND is not a setting: did you mean TOKENFLEET_CLAIM_SECONDS?" in (
        refused.value.problems
    )


def test_one_key_in_both_rings_is_refused_without_repeating_it() -> None:
    key = KeyEncryptionKey.generate("shared").export()
    with pytest.raises(SettingsError) as refused:
        Settings.from_environ({"TOKENFLEET_ACCESS_KEYS": key, "TOKENFLEET_REFRESH_KEYS": key})
    [problem] = [problem for problem in refused.value.problems if "also in the refresh ring" in problem]
    assert "'shared'" in problem
    assert key.partition(":")[2] not in problem
