"""What a cluster does to training: kills at any moment, full disks, too little memory, lost processes."""

import errno
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch
import typer
from accelerate.state import AcceleratorState

from steelgen import files
from steelgen.cli.output import errors_as_lines
from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.generators.saved import find_generator
from steelgen.generators.semantic_diffusion.training import SemanticDiffusionTraining
from steelgen.locks import LOCK_FILE
from steelgen.training import checkpoint
from steelgen.training.checkpoint import list_checkpoints, newest_checkpoint
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.forking import fork
from tests.training.test_loop import Recorder, assert_same_tensors, load_weights

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
KILLS = int(os.environ.get("STEELGEN_KILLS", "20"))


def crash_config(dataset, run_dir, **options):
    values = tiny_train_config(dataset, run_dir, **options)
    values["preview"]["num_images"] = 0
    values["generator"]["unet"]["channel_mult"] = [1]
    values["generator"]["unet"]["attention_resolutions"] = []
    return parse_config(values, TrainConfig)


def fork_training(config, log, environment=None, prepare=lambda: None, most_steps=10**9):
    """Trains in a forked child, which has all imports already; what it says goes to the file `log`.

    After `most_steps` steps it waits to be killed, so that a fast machine does not finish before.
    """

    def act():
        os.environ.update(environment or {})
        AcceleratorState._reset_state(reset_partial_state=True)
        prepare()
        steps = iter(range(most_steps))
        observer = Recorder(lambda step: next(steps, None) is None and time.sleep(600))
        observer.on_event = lambda message: print(message, flush=True)
        try:
            with errors_as_lines():
                train(config, observer, resume=True)
        except typer.Exit as leave:
            return leave.exit_code

    return fork(act, log, log)


