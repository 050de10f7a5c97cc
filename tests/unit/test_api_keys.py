"""API keys: what a file may hold, whose call it is, how often, and what a change does."""

import gc
import hashlib
import logging
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

from runtime.access import bearer
from runtime.api_keys import ApiKeys
from runtime.errors import InvalidConfig, Overloaded, Unauthenticated
from tests.certificates import replace

SECRET = "sk-very-secret-and-long"
OTHER = "sk-another-secret-and-long"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def opened(file: Path, text: str, variable: str | None = None) -> ApiKeys:
    file.write_text(text)
    return ApiKeys(file=file, variable=variable)


def caller(keys: ApiKeys, key: str) -> str | None:
    try:
        return keys.principal(bearer(key))
    except Unauthenticated:
        return None


def test_a_key_and_a_hash_of_one_name_their_callers(file: Path) -> None:
    digest = hashlib.sha256(OTHER.encode()).hexdigest().upper()
    keys = opened(file, f"- {{name: ann, key: {SECRET}}}\n- {{name: bob, sha256: {digest}}}\n")
    assert caller(keys, SECRET) == "ann"
    assert caller(keys, OTHER) == "bob"
    for wrong in (digest, SECRET[:-1], f"{SECRET}x", "", "\udc80"):
        assert caller(keys, wrong) is None


@pytest.mark.parametrize(
    "metadata",
    [
        {"authorization": f"Bearer {SECRET}"},
        {"authorization": f"bearer  {SECRET} "},
        {"x-api-key": SECRET},
        {"authorization": "Basic abc", "x-api-key": SECRET},
    ],
)
def test_a_key_comes_as_a_bearer_or_as_anthropics_clients_send_it(
    file: Path, metadata: dict[str, str]
) -> None:
    assert opened(file, f"[{{name: ann, key: {SECRET}}}]").principal(metadata) == "ann"


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"authorization": SECRET},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer {SECRET},Bearer {SECRET}"},
        {"authorization": "Bearer wrong", "x-api-key": SECRET},
    ],
)
def test_a_call_that_presents_no_known_key_is_refused(file: Path, metadata: dict[str, str]) -> None:
    with pytest.raises(Unauthenticated):
        opened(file, f"[{{name: ann, key: {SECRET}}}]").principal(metadata)


