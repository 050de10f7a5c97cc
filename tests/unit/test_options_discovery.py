"""The options of discovery: what fits together, and what they mean."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.config import parse_config
from runtime.errors import InvalidConfig
from runtime.options_discovery import DiscoveryOptions
from runtime.tls import ClientTls


@dataclass(frozen=True, kw_only=True)
class Config(DiscoveryOptions):
    def __post_init__(self) -> None:
        self.check_discovery()


def parsed(*argv: str, **environment: str) -> Config:
    config, _ = parse_config(Config, argv, prog="x", description="d", environment=environment)
    return config


def test_by_default_etcd_is_on_this_machine_without_tls_or_login():
    config = parsed("--discovery=etcd")
    assert config.etcd_addresses == ("127.0.0.1:2379",)
    assert (config.etcd_tls, config.etcd_user, config.etcd_prefix) == (None, None, "/penstock")


@pytest.mark.parametrize(
    "argv",
    [
        ("--etcd-endpoints=a:1,b.c:2,[::1]:3",),
        ("--etcd-endpoints=a:1", "--etcd-endpoints=http://b.c:2/", "--etcd-endpoints=[::1]:3,a:1"),
    ],
)
def test_endpoints_may_be_repeated_or_joined_by_commas(argv):
    assert parsed(*argv).etcd_addresses == ("a:1", "b.c:2", "[::1]:3")


def test_endpoints_come_from_a_variable_too():
    assert parsed(PENSTOCK_ETCD_ENDPOINTS="a:1,b:2").etcd_addresses == ("a:1", "b:2")


@pytest.mark.parametrize("bad", ["a", "a:", "ftp://a:1", "a:1,", "a:1;b:2", "http://a:1/x"])
def test_what_is_no_endpoint_is_refused(bad):
    with pytest.raises(InvalidConfig, match="HOST:PORT"):
        parsed(f"--etcd-endpoints={bad}")


@pytest.mark.parametrize("bad", ["penstock", "/", "/a/", "/a b", "/a//b"])
def test_what_is_no_prefix_is_refused(bad):
    with pytest.raises(InvalidConfig, match="--etcd-prefix"):
        parsed(f"--etcd-prefix={bad}")


def test_https_or_an_authority_means_tls():
    public, own = ClientTls(flags="etcd-tls"), ClientTls(ca=Path("/ca"), flags="etcd-tls")
    assert parsed("--etcd-endpoints=https://a:1").etcd_tls == public
    assert parsed("--etcd-endpoints=a:1", "--etcd-tls-ca=/ca").etcd_tls == own
    assert parsed("--etcd-endpoints=http://a:1").etcd_tls is None


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--etcd-endpoints=http://a:1,https://b:2",), "--etcd-endpoints"),
        (("--etcd-endpoints=http://a:1", "--etcd-tls-ca=/ca"), "--etcd-endpoints"),
        (("--etcd-tls-cert=/c",), "--etcd-tls-key"),
        (("--etcd-user=me",), "--etcd-password-file"),
        (("--etcd-password-file=/p",), "--etcd-user"),
        (("--etcd-lease-ttl=1",), "--etcd-lease-ttl"),
    ],
)
def test_what_does_not_fit_together_is_refused_by_name(argv, named):
    with pytest.raises(InvalidConfig, match=named):
        parsed(*argv)


def test_a_password_is_no_flag_and_is_shown_nowhere():
    config = parsed("--etcd-user=me", PENSTOCK_ETCD_PASSWORD="hush")
    assert config.etcd_password == "hush"
    assert "hush" not in repr(config)
    with pytest.raises(InvalidConfig, match="PENSTOCK_ETCD_PASSWORD"):
        parsed("--etcd-user=me", "--etcd-password=hush")