def arm(countdown):
    """Makes this process kill itself before or after a write, a flush, a rename or a removal of a checkpoint."""
    left = [countdown]

    def deadly(operation):
        def run(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            result = operation(*arguments, **options)
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return run

    checkpoint.save_tensors = deadly(checkpoint.save_tensors)
    files._flush = deadly(files._flush)
    Path.rename = deadly(Path.rename)
    shutil.rmtree = deadly(shutil.rmtree)


def test_killed_at_any_moment_training_ends_bit_identical(tiny_dataset, tmp_path):
    """SIGKILL at random moments, every other one while a checkpoint is being written; STEELGEN_KILLS sets how many."""
    last = 4 * KILLS
    often = dict(max_steps=last, checkpoint_every=1, keep_checkpoints=2, gradient_accumulation_steps=2)
    seldom = {**often, "checkpoint_every": last}
    train(crash_config(tiny_dataset, tmp_path / "whole", **seldom), Recorder())
    config = crash_config(tiny_dataset, tmp_path / "cut", **often)
    folder, log = tmp_path / "cut" / "checkpoints", tmp_path / "log"
    rng = random.Random(0)
    begun, killed, unfinished, resumed = time.perf_counter(), 0, 0, 0
    for kill in range(KILLS):
        before = newest_checkpoint(tmp_path / "cut")
        log.write_text("")
        if kill % 2:
            countdown = rng.randrange(1, 100)
            child = fork_training(config, log, prepare=lambda countdown=countdown: arm(countdown))
        else:
            child = fork_training(config, log, most_steps=3)
            time.sleep(rng.uniform(0.0, 0.6))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL, log.read_text()
        killed += 1
        unfinished += bool(list(folder.glob(".step-*")))
        said = re.sub(r"\A.+/run\.lock: taken over from .+ that is gone\n", "", log.read_text())
        if before and said:
            assert said.startswith(f"resumed from {before}\n")
            resumed += 1
    print(
        f"{killed} kills, {unfinished} left an unfinished checkpoint, {resumed} resumed, at step "
        f"{newest_checkpoint(tmp_path / 'cut').name} after {time.perf_counter() - begun:.1f} s"
    )
    train(crash_config(tiny_dataset, tmp_path / "cut", **seldom), Recorder(), resume=True)
    assert_same_tensors(load_weights(tmp_path / "whole", last), load_weights(tmp_path / "cut", last))
    assert len(list(folder.iterdir())) == 2
    assert unfinished >= KILLS // 5
    assert resumed >= KILLS // 3


def test_a_checkpoint_killed_while_being_removed_is_removed_on_resuming(tiny_dataset, tmp_path):
    options = dict(checkpoint_every=1, keep_checkpoints=3)
    train(crash_config(tiny_dataset, tmp_path / "run", max_steps=3, **options), Recorder())
    (tmp_path / "run/checkpoints/step-000001/training.json").unlink()
    train(crash_config(tiny_dataset, tmp_path / "run", max_steps=4, **options), Recorder(), resume=True)
    assert sorted(path.name[-1] for path in (tmp_path / "run/checkpoints").iterdir()) == ["2", "3", "4"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 3 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_ends_in_one_line_and_training_goes_on_once_there_is_room(tiny_dataset, tmp_path, small_disk):
    options = dict(checkpoint_every=1, keep_checkpoints=2)
    train(crash_config(tiny_dataset, tmp_path / "whole", max_steps=8, **options), Recorder())
    run, log = small_disk / "run", tmp_path / "log"
    train(crash_config(tiny_dataset, run, max_steps=3, **options), Recorder())
    weights = load_weights(run, 3)
    config = crash_config(tiny_dataset, run, max_steps=8, **options)
    # From one that leaves nothing to one that is full when half of a checkpoint is written.
    for room in (0, 40, 150, 250):
        with open(small_disk / "ballast", "wb") as ballast:
            ballast.write(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize - room * 1024))
        _, status = os.waitpid(fork_training(config, log), 0)
        (small_disk / "ballast").unlink()
        assert os.waitstatus_to_exitcode(status) == 2, log.read_text()
        last = log.read_text().splitlines()[-1]
        assert "the disk is full" in last
        assert not (run / LOCK_FILE).exists()
        assert f"{run}/checkpoints/step-000003 is intact" in last
        assert str(run) in last
        assert "Traceback" not in log.read_text()
        assert_same_tensors(weights, load_weights(run, 3))
        assert [path.name for path in list_checkpoints(run)] == ["step-000002", "step-000003"]
    train(config, Recorder(), resume=True)
    assert_same_tensors(load_weights(tmp_path / "whole", 8), load_weights(run, 8))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O (os error 28)"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left" })'),
    ],
)
def test_a_checkpoint_that_does_not_fit_names_folder_and_size(tiny_dataset, tmp_path, monkeypatch, error):
    """The second error is how safetensors says it."""
    config = crash_config(tiny_dataset, tmp_path / "run", max_steps=4, checkpoint_every=1)
    save_tensors = checkpoint.save_tensors

    def fill_up(path, tensors):
        if path.name == "optimizer.safetensors" and "step-000003" in str(path):
            path.write_bytes(b"half a file")
            raise error
        save_tensors(path, tensors)

    monkeypatch.setattr(checkpoint, "save_tensors", fill_up)
    with pytest.raises(InputError, match=r"step-000003: the disk is full: a checkpoint needs (\S+) MiB") as caught:
        train(config, Recorder())
    needed = float(str(caught.value).split("needs ")[1].split(" MiB")[0])
    complete = newest_checkpoint(tmp_path / "run")
    assert complete.name == "step-000002"
    assert f"{complete} is intact" in str(caught.value)
    written = sum(path.stat().st_size for path in complete.rglob("*.safetensors")) / 2**20
    assert needed == pytest.approx(written, rel=0.25, abs=0.1)
    assert not list((tmp_path / "run" / "checkpoints").glob(".step-*"))
    monkeypatch.undo()
    train(config, Recorder(), resume=True)
    train(crash_config(tiny_dataset, tmp_path / "whole", max_steps=4), Recorder())
    assert_same_tensors(load_weights(tmp_path / "whole", 4), load_weights(tmp_path / "run", 4))


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4294967296 bytes."),
        MemoryError(),
    ],
)
def test_out_of_memory_says_what_to_change(tiny_dataset, tmp_path, monkeypatch, error):
    compute_loss = SemanticDiffusionTraining.compute_loss

    def run_out(self, phase, networks, batch, **options):
        if int(batch["number"][0]) >= 24:  # in step 3
            raise error
        return compute_loss(self, phase, networks, batch, **options)

    monkeypatch.setattr(SemanticDiffusionTraining, "compute_loss", run_out)
    options = dict(max_steps=4, train_batch_size=6, gradient_accumulation_steps=2, checkpoint_every=1)
    config = crash_config(tiny_dataset, tmp_path / "run", **options)
    with pytest.raises(InputError, match=r"^out of memory: train_batch_size 6 at image_size 16 needs more") as caught:
        train(config, Recorder())
    message = str(caught.value)
    assert "train.train_batch_size=3 with train.gradient_accumulation_steps=4 (still 12 crops per step" in message
    assert "train.gradient_checkpointing=true, train.mixed_precision=bf16" in message
    assert f"{tmp_path / 'run'}/checkpoints/step-000002 is intact" in message
    monkeypatch.undo()
    halved = options | {"train_batch_size": 3, "gradient_accumulation_steps": 4}
    result = train(crash_config(tiny_dataset, tmp_path / "run", **halved), Recorder(), resume=True)
    assert result.global_step == 4


