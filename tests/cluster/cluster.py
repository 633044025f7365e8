"""A Slurm of one machine with two virtual nodes, all of it in a temporary folder, started and ended by a test."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

NODES = ("steelgen-n1", "steelgen-n2")

_CONFIG = """
ClusterName=steelgen
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,sched_min_interval=0,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
{nodes}
PartitionName=main Nodes={names} Default=YES MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName=low Nodes={names} MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes={names} MaxTime=INFINITE State=UP PriorityTier=3
"""


def reason_for_no_slurm():
    """Why no test cluster can be started here, or None."""
    for program in ("slurmctld", "slurmd", "sbatch", "munged"):
        if not shutil.which(program, path=_path()):
            return f"no {program} here (scripts/ci-slurm installs it on Debian)"
    if os.geteuid() != 0:
        return "slurmctld and slurmd need root"
    for name in NODES:
        try:
            socket.gethostbyname(name)
        except OSError:
            return f"the virtual node {name} has no address (scripts/ci-slurm writes it into /etc/hosts)"
    return None


class Cluster:
    """A running Slurm. `environment` is what its commands need; `stop` ends its daemons by their process ids."""

    def __init__(self, root: Path, cores: int = 4) -> None:
        self._daemons: list[subprocess.Popen] = []
        self.root = root
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(root / "slurm.conf")}
        for name in ("SLURM_JOB_ID", "SLURM_NODELIST", "SBATCH_PARTITION"):
            self.environment.pop(name, None)
        (root / "state").mkdir(parents=True)
        controller_port, *node_ports = _free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
            "RealMemory=1000 State=UNKNOWN"
            for name, port in zip(NODES, node_ports, strict=True)
        )
        (root / "slurm.conf").write_text(
            _CONFIG.format(
                host=socket.gethostname(),
                root=root,
                controller_port=controller_port,
                nodes=nodes,
                names=",".join(NODES),
            )
        )
        key = root / "munge.key"
        key.write_bytes(os.urandom(64))
        key.chmod(0o400)
        munge = [f"--{name}-file={root}/munged.{name}" for name in ("pid", "log", "seed")]
        self._start("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={root}/munge.socket", *munge)
        self._wait_for(lambda: (root / "munge.socket").exists(), "munged's socket")
        self._start("slurmctld", "-D", "-i")
        for name in NODES:
            self._start("slurmd", "-D", "-N", name)
        self._wait_for(lambda: self.run("sinfo", "-h", "-o", "%t %D").stdout.split() == ["idle", "2"], "idle nodes")

    def run(self, *command: str, check: bool = False, cwd: Path | None = None) -> subprocess.CompletedProcess:
        """Runs one of Slurm's commands."""
        return subprocess.run(
            command, env=self.environment, text=True, capture_output=True, timeout=60, check=check, cwd=cwd
        )

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says of a job or an array task."""
        shown = self.run("scontrol", "show", "job", "-o", job_id, check=True).stdout
        return dict(word.split("=", 1) for word in shown.split() if "=" in word)

    def wait(self, job_id: str, seconds: float) -> dict[str, str]:
        """Waits until a job has left the queue for good and returns what is known of it."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not self.run("squeue", "-h", "-j", job_id, "-o", "%i").stdout.strip():
                return self.job(job_id)
            time.sleep(0.5)
        raise TimeoutError(f"job {job_id} is still there after {seconds} s: {self.job(job_id)}")

    def stop(self) -> None:
        """Cancels what runs and ends the daemons."""
        self.run("scancel", "--user=root")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, program: str, *arguments: str) -> None:
        command = [shutil.which(program, path=_path()), *arguments]
        with open(self.root / f"{program}-{len(self._daemons)}.out", "wb") as log:
            self._daemons.append(
                subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            )

    def _wait_for(self, ready, what: str) -> None:
        deadline = time.monotonic() + 20
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(f"{path.name}: {path.read_text()[-500:]}" for path in self.root.glob("slurm*.log"))
                self.stop()
                raise TimeoutError(f"the test cluster has no {what} after 20 s\n{logs}")
            time.sleep(0.1)


def _path() -> str:
    return os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