def test_keys_of_the_variable_stand_beside_those_of_the_file(file: Path) -> None:
    keys = opened(file, f"[{{name: ann, key: {SECRET}}}]", f"{OTHER}, third-key-that-is-long")
    assert caller(keys, SECRET) == "ann"
    assert caller(keys, OTHER) == "key-1"
    assert caller(keys, "third-key-that-is-long") == "key-2"
    assert caller(ApiKeys(file=None, variable=OTHER), OTHER) == "key-1"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "holds no key"),
        ("[]", "holds no key"),
        (f"{SECRET}", "Expected `array`"),
        (f"- {SECRET}", "$[0]"),
        (f"- {{name: ann, key: [{SECRET}}}", "line 1 is not YAML"),
        (f"a\n  b: {SECRET}: c", "line 2 is not YAML"),
        (f"- *{SECRET}", "line 1 is not YAML"),
        (f"- !{SECRET} a", "$[0]"),
        ("- {name: ann, key: \x01}", "is not YAML"),
        (f"- {{{SECRET}: ann}}", "only name, key, sha256, requests_per_minute, max_concurrency"),
        (f"- {{key: {SECRET}}}", "`name`"),
        ("- name: ann", "entry 1: needs either key or sha256"),
        (f"- {{name: ann, key: {SECRET}, sha256: {'0' * 64}}}", "entry 1: needs either"),
        ("- {name: ann, sha256: 0123}", "$[0].sha256"),
        (f"- {{name: ann, key: {SECRET} with space}}", "$[0].key"),
        (f"- {{name: ann, key: {SECRET}, max_concurrency: 0}}", "$[0].max_concurrency"),
        (f"- {{name: ann, key: {SECRET}, requests_per_minute: many}}", "requests_per_minute"),
        (
            f"- {{name: a, key: {SECRET}}}\n- {{name: b, key: {SECRET}}}",
            "the key of 'b' stands there twice",
        ),
        (
            f"- {{name: a, key: {SECRET}}}\n- {{name: a, key: {OTHER}, max_concurrency: 1}}",
            "'a' stands there twice with different",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_its_flag_and_place_without_a_word_of_it(
    file: Path, text: str, named: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        opened(file, text)
    assert caught.value.message.startswith(f"--api-keys-file {file}: ")
    assert named in caught.value.message
    assert SECRET not in caught.value.message


def test_a_missing_file_and_a_wrong_variable_are_refused(file: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file"):
        ApiKeys(file=file, variable=None)
    for variable in ("", f"{SECRET},,{OTHER}", f"{SECRET} {OTHER}"):
        with pytest.raises(InvalidConfig, match="PENSTOCK_API_KEY") as caught:
            ApiKeys(file=None, variable=variable)
        assert SECRET not in caught.value.message


def test_keys_of_digits_are_texts(file: Path) -> None:
    assert caller(opened(file, "[{name: ann, key: 01234567890123456789}]"), "01234567890123456789")


def test_a_short_key_is_warned_of_by_its_name(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(file, "[{name: ann, key: hunter2}]")
    assert "the key of ann is short" in caplog.text
    assert "hunter2" not in caplog.text


def test_no_key_is_held_in_plain(file: Path) -> None:
    keys = opened(file, f"[{{name: ann, key: {SECRET}}}]", OTHER)
    seen: set[int] = set()
    held: list[str] = []
    left: list[object] = [keys]
    while left:
        value = left.pop()
        if id(value) in seen or isinstance(value, type | ModuleType):
            continue
        seen.add(id(value))
        if isinstance(value, str):
            held.append(value)
        code = isinstance(value, FunctionType)
        left += (value.__closure__ or ()) if code else gc.get_referents(value)  # type: ignore[attr-defined]
    assert {"ann", "key-1"} <= set(held)
    assert not {SECRET, OTHER} & set(held)


def test_a_changed_file_changes_the_keys_and_a_broken_one_does_not(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = opened(file, f"[{{name: ann, key: {SECRET}}}]")
    replace(file, f"[{{name: ann, key: {OTHER}}}]".encode())
    assert caller(keys, SECRET) is None
    assert caller(keys, OTHER) == "ann"
    replace(file, f"- {{name: ann, key: [{SECRET}}}".encode())
    for _ in range(2):
        assert caller(keys, OTHER) == "ann"
    assert caplog.text.count(str(file)) == 1
    assert SECRET not in caplog.text


def test_a_caller_has_so_many_requests_at_a_time_over_all_of_its_keys(file: Path) -> None:
    keys = opened(
        file,
        f"- {{name: ann, key: {SECRET}, max_concurrency: 2}}\n"
        f"- {{name: ann, key: {OTHER}, max_concurrency: 2}}\n"
        "- {name: bob, key: a-key-without-any-limits}\n",
    )
    keys.enter("ann")
    keys.enter("ann")
    with pytest.raises(Overloaded, match="2 requests at a time") as caught:
        keys.enter("ann")
    assert caught.value.retry_after_s == 1
    for _ in range(5):
        keys.enter("bob")
    keys.leave("ann")
    keys.enter("ann")


def test_a_caller_begins_so_many_requests_per_minute(file: Path) -> None:
    keys = opened(
        file, f"[{{name: ann, key: {SECRET}, requests_per_minute: 3, max_concurrency: 1}}]"
    )
    for _ in range(3):
        keys.enter("ann")
        with pytest.raises(Overloaded, match="at a time"):  # which takes no turn of the rate
            keys.enter("ann")
        keys.leave("ann")
    with pytest.raises(Overloaded, match="3 requests per minute") as caught:
        keys.enter("ann")
    assert caught.value.retry_after_s is not None
    assert 55 <= caught.value.retry_after_s <= 61
    keys.enter(None)
    keys.leave(None)


def test_a_change_of_the_file_keeps_what_is_counted(file: Path) -> None:
    text = "[{{name: ann, key: {}, max_concurrency: {}}}]"
    keys = opened(file, text.format(SECRET, 3))
    keys.enter("ann")
    keys.enter("ann")
    replace(file, text.format(OTHER, 2).encode())
    with pytest.raises(Overloaded):
        keys.enter("ann")
    keys.leave("ann")
    keys.enter("ann")


def test_a_withdrawn_callers_open_call_begins_nothing_new(file: Path) -> None:
    keys = opened(file, f"[{{name: ann, key: {SECRET}}}]")
    keys.enter("ann")
    replace(file, f"[{{name: bob, key: {OTHER}}}]".encode())
    with pytest.raises(Unauthenticated):
        keys.enter("ann")
    keys.leave("ann")


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="runtime")
