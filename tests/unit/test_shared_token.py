"""The fleet's token: several lines during a change, and no word of it in a message."""

from pathlib import Path

import pytest

from runtime.access import bearer
from runtime.errors import InvalidConfig, Unauthenticated
from runtime.shared_token import SharedToken
from tests.certificates import replace

OLD, NEW = "old-token-of-the-fleet", "new-token-of-the-fleet"
FLAG = "--fleet-token-file"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "token"
    made.write_text(f"{OLD}\n")
    return made


def accepts(token: SharedToken, sent: str) -> bool:
    try:
        return bool(token.principal(bearer(sent)))
    except Unauthenticated:
        return False


def test_the_first_line_is_sent_and_every_line_accepted(file: Path) -> None:
    token = SharedToken(file=file, flag=FLAG)
    assert token.metadata() == bearer(OLD)
    assert (accepts(token, OLD), accepts(token, NEW)) == (True, False)
    replace(file, f"\n{NEW}\r\n\n{OLD}\n".encode())
    assert token.metadata() == bearer(NEW)
    assert (accepts(token, OLD), accepts(token, NEW)) == (True, True)
    replace(file, NEW.encode())
    assert (accepts(token, OLD), accepts(token, NEW)) == (False, True)


def test_a_call_without_the_token_is_refused(file: Path) -> None:
    with pytest.raises(Unauthenticated):
        SharedToken(file=file, flag=FLAG).principal({})


def test_the_file_wins_over_the_variable(file: Path) -> None:
    token = SharedToken(file=file, value=NEW, flag=FLAG)
    assert token.metadata() == bearer(OLD)
    assert not accepts(token, NEW)
    assert SharedToken(file=None, value=NEW, flag=FLAG).metadata() == bearer(NEW)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"", "holds no token"),
        (b"\n \n", "holds no token"),
        (b"short-secret", "line 1: a token is at least 16"),
        (f"{OLD}\nsecret with spaces inside".encode(), "line 2: "),
        ("sécret-tokén-of-the-fleet".encode(), "line 1: "),
        (b"\xff\xfe" * 20, "is not text"),
    ],
)
def test_a_wrong_file_is_refused_by_its_flag_without_a_word_of_it(
    file: Path, text: bytes, named: str
) -> None:
    file.write_bytes(text)
    with pytest.raises(InvalidConfig, match=f"{FLAG} {file}: ") as caught:
        SharedToken(file=file, flag=FLAG)
    assert named in caught.value.message
    assert "cret" not in caught.value.message


def test_a_missing_file_and_a_short_variable_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig, match="No such file"):
        SharedToken(file=tmp_path / "nowhere", flag=FLAG)
    with pytest.raises(InvalidConfig, match="the variable for --fleet-token-file") as caught:
        SharedToken(file=None, value="hunter2", flag=FLAG)
    assert "hunter2" not in caught.value.message


def test_a_broken_change_keeps_the_token(file: Path) -> None:
    token = SharedToken(file=file, flag=FLAG)
    replace(file, b"half")
    assert accepts(token, OLD)
