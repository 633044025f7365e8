"""What the batch scripts do when they are signalled, with stand-ins for srun, scontrol and python."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from steelgen.cluster.scripts import Job, render_script
from steelgen.config.slurm import SlurmProfile

SAVE = "mkdir -p run/checkpoints/step-000007"
LISTEN = "echo listening; while :; do sleep 0.02; done"


def end(stopped_by, finished, status):
    """Shell commands by which training notes how it ended, and ends."""
    result = f'"stopped_by": "{stopped_by}", "finished": {str(finished).lower()}'
    return f"echo '{{{result}}}' > run/result.json; exit {status}"


def on_signal(name, commands):
    """A program that waits for a signal and answers it with some commands."""
    return f"answer() {{ {commands}; }}; trap answer {name}; {LISTEN}"


SAVE_ON_SIGNAL = on_signal("USR1", f"{SAVE}; {end('SIGUSR1', False, 0)}")


class Stage:
    """A folder in which a rendered script runs against programs that a test makes up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "run/checkpoints/step-000003").mkdir(parents=True)
        self.write_program("scontrol", 'if [ "$1" = show ]; then echo n1; else echo "$*" >> requeued; fi')
        (folder / "bin/activate").write_text(f'PATH={folder}/bin:"$PATH"\n')

    def write_program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)

    def run(self, action: str, number: int | None, restarts: int) -> tuple[int, str, bool]:
        """Runs the script, signals it once it says that it listens; gives status, output and whether it requeued."""
        profile = SlurmProfile(gpus_per_node=0, venv=self.folder)
        script = self.folder / "job.sbatch"
        text = render_script(Job(action, Path("c.json"), Path("run"), shards=4), profile, self.folder)
        script.write_text(text.replace("sleep 5", "sleep 0.1"))
        given = {
            "JOB_ID": 7,
            "JOB_NODELIST": "n1",
            "JOB_NUM_NODES": 1,
            "CPUS_ON_NODE": 1,
            "RESTART_COUNT": restarts,
            "ARRAY_TASK_ID": 2,
        }
        process = subprocess.Popen(
            ["bash", script],
            cwd=self.folder,
            env={**os.environ, **{f"SLURM_{name}": str(value) for name, value in given.items()}},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert process.stdout
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line.strip() == "listening" and number:
                process.send_signal(number)
        requeued = self.folder / "requeued"
        return process.wait(20), "".join(lines), requeued.is_file() and requeued.read_text() == "requeue 7\n"


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


@pytest.mark.parametrize(
    ("training", "number", "restarts", "status", "requeues", "said"),
    [
        (SAVE_ON_SIGNAL, signal.SIGUSR1, 0, 0, True, "stopped at run/checkpoints/step-000007"),
        (SAVE_ON_SIGNAL, signal.SIGUSR1, 100, 1, False, "already requeued 100 times"),
        (SAVE_ON_SIGNAL, signal.SIGTERM, 0, 143, False, "terminated by scancel"),
        (on_signal("USR1", end("SIGUSR1", False, 0)), signal.SIGUSR1, 0, 1, False, "no step was saved"),
        (on_signal("USR1", "exit 3"), signal.SIGUSR1, 0, 3, False, "training failed with status 3"),
        ("exit 3", None, 0, 3, False, "training failed with status 3; not requeued"),
        (f"{SAVE}; {end('max_steps', True, 0)}", None, 0, 0, False, "finished"),
        (end("SIGUSR1", False, 0), None, 0, 1, False, "stopped early without a signal"),
        # Preempted with a grace time: Slurm signals what srun started, not the script.
        (f"{SAVE}; {end('SIGTERM', False, 1)}", None, 0, 0, True, "stopped at run/checkpoints/step-000007"),
        (end("SIGTERM", False, 1), None, 100, 1, False, "already requeued 100 times"),
    ],
)
def test_training_is_requeued_or_not(stage, training, number, restarts, status, requeues, said):
    stage.write_program("srun", training)
    ended, output, requeued = stage.run("train", number, restarts)
    assert said in output
    assert (ended, requeued) == (status, requeues)


def test_what_an_earlier_start_left_is_no_preemption(stage):
    (stage.folder / "run/result.json").write_text('{"stopped_by": "SIGTERM", "finished": false}')
    stage.write_program("srun", "exit 1")
    assert stage.run("train", None, 0)[::2] == (1, False)


@pytest.mark.parametrize(
    ("sampling", "number", "restarts", "status", "requeues"),
    [
        (on_signal("TERM", "exit 143"), signal.SIGUSR1, 0, 143, True),
        (on_signal("TERM", "exit 143"), signal.SIGUSR1, 100, 143, False),
        (on_signal("TERM", "exit 143"), signal.SIGTERM, 0, 143, False),
        (on_signal("TERM", "exit 0"), signal.SIGUSR1, 0, 0, False),
        ("exit 2", None, 0, 2, False),
    ],
)
def test_shards_are_requeued_or_not(stage, sampling, number, restarts, status, requeues):
    stage.write_program("python", sampling)
    ended, output, requeued = stage.run("sample", number, restarts)
    assert "shard 2/4" in output
    assert (ended, requeued) == (status, requeues)
