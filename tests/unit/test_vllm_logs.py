"""vLLM's processes log in our form, and a failed start is one message. Needs no vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.errors import EngineFailed, InvalidConfig
from worker.vllm_failure import failed_start, refused
from worker.vllm_logs import first_cause

# A worker that configures its logs, and a process that vLLM would start: forked, or spawned with
# the file. `causes` stays open in a start that is still on its way.
PROCESS = """
import json, logging, logging.config, multiprocessing, sys, warnings
from pathlib import Path
from worker.vllm_logs import StartCauses, adopt_loggers, configure_vllm_logs, log_printed_lines

folder, log_format, state, spawned = Path(sys.argv[1]), *sys.argv[2:]
causes = StartCauses(folder)
file = configure_vllm_logs(folder, causes, log_format=log_format, level="ERROR")
if state == "started":
    causes.close()
if spawned:
    logging.root.handlers.clear()
    logging.config.dictConfig(json.loads(file.read_text()))

def engine():
    log_printed_lines()
    logging.getLogger("vllm.core").warning("hidden")
    logging.getLogger("vllm.core").error("two\\nlines")
    logging.getLogger("other").handlers[:] = [logging.StreamHandler()]
    adopt_loggers()
    logging.getLogger("other").warning("adopted")
    warnings.warn("warned")
    print("half", end="", file=sys.stderr)
    print(" printed", file=sys.stderr)
    try:
        raise ValueError("not enough memory")
    except ValueError:
        logging.getLogger("vllm.core").exception("failed")
    raise RuntimeError("the end")

process = multiprocessing.get_context("fork").Process(target=engine)
process.start()
process.join()
print(process.exitcode, causes.first() if state == "starting" else None)
"""


def run(tmp_path: Path, *args: str) -> tuple[str, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path), *args],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout.strip(), done.stderr.splitlines()


@pytest.mark.parametrize("spawned", ["", "spawned"])
def test_all_that_an_engine_process_says_is_json(tmp_path: Path, spawned: str) -> None:
    _, lines = run(tmp_path, "json", "started", spawned)
    entries = [json.loads(line) for line in lines]
    messages = [entry["message"] for entry in entries]
    assert "two\nlines" in messages
    assert "adopted" in messages
    assert "half printed" in messages
    assert any("warned" in message for message in messages)
    assert "hidden" not in messages
    (failed,) = (entry for entry in entries if entry["message"] == "failed")
    assert "ValueError: not enough memory" in failed["trace"]
    # Python prints what a process dies of.
    assert "RuntimeError: the end" in messages


def test_in_text_an_engine_process_says_it_as_the_worker_does(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "text", "started", "")
    assert any(line.endswith("ERROR   vllm.output: half printed") for line in lines)


@pytest.mark.parametrize("spawned", ["", "spawned"])
def test_a_starting_engine_keeps_its_traces_and_tells_the_first_cause(
    tmp_path: Path, spawned: str
) -> None:
    told, lines = run(tmp_path, "json", "starting", spawned)
    assert told == "1 not enough memory"
    messages = [json.loads(line)["message"] for line in lines]
    assert messages[0] == "adopted"
    assert len(messages) == 2  # and the warning


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("one line", "one line"),
        ("\n first \n second", "first"),
        ("", "ValueError"),
        (
            "1 validation error for ModelConfig\n  Value error, no such thing. [type=value_error,"
            " input_value=1]\n    For further information visit https://errors.example",
            "no such thing.",
        ),
        (
            "Error in a process:\nTraceback (most recent call last):\n  x\nKeyError: 'a'",
            "KeyError: 'a'",
        ),
    ],
)
def test_the_useful_line_of_an_exception_is_found(text: str, cause: str) -> None:
    assert first_cause(ValueError(text)) == cause


ENDED = "Engine core initialization failed. See root cause above. Failed core proc(s): {'E': %d}"


@pytest.mark.parametrize(
    ("text", "cause", "kind", "names"),
    [
        (ENDED % 1, "Available memory (1/2 GiB)", InvalidConfig, "--kv-cache-memory-bytes"),
        (ENDED % 1, "CUDA out of memory.", InvalidConfig, "--gpu-memory-utilization"),
        (ENDED % 1, "Cannot find any model weights with `x`", InvalidConfig, "model weights"),
        (ENDED % 1, "the moon is full", EngineFailed, "the moon is full"),
        (ENDED % -9, None, EngineFailed, "SIGKILL; if memory ran out"),
        (ENDED % -4, None, EngineFailed, "SIGILL"),
        ("no engine", None, EngineFailed, "no engine"),
    ],
)
def test_a_failed_start_names_its_cause_and_the_remedy(
    text: str, cause: str | None, kind: type, names: str
) -> None:
    failure = failed_start(RuntimeError(text), cause)
    assert type(failure) is kind
    assert names in failure.message


def test_a_refusal_names_the_cause_that_only_the_log_had_and_no_list_of_all_models() -> None:
    error = ValueError("Model architectures ['A'] failed. Please check the logs for more details.")
    assert "failed. (no module named x)" in refused(error, "no module named x").message
    error = ValueError("['A'] are not supported for now. Supported architectures: ['B', 'C']")
    assert refused(error, None).message.endswith("are not supported for now.")
