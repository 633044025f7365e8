"""Runs of trainings, for tests of any family: in this process, killed, by two processes; and what they leave."""

import os
import signal
import subprocess
import sys

from safetensors.torch import load_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from tests.forking import fork, wait


def invoke(*arguments):
    """Runs a command of steelgen in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_killed(training, phase_name, count, *arguments):
    """Runs a command, in a forked child, that kills itself in the `count`-th micro-batch of a phase; returns its exit
    code.

    Args:
        training: class of the `Trainable`.
        phase_name: only this phase counts; validation never does.
    """

    def act():
        compute_loss, left = training.compute_loss, [count]

        def die(self, phase, networks, batch, validates=False):
            left[0] -= phase.name == phase_name and not validates
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return compute_loss(self, phase, networks, batch, validates)

        training.compute_loss = die
        done = invoke(*arguments)
        print(done.output)
        return done.exit_code

    return wait(fork(act))


def run_two_processes(*arguments):
    """Runs a command of steelgen by two processes on the CPU."""
    launch = ("torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "steelgen")
    done = subprocess.run(
        [sys.executable, "-m", *launch, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def load_run(run_dir):
    """All tensors of the last checkpoint and the export, by file and name."""
    last = max((run_dir / "checkpoints").glob("step-*"))
    files = [*last.glob("*.safetensors"), *(run_dir / "export").rglob("*.safetensors")]
    return {f"{path.relative_to(run_dir)}:{key}": value for path in files for key, value in load_file(path).items()}
