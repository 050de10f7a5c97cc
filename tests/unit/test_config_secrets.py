"""Secrets among the options: where they may come from, and that nothing shows them."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime.config import child_environment, option, parse_config, secret_variables
from runtime.errors import InvalidConfig

SECRET = "hush-hush"


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    token: str | None = option(None, help="the token", secret=True)
    count: int = option(1, help="how many")


def guarded(*argv: str, **environment: str) -> Guarded:
    config, _ = parse_config(Guarded, argv, prog="x", description="d", environment=environment)
    return config


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return str(path)

    return write


def test_a_secret_comes_from_a_variable_or_a_file_and_is_shown_nowhere(capsys, file):
    assert guarded(PENSTOCK_TOKEN=SECRET).token == SECRET
    assert guarded("--config", file(f"token: {SECRET}")).token == SECRET
    assert SECRET not in repr(guarded(PENSTOCK_TOKEN=SECRET))
    for argv in (["--print-config"], ["--print-config", "--config", file(f"token: {SECRET}")]):
        with pytest.raises(SystemExit):
            guarded(*argv, **({} if len(argv) > 1 else {"PENSTOCK_TOKEN": SECRET}))
    shown = capsys.readouterr().out
    assert shown.count("token: '***'  # ") == 2
    assert SECRET not in shown


@pytest.mark.parametrize("argv", [("--token", SECRET), (f"--token={SECRET}",)])
def test_a_secret_on_the_command_line_is_refused_without_repeating_it(capsys, argv):
    with pytest.raises(InvalidConfig, match="PENSTOCK_TOKEN") as caught:
        guarded(*argv)
    assert SECRET not in str(caught.value)
    with pytest.raises(SystemExit):
        guarded("--help")
    assert "--token" not in capsys.readouterr().out


def test_a_broken_file_is_not_quoted(file):
    with pytest.raises(InvalidConfig) as caught:
        guarded("--config", file(f"token: [{SECRET}\n: : {SECRET}"))
    assert SECRET not in str(caught.value)


def test_secrets_reach_a_child_by_its_environment_and_others_variables_may_be_kept_from_it(
    monkeypatch,
):
    config = guarded(PENSTOCK_TOKEN=SECRET)
    assert secret_variables(config) == {"PENSTOCK_TOKEN": SECRET}
    assert secret_variables(config, without=["token"]) == {}
    assert secret_variables(guarded()) == {}
    monkeypatch.setenv("PENSTOCK_TOKEN", SECRET)
    monkeypatch.setenv("PENSTOCK_COUNT", "2")
    assert child_environment(without=["token"]).get("PENSTOCK_TOKEN") is None
    assert child_environment(without=["token"])["PENSTOCK_COUNT"] == "2"
