"""Facts about operating system processes: who lives, and dying together with a parent."""

import ctypes
import errno
import gc
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
"""`errno` of an open that says nothing about the file."""
_PR_SET_PDEATHSIG = 1
_STATE_FIELD, _START_FIELD = 0, 19  # in /proc/PID/stat, counted behind the command's ")"


def start_mark(pid: int) -> str | None:
    """Return what tells this process from a later one with the same pid; None if it is gone.

    A zombie counts as gone. Without /proc (macOS) the mark is "" as long as the pid exists.
    Raises OSError when this process has no file descriptor left to look with.
    """
    if not sys.platform.startswith("linux"):
        return "" if _pid_exists(pid) else None
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except ValueError:
        return None
    except OSError as error:
        if error.errno in NO_DESCRIPTORS:
            raise
        return None
    return None if fields[_STATE_FIELD] in "ZX" else fields[_START_FIELD]


def pid_place() -> str:
    """Return the scope in which this process's pid means something: boot and pid namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return os.uname().nodename


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent dies; a no-op off Linux.

    Killed, not asked to stop: whoever starts the parent again at once finds its ports free.

    Call it from the main thread right after start. Exits at once if `parent_pid`, the parent that
    was meant, is already gone. The kernel's "parent" is the thread that forked: start children
    from a thread that stays.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        os._exit(128 + signal.SIGKILL)


def end_on_sigterm() -> None:
    """Have SIGTERM end this process at once, until a handler of the ordered stop takes its place.

    For the first process of a container, to which the kernel delivers no signal that has no
    handler: a worker that loads its weights would not stop before it is killed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: os._exit(128 + number))


def settle_memory() -> None:
    """Spare the garbage collector what was made by the start: call it once, when that is over.

    What lives as long as the process is never looked at again (`gc.freeze`). Requests make and drop
    objects that reference counts free at once, so that collections find nothing nearly always: a
    young one after 10,000 new containers (CPython's 700 are some twenty tokens of work), an old one
    after 20 x 50 of those.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 50)


def favour_loop() -> None:
    """Have a thread that runs Python hand over to a waiting event loop after 0.5 ms.

    CPython's 5 ms are as long as the loop may be held up at all, and it waits for them each time it
    has looked at its sockets. Chat templates run in such a thread.
    """
    sys.setswitchinterval(0.0005)


def return_memory() -> None:
    """Give back to the system what has been freed; for after something large was made.

    glibc keeps it for later, which a process that has read a tokenizer never needs: 30 MiB for one
    of 49,000 tokens (malloc_trim(3)). Other C libraries have nothing to call.
    """
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def private_folder(prefix: str) -> Path:
    """Make a temporary folder for this process; clears those that dead processes left behind."""
    parent = Path(tempfile.gettempdir())
    for old in parent.glob(f"{prefix}-*"):
        pid = old.name.removeprefix(f"{prefix}-").partition("-")[0]
        if pid.isdigit() and start_mark(int(pid)) is None:
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{prefix}-{os.getpid()}-"))


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