def test_training_that_dies_in_mid_accumulation_goes_on_bit_identically(tiny_dataset, tmp_path, monkeypatch):
    """Ended before each of the forward passes of five steps in turn, three a step, two epochs in all."""
    options = dict(max_steps=5, gradient_accumulation_steps=3, checkpoint_every=1, mask_dropout=0.5)
    train(crash_config(tiny_dataset, tmp_path / "whole", **options), Recorder())
    compute_loss = SemanticDiffusionTraining.compute_loss
    dies_at = [0]

    def die(self, phase, networks, batch, **options):
        if int(batch["number"][0]) // 2 == dies_at[0]:
            raise KeyboardInterrupt
        return compute_loss(self, phase, networks, batch, **options)

    monkeypatch.setattr(SemanticDiffusionTraining, "compute_loss", die)
    config = crash_config(tiny_dataset, tmp_path / "cut", **options)
    for micro_batch in range(15):
        dies_at[0] = micro_batch
        with pytest.raises(KeyboardInterrupt):
            train(config, Recorder(), resume=True)
        newest = newest_checkpoint(tmp_path / "cut")
        assert (newest and newest.name) == (f"step-{micro_batch // 3:06d}" if micro_batch >= 3 else None)
    dies_at[0] = -1
    train(config, Recorder(), resume=True)
    assert_same_tensors(load_weights(tmp_path / "whole", 5), load_weights(tmp_path / "cut", 5))


def test_a_lost_process_ends_the_other_within_seconds(tiny_dataset, tmp_path):
    """Two processes on gloo without torchrun, whose agent would end the other one by itself."""
    config = crash_config(tiny_dataset, tmp_path / "run", max_steps=10**6, checkpoint_every=20, log_every=1000)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in ("0", "1"):
        environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        children.append(fork_training(config, tmp_path / f"log{rank}", environment))
    deadline = time.monotonic() + 60
    while not newest_checkpoint(tmp_path / "run") and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(children[1], signal.SIGKILL)
    lost = time.monotonic()
    os.waitpid(children[1], 0)
    _, status = os.waitpid(children[0], 0)
    said = (tmp_path / "log0").read_text()
    assert os.waitstatus_to_exitcode(status) == 2, said
    assert time.monotonic() - lost < 10
    assert "process 0 of 2: lost contact with another one" in said
    assert f"{newest_checkpoint(tmp_path / 'run')} is intact" in said
    assert "Traceback" not in said


def test_best_and_export_are_whole_after_a_kill_at_any_rename(tiny_dataset, tmp_path):
    """A second step replaces both folders; SIGKILL comes before each rename in turn, until none is left."""

    def configure(run_dir, **options):
        config = crash_config(tiny_dataset, run_dir, learning_rate=2e-3, ema_decay=0.0, **options)
        config.validation.every, config.validation.crops, config.measurement.every = 1, 8, None
        return config

    def arm_renames(countdown):
        left, rename = [countdown], Path.rename

        def deadly(path, target):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return rename(path, target)

        Path.rename = deadly

    train(configure(tmp_path / "once", max_steps=1), Recorder())
    train(configure(tmp_path / "twice", max_steps=2), Recorder())
    whole = {
        name: {(tmp_path / run / name / WEIGHTS).read_bytes() for run in ("once", "twice")}
        for name in ("best", "export")
    }
    assert [len(weights) for weights in whole.values()] == [2, 2]
    missing, code, countdown = set(), -signal.SIGKILL, 0
    while code:
        countdown += 1
        run = tmp_path / f"killed-{countdown}"
        shutil.copytree(tmp_path / "once", run)
        config, log = configure(run, max_steps=2), tmp_path / "log"
        child = fork_training(config, log, prepare=lambda countdown=countdown: arm_renames(countdown))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL), log.read_text()
        for name in ("best", "export"):
            missing |= {name} - {path.name for path in run.iterdir()}
            assert (find_generator(run / name) / WEIGHTS).read_bytes() in whole[name]
        train(config, Recorder(), resume=True)
        for name in ("best", "export"):
            assert (run / name / WEIGHTS).read_bytes() == (tmp_path / "twice" / name / WEIGHTS).read_bytes()
        assert (run / "best" / "selection.json").read_text() == (tmp_path / "twice/best/selection.json").read_text()
        assert not list(run.glob(".*"))
    assert missing == {"best", "export"}
    assert countdown == 9
