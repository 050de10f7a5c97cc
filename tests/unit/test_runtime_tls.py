"""TLS files: what is refused at start, by which name, and what a change does while running."""

import logging
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from runtime.errors import InvalidConfig
from runtime.reloading import Reloading
from runtime.tls import ClientTls, ServerTls
from tests.certificates import Authority, replace


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "one")


def refusal(tls: ServerTls | ClientTls) -> InvalidConfig:
    with pytest.raises(InvalidConfig) as caught:
        tls.open()
    return caught.value


@pytest.mark.parametrize(
    ("given", "flag", "lacking"),
    [
        ("cert", "--tls-cert", "--tls-key"),
        ("key", "--tls-key", "--tls-cert"),
        ("client_ca", "--tls-client-ca", "--tls-cert"),
    ],
)
def test_half_of_a_pair_is_refused_by_its_flag(given: str, flag: str, lacking: str) -> None:
    files = {name: Path("x.pem") for name in [given]}
    with pytest.raises(InvalidConfig, match=f"{flag} needs {lacking}") as caught:
        ServerTls(**({"cert": None, "key": None} | files))  # type: ignore[arg-type]
    assert caught.value.param == f"tls_{given}"


def test_a_clients_flags_begin_as_it_is_told() -> None:
    with pytest.raises(InvalidConfig, match="--worker-tls-key needs --worker-tls-cert"):
        ClientTls(key=Path("x"), flags="worker-tls")
    error = refusal(ClientTls(ca=Path("no-such-file"), flags="worker-tls"))
    assert "--worker-tls-ca no-such-file: No such file" in error.message
    assert error.param == "worker_tls_ca"


@pytest.mark.parametrize("missing", ["cert", "key"])
def test_a_missing_file_is_named_with_its_flag(authority: Authority, missing: str) -> None:
    tls, files = authority.server()
    lost: Path = getattr(files, missing)
    lost.unlink()
    assert refusal(tls).message == f"--tls-{missing} {lost}: No such file or directory"


def test_files_that_are_no_pem_are_named_with_their_flag(authority: Authority) -> None:
    tls, files = authority.server(client_ca=authority.file)
    authority.file.write_text("nothing")
    assert f"--tls-client-ca {authority.file}: holds no cert" in refusal(tls).message
    files.key.write_text("nothing")
    assert f"--tls-key {files.key}: holds no private key" in refusal(tls).message
    files.cert.write_text("nothing")
    assert f"--tls-cert {files.cert}: holds no cert" in refusal(tls).message


def test_a_key_of_another_certificate_is_named(authority: Authority) -> None:
    tls, files = authority.server()
    other = authority.identity("other")
    replace(files.key, other.key.read_bytes())
    assert f"--tls-key {files.key}: does not belong" in refusal(tls).message


def test_an_encrypted_key_is_refused_instead_of_asking_for_a_password(
    authority: Authority,
) -> None:
    tls, files = authority.server()
    key = load_pem_private_key(files.key.read_bytes(), None)
    replace(
        files.key,
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
    )
    assert "is encrypted" in refusal(tls).message


def test_a_key_is_in_no_text_about_the_files(authority: Authority) -> None:
    tls, _ = authority.server()
    assert "PRIVATE KEY" not in repr(tls.open().current)
    client, _ = authority.client()
    assert "PRIVATE KEY" not in repr(client.open().current)


def test_changed_files_are_read_again(authority: Authority) -> None:
    tls, files = authority.server()
    identity = tls.open()
    before = identity.current
    assert identity.current is before
    files.renew(authority)
    assert identity.current.cert == files.cert.read_bytes() != before.cert
    assert identity.current is identity.current


def test_a_broken_change_keeps_the_old_files_and_is_logged_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    tls, files = authority.server()
    identity = tls.open()
    before = identity.current
    whole = files.cert.read_bytes()
    with caplog.at_level(logging.INFO, logger="runtime"):
        files.cert.write_bytes(whole[: len(whole) // 2])
        for _ in range(3):
            assert identity.current is before
        os.utime(files.cert, (1, 1))
        assert identity.current is before
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert str(files.cert) in caplog.text
        files.renew(authority)
        assert identity.current.cert == files.cert.read_bytes()
    assert caplog.records[-1].getMessage().startswith("read again: ")


def test_a_file_that_is_gone_for_a_moment_changes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("a")

    def load() -> str:
        try:
            return file.read_text()
        except OSError:
            raise InvalidConfig("gone") from None

    value = Reloading([file], load)
    file.unlink()
    assert value.current == "a"
    file.write_text("b")
    assert value.current == "b"
