"""A folder that one process at a time writes, on all machines that share it.

The lock is a file, made by O_EXCL, which also NFS makes once only. Its owner touches it every few seconds: of a process
of another machine nothing else tells whether it is still there. Clocks of machines are never compared.
"""

from __future__ import annotations

import fcntl
import getpass
import json
import os
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import BinaryIO

from steelgen.errors import InputError
from steelgen.files import is_alive

LOCK_FILE = "run.lock"
"""In a run folder while a process trains in it."""
_BEAT_S = 15.0
"""Seconds between two touches."""
_SILENT_S = 90.0
"""Seconds without a touch after which an owner is taken for dead; longer than NFS keeps attributes (60 s)."""

_ADVICE = "wait until it has ended, or name another folder"


@dataclass(frozen=True)
class LockOwner:
    """Who holds a lock, as it stands in the file."""

    token: str
    """Different for each time a lock is taken."""
    owner: str
    """The user."""
    host: str
    started: str
    """When the lock was taken, UTC."""
    pid: int
    process_started: float
    """Tells the process from a later one of the same number."""
    pid_namespace: str
    """Process numbers of two containers have nothing to do with each other, even under one host name."""
    slurm_job: str | None
    slurm_restart: int
    """A job that Slurm starts anew has ended everywhere before."""

    def __str__(self) -> str:
        return f"{self.owner} on {self.host} (process {self.pid}, since {self.started})"


class _State(Enum):
    GONE = "gone"
    ALIVE = "alive"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class _Held:
    """A lock that another one holds."""

    owner: LockOwner | None
    """None where the file says nothing that can be read: it is being written at this moment."""
    touched: float
    state: _State


class FolderLock:
    """Holds a folder from `take` to `release`.

    Args:
        folder: an existing folder, when `take` is called.
        beat_s: seconds between two signs of life.
        silent_s: seconds without one after which an owner on another machine is taken for dead.
    """

    def __init__(self, folder: Path, beat_s: float = _BEAT_S, silent_s: float = _SILENT_S) -> None:
        self._path = folder / LOCK_FILE
        self._beat_s, self._silent_s = beat_s, silent_s
        self._own: LockOwner | None = None
        self._released = threading.Event()
        self.lost = False
        """Whether another process has taken it over."""

    def take(self, report: Callable[[str], None]) -> None:
        """Takes the lock; one that a dead process has left is taken over.

        Args:
            report: told a line where a lock is taken over or its owner waited for.

        Raises:
            InputError: if another process holds it.
        """
        own, awaited, deadline, dead = describe_owner(), None, 0.0, None
        while held := self._try(own, dead, report):
            if held.state is _State.ALIVE or (awaited and (held.owner, held.touched) != awaited):
                raise InputError(f"{self._path.parent}: {held.owner or 'another process'} is writing it; {_ADVICE}")
            if not awaited:
                awaited, deadline = (held.owner, held.touched), time.monotonic() + self._silent_s
                if held.owner:
                    report(f"{self._path}: waiting up to {self._silent_s:g} s for a sign of life of {held.owner}")
            elif time.monotonic() > deadline:
                dead = awaited
            time.sleep(self._beat_s / 10)
        self._own = own
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def check(self) -> None:
        """Raises InputError if another process has taken the lock over, as while this one was suspended."""
        if self.lost:
            raise InputError(
                f"{self._path}: is not this process's any more: it gave no sign of life for {self._silent_s:g} s, or "
                "the file was removed; another one may be writing the folder"
            )

    def _try(
        self, own: LockOwner, dead: tuple[LockOwner | None, float] | None, report: Callable[[str], None]
    ) -> _Held | None:
        """Takes a lock that is free or whose owner is gone, or `dead` as it was last seen; else says who holds it."""
        while True:
            with suppress(FileExistsError):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(descriptor, "r+b", buffering=0) as file:
                    _write(file, own)
                return None
            with suppress(FileNotFoundError), open(self._path, "r+b", buffering=0) as file:
                _exclude_others(file)
                if not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    continue  # its owner has just removed it
                owner, touched = _read(file), os.fstat(file.fileno()).st_mtime
                state = _State.GONE if (owner, touched) == dead else self._judge(owner, touched, own)
                if state is not _State.GONE:
                    return _Held(owner, touched, state)
                _write(file, own)
                report(f"{self._path}: taken over from {owner or 'a process'} that is gone")
                return None

    def _judge(self, owner: LockOwner | None, touched: float, own: LockOwner) -> _State:
        if owner and owner.slurm_job and owner.slurm_job == own.slurm_job and owner.slurm_restart != own.slurm_restart:
            return _State.GONE
        if owner and (owner.host, owner.pid_namespace) == (own.host, own.pid_namespace):
            if not is_alive(owner.pid):
                return _State.GONE
            if abs(_find_start(owner.pid) - owner.process_started) < 1:
                return _State.ALIVE
        # By the clock of the file system, which wrote the other time as well.
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{LOCK_FILE}.") as probe:
            silent = os.fstat(probe.fileno()).st_mtime - touched
        return _State.GONE if silent > self._silent_s else _State.UNKNOWN

    def _beat(self) -> None:
        while not self._released.wait(self._beat_s):
            try:
                with open(self._path, "rb", buffering=0) as file:
                    self.lost = _read(file) != self._own
                if self.lost:
                    return
                os.utime(self._path)
            except FileNotFoundError:
                self.lost = True
                return
            except OSError:
                continue  # a file system that does not answer for a while

    def release(self) -> None:
        """Gives the folder free, where it is held."""
        self._released.set()
        if self._own is None:
            return
        with suppress(OSError), open(self._path, "r+b", buffering=0) as file:
            _exclude_others(file)
            if _read(file) == self._own:
                self._path.unlink()
        self._own = None


def describe_owner() -> LockOwner:
    """This process as the owner of a lock."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user on this machine, as in some containers
        user = f"user {os.getuid()}"
    job, cluster = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_CLUSTER_NAME", "")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return LockOwner(
        token=uuid.uuid4().hex,
        owner=user,
        host=socket.gethostname(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pid=os.getpid(),
        process_started=_find_start(os.getpid()),
        pid_namespace=_find_pid_namespace(),
        slurm_job=f"{cluster}:{job}" if job else None,
        slurm_restart=int(restart) if restart.isdigit() else 0,
    )


def _find_start(pid: int) -> float:
    """When a process began, seconds since the epoch; 0 where it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _find_pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _exclude_others(file: BinaryIO) -> None:
    """Lets one process at a time read and rewrite a lock; where the file system cannot, `check` finds out later."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)


def _read(file: BinaryIO) -> LockOwner | None:
    try:
        values = json.loads(file.read())
        return LockOwner(**{field.name: values[field.name] for field in fields(LockOwner)})
    except (ValueError, KeyError, TypeError):
        return None


def _write(file: BinaryIO, owner: LockOwner) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(asdict(owner), indent=2).encode() + b"\n")
    os.fsync(file.fileno())
