"""Trainings that kill themselves, in a forked child."""

import os
import signal

from typer.testing import CliRunner

from steelgen.cli.app import app
from tests.forking import fork, wait


def invoke(*arguments):
    """Runs a command of steelgen in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_killed(training, phase_name, count, *arguments):
    """Runs a command that kills itself in the `count`-th micro-batch of a phase; returns its exit code.

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
