"""Locks of run folders: who holds one, who is gone, on this machine and on others."""

import json
import os
import re
import signal
import socket
import threading
import time
from dataclasses import asdict, replace

import pytest

from steelgen.errors import InputError
from steelgen.locks import LOCK_FILE, FolderLock, LockOwner, describe_owner

BEAT, SILENT = 0.05, 0.5


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "SLURM_CLUSTER_NAME"):
        monkeypatch.delenv(name, raising=False)


def take(folder, said=None, **options):
    lock = FolderLock(folder, **{"beat_s": BEAT, "silent_s": SILENT, **options})
    lock.take((said if said is not None else []).append)
    return lock


def leave(folder, age=0.0, **changes):
    """A lock file as another process has left it."""
    owner = replace(describe_owner(), token="other", owner="anna", **changes)
    (folder / LOCK_FILE).write_text(json.dumps(asdict(owner)))
    if age:
        then = time.time() - age
        os.utime(folder / LOCK_FILE, (then, then))
    return owner


def test_the_file_says_who_when_and_where_and_goes_at_the_end(tmp_path):
    lock = take(tmp_path)
    values = json.loads((tmp_path / LOCK_FILE).read_text())
    assert (values["host"], values["pid"]) == (socket.gethostname(), os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", values["started"])
    with pytest.raises(InputError) as refused:
        take(tmp_path)
    owner = LockOwner(**values)
    assert str(refused.value).startswith(f"{tmp_path}: {owner.owner} on {owner.host} (process {os.getpid()}, since ")
    assert values["started"] in str(refused.value)
    lock.release()
    assert list(tmp_path.iterdir()) == []
    take(tmp_path).release()


def test_a_dead_process_of_this_machine_is_succeeded_at_once(tmp_path):
    child = os.fork()
    if not child:
        take(tmp_path)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    said = []
    take(tmp_path, said, silent_s=600).release()
    assert len(said) == 1
    assert f"taken over from {describe_owner().owner} on {socket.gethostname()} (process {child}," in said[0]


def test_a_process_number_that_was_given_away_again_is_not_its_owner(tmp_path):
    """Process 1 is alive, but began at another time than the owner of the lock."""
    leave(tmp_path, pid=1, process_started=1.0, age=10)
    take(tmp_path).release()


def test_on_another_machine_a_silent_owner_is_gone(tmp_path):
    leave(tmp_path, host="elsewhere", age=SILENT + 1)
    said = []
    take(tmp_path, said).release()
    assert [line.split(": ")[1].split(" (")[0] for line in said] == ["taken over from anna on elsewhere"]


def test_on_another_machine_one_that_stays_silent_is_waited_for(tmp_path):
    """Whatever the clocks say: it is watched for as long as a living one may be silent."""
    leave(tmp_path, host="elsewhere", age=-3600)
    begun, said = time.monotonic(), []
    take(tmp_path, said).release()
    assert time.monotonic() - begun >= SILENT
    assert ["waiting up to 0.5 s for a heartbeat" in line for line in said] == [True, False]


def test_on_another_machine_one_that_gives_a_sign_of_life_keeps_it(tmp_path):
    owner = leave(tmp_path, host="elsewhere")
    ended = threading.Event()

    def beat():
        while not ended.wait(BEAT):
            os.utime(tmp_path / LOCK_FILE)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(InputError, match="anna on elsewhere"):
        take(tmp_path)
    ended.set()
    thread.join()
    assert json.loads((tmp_path / LOCK_FILE).read_text()) == asdict(owner)


def test_a_container_of_the_same_name_is_another_machine(tmp_path):
    """Its process numbers say nothing here: that of a dead process is not taken for a dead owner."""
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    leave(tmp_path, pid=child, pid_namespace="pid:[1]")
    said = []
    take(tmp_path, said).release()
    assert "waiting" in said[0]


@pytest.mark.parametrize(("restart", "waits"), [("1", False), ("0", True)])
def test_a_job_that_slurm_starts_anew_takes_its_own_lock_at_once(tmp_path, monkeypatch, restart, waits):
    """Not so another step of the same start of the job."""
    leave(tmp_path, host="elsewhere", slurm_job="c:17", slurm_restart=0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    said = []
    take(tmp_path, said).release()
    assert ("waiting" in said[0]) is waits
    assert "taken over from anna on elsewhere" in said[-1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"token": 1}'])
def test_a_file_that_says_nothing_is_judged_by_its_age(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    written = (tmp_path / LOCK_FILE).stat().st_mtime
    take(tmp_path).release()
    assert time.time() - written >= SILENT
    (tmp_path / LOCK_FILE).write_text(content)
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    take(tmp_path, silent_s=600).release()


def test_signs_of_life_come_while_it_is_held(tmp_path):
    lock = take(tmp_path)
    os.utime(tmp_path / LOCK_FILE, (0, 0))
    deadline = time.monotonic() + 10
    while (tmp_path / LOCK_FILE).stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(BEAT)
    assert (tmp_path / LOCK_FILE).stat().st_mtime > 0
    lock.check()
    lock.release()


@pytest.mark.parametrize("lose", [lambda path: leave(path.parent, host="elsewhere"), lambda path: path.unlink()])
def test_who_has_lost_it_is_told_and_leaves_the_successor_alone(tmp_path, lose):
    lock = take(tmp_path)
    lose(tmp_path / LOCK_FILE)
    left = {path: path.read_bytes() for path in tmp_path.iterdir()}
    deadline = time.monotonic() + 10
    while not lock.lost and time.monotonic() < deadline:
        time.sleep(BEAT)
    with pytest.raises(InputError, match="this process lost the lock"):
        lock.check()
    lock.release()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == left


def test_of_many_that_succeed_a_dead_one_at_once_one_does(tmp_path):
    """Eight processes, ten times; each says by its exit code whether it has the lock, and keeps it till all have."""
    for number in range(10):
        folder, told = tmp_path / str(number), tmp_path / f"told{number}"
        folder.mkdir()
        leave(folder, host="elsewhere", age=SILENT + 1)
        start, children = time.time() + 0.1, []
        for _ in range(8):
            child = os.fork()
            if not child:
                code = 1
                try:
                    time.sleep(max(0.0, start - time.time()))
                    take(folder)
                    deadline = time.monotonic() + 30
                    while not told.exists() and time.monotonic() < deadline:
                        time.sleep(0.01)
                    code = 0
                except InputError:
                    code = 2
                finally:
                    os._exit(code)
            children.append(child)
        codes, deadline = [], time.monotonic() + 30
        while len(codes) < 7 and time.monotonic() < deadline:
            ended = [(child, status) for child in children for pid, status in [os.waitpid(child, os.WNOHANG)] if pid]
            codes += [os.waitstatus_to_exitcode(status) for _, status in ended]
            children = [child for child in children if child not in dict(ended)]
            time.sleep(0.01)
        told.touch()
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        assert codes == [2] * 7 + [0]
