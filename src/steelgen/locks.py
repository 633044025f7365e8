"""Lock of a folder that only one process may write at a time, across all machines that share it.

The lock is a file created with O_EXCL, which is atomic on NFS too. Its owner touches it every few seconds, because
other machines cannot check the process in any other way. Clocks of different machines are never compared.
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
from pathlib import Path
from typing import BinaryIO, Literal

from steelgen.errors import InputError
from steelgen.files import is_alive

LOCK_FILE = "run.lock"
"""In a run folder while a process trains in it."""
_HEARTBEAT_S = 15.0
"""Seconds between two touches of the lock file."""
_TIMEOUT_S = 90.0
"""Seconds without a touch after which an owner counts as dead; longer than NFS caches attributes (60 s)."""


@dataclass(frozen=True)
class LockOwner:
    """Content of the lock file."""

    token: str
    """Unique for each time a lock is taken."""
    owner: str
    """User name."""
    host: str
    started: str
    """Time at which the lock was taken, UTC."""
    pid: int
    process_started: float
    """Distinguishes the process from a later one with the same pid."""
    pid_namespace: str
    """Pids of two containers are unrelated, even with the same host name."""
    slurm_job: str | None
    slurm_restart: int
    """When Slurm restarts a job, its earlier processes have ended on all nodes."""

    def __str__(self) -> str:
        return f"{self.owner} on {self.host} (process {self.pid}, since {self.started})"


_State = Literal["gone", "alive", "unknown"]


@dataclass(frozen=True)
class _Held:
    """A lock held by another process."""

    owner: LockOwner | None
    """None if the file is not readable because it is being written."""
    touched: float
    state: _State


class FolderLock:
    """Locks a folder from `take` to `release`.

    Args:
        folder: the folder, which must exist when `take` is called.
        beat_s: seconds between two heartbeats.
        silent_s: seconds without a heartbeat after which an owner on another machine counts as dead.
    """

    def __init__(self, folder: Path, beat_s: float = _HEARTBEAT_S, silent_s: float = _TIMEOUT_S) -> None:
        self._path = folder / LOCK_FILE
        self._beat_s, self._silent_s = beat_s, silent_s
        self._own: LockOwner | None = None
        self._released = threading.Event()
        self.lost = False
        """Whether another process has taken the lock over."""

    def take(self, report: Callable[[str], None]) -> None:
        """Takes the lock, or takes it over from a dead process.

        Args:
            report: receives a line when the lock is taken over or its owner is waited for.

        Raises:
            InputError: if another process holds the lock.
        """
        own, awaited, deadline, dead = describe_owner(), None, 0.0, None
        while held := self._try(own, dead, report):
            if held.state == "alive" or (awaited and (held.owner, held.touched) != awaited):
                raise InputError(
                    f"{self._path.parent}: {held.owner or 'another process'} is writing to this folder; wait until it "
                    "has ended, or choose another folder"
                )
            if not awaited:
                awaited, deadline = (held.owner, held.touched), time.monotonic() + self._silent_s
                if held.owner:
                    report(f"{self._path}: waiting up to {self._silent_s:g} s for a heartbeat of {held.owner}")
            elif time.monotonic() > deadline:
                dead = awaited
            time.sleep(self._beat_s / 10)
        self._own = own
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def check(self) -> None:
        """Raises InputError if another process has taken the lock over, for example while this one was suspended."""
        if self.lost:
            raise InputError(
                f"{self._path}: this process lost the lock (no heartbeat for {self._silent_s:g} s, or the file was "
                "removed); another process may be writing to the folder"
            )

    def release(self) -> None:
        """Releases the lock if this process holds it."""
        self._released.set()
        if self._own is None:
            return
        with suppress(OSError), open(self._path, "r+b", buffering=0) as file:
            _lock_file(file)
            if _read(file) == self._own:
                self._path.unlink()
        self._own = None

    def _try(
        self, own: LockOwner, dead: tuple[LockOwner | None, float] | None, report: Callable[[str], None]
    ) -> _Held | None:
        """Takes a lock that is free, whose owner is gone, or that still equals `dead`; else returns who holds it."""
        while True:
            with suppress(FileExistsError):
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(descriptor, "r+b", buffering=0) as file:
                    try:
                        _write(file, own)
                    except OSError:  # a full disk; an empty lock would make the next process wait for its owner
                        self._path.unlink()
                        raise
                return None
            with suppress(FileNotFoundError), open(self._path, "r+b", buffering=0) as file:
                _lock_file(file)
                if not os.path.samestat(os.fstat(file.fileno()), self._path.stat()):
                    continue  # its owner has just removed it
                owner, touched = _read(file), os.fstat(file.fileno()).st_mtime
                state: _State = "gone" if (owner, touched) == dead else self._judge(owner, touched, own)
                if state != "gone":
                    return _Held(owner, touched, state)
                _write(file, own)
                report(f"{self._path}: taken over from {owner or 'a process'} that is gone")
                return None

    def _judge(self, owner: LockOwner | None, touched: float, own: LockOwner) -> _State:
        if owner and owner.slurm_job and owner.slurm_job == own.slurm_job and owner.slurm_restart != own.slurm_restart:
            return "gone"
        if owner and (owner.host, owner.pid_namespace) == (own.host, own.pid_namespace):
            if not is_alive(owner.pid):
                return "gone"
            if abs(_find_start(owner.pid) - owner.process_started) < 1:
                return "alive"
        # The clock of the file system, which also set `touched`.
        with tempfile.NamedTemporaryFile(dir=self._path.parent, prefix=f".{LOCK_FILE}.") as probe:
            silent = os.fstat(probe.fileno()).st_mtime - touched
        return "gone" if silent > self._silent_s else "unknown"

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
                continue  # the file system does not respond for a while


def describe_owner() -> LockOwner:
    """Describes this process as the owner of a lock."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user on this machine, as in some containers
        user = f"user {os.getuid()}"
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    job, cluster = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_CLUSTER_NAME", "")
    restart = os.environ.get("SLURM_RESTART_COUNT", "0")
    return LockOwner(
        token=uuid.uuid4().hex,
        owner=user,
        host=socket.gethostname(),
        started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        pid=os.getpid(),
        process_started=_find_start(os.getpid()),
        pid_namespace=namespace,
        slurm_job=f"{cluster}:{job}" if job else None,
        slurm_restart=int(restart) if restart.isdigit() else 0,
    )


def _find_start(pid: int) -> float:
    """Returns when a process started, in seconds since the epoch; 0 if it is gone."""
    import psutil

    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def _lock_file(file: BinaryIO) -> None:
    """Excludes other processes while the lock file is rewritten; without flock, `check` detects the loss later."""
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
