"""Sampling that is killed, runs out of disk, shares its folder or its precision: what is on disk stays whole."""

import errno
import json
import os
import signal
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.testing import CompileCounter
from typer.testing import CliRunner

from steelgen import files
from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import SolverSection
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator
from steelgen.sampling.sample import sample
from steelgen.shards import Shard

MASKS = [np.arange(256, dtype=np.uint8).reshape(16, 16) // 86 for _ in range(3)]


def build_values(trained, out, **options):
    dataset, run = trained
    return {
        "generator": str(run),
        "output_dir": str(out),
        "mask_source": {"kind": "split", "dataset": str(dataset), "split": "test"},
        "num_samples": 6,
        "batch_size": 2,
        "solver": {"num_inference_steps": 1},
        **options,
    }


def fork_sampling(config, log, shard=None, kill_at=None, prepare=lambda: None):
    """A child process that draws, and kills itself before or after its `kill_at`-th file is flushed."""
    child = os.fork()
    if child:
        return child
    try:
        if kill_at is not None:
            arm(kill_at)
        prepare()
        sample(config, shard=shard)
        os._exit(0)
    except BaseException:
        log.write_text(traceback.format_exc())
        os._exit(1)


def arm(kill_at):
    flush, calls = files._flush, [0]

    def deadly(path):
        for operation in (lambda: None, lambda: flush(path)):
            operation()
            calls[0] += 1
            if calls[0] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    files._flush = deadly


def wait_for(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def read_folder(out):
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def check_like(out, whole):
    found, expected = read_folder(out), read_folder(whole)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name] and name != "sampling.json"] == []


@pytest.mark.parametrize("parts", [None, 2])
def test_killed_and_resumed_the_folder_is_that_of_an_undisturbed_run(trained, tmp_path, parts):
    """SIGKILL at every 17th moment of writing, from the first file to the last; no half-written one ever shows."""
    whole = sample(parse_config(build_values(trained, tmp_path / "whole"), SampleConfig))
    config = parse_config(build_values(trained, tmp_path / "cut"), SampleConfig)
    kills, log = 0, tmp_path / "log"
    for shard in [Shard(number, parts) for number in range(1, parts + 1)] + [None] if parts else [None]:
        for kill_at in range(1, 300, 17):
            code = wait_for(fork_sampling(config, log, shard, kill_at))
            for path in (tmp_path / "cut").rglob("*.png"):
                if not path.name.startswith("."):
                    Image.open(path).load()
            if code == 0:
                break
            assert code == -signal.SIGKILL, log.read_text()
            kills += 1
        assert code == 0
    assert kills >= 2
    check_like(tmp_path / "cut", whole)


def test_two_writers_in_one_folder_leave_what_one_leaves(trained, tmp_path):
    whole = sample(parse_config(build_values(trained, tmp_path / "whole"), SampleConfig))
    config = parse_config(build_values(trained, tmp_path / "both"), SampleConfig)
    children = [fork_sampling(config, tmp_path / f"log{number}", Shard(1, 1)) for number in (0, 1)]
    codes = [wait_for(child) for child in children]
    assert codes == [0, 0], [path.read_text() for path in tmp_path.glob("log*")]
    sample(config)
    check_like(tmp_path / "both", whole)


def hold(operation, wanted, folder):
    """The operation, which the first time its path is `wanted` says so in `folder` and waits there to be let go on."""

    def held(path, *arguments):
        if wanted(path) and not (folder / "held").exists():
            (folder / "held").touch()
            wait_until((folder / "go").exists)
        return operation(path, *arguments)

    return held


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


@pytest.mark.parametrize("moment", ["opening", "labels", "samples", "metadata", "coco", "contact_sheet"])
def test_two_calls_without_shards_leave_what_one_leaves(trained, tmp_path, moment):
    """One is held while it makes the folder or writes a file; the other does everything meanwhile, and gathers."""
    dataset, _ = trained
    options = {
        "coco": True,
        "filter": {"dataset": str(dataset), "min_iou": 0.0, "max_correlation": 1.0, "segmenter": {"steps": 1}},
    }
    whole = sample(parse_config(build_values(trained, tmp_path / "whole", **options), SampleConfig))
    config = parse_config(build_values(trained, tmp_path / "both", **options), SampleConfig)

    def prepare():
        if moment == "opening":
            Path.rename = hold(Path.rename, lambda path: path.name.startswith(".both."), tmp_path)
        else:
            inside = str(tmp_path / "both")
            files._flush = hold(files._flush, lambda path: moment in str(path).removeprefix(inside), tmp_path)

    slow = fork_sampling(config, tmp_path / "slow", prepare=prepare)
    wait_until((tmp_path / "held").exists)
    quick = fork_sampling(config, tmp_path / "quick")
    code = wait_for(quick)
    (tmp_path / "go").touch()
    assert code == 0, (tmp_path / "quick").read_text()
    assert wait_for(slow) == 0, (tmp_path / "slow").read_text()
    check_like(tmp_path / "both", whole)


def test_leftovers_of_processes_that_are_gone_are_removed_and_no_others(tmp_path):
    """What a living process is writing stays, here and, as long as it is young, on another machine."""
    child = os.fork()
    if not child:
        with files.new_file(tmp_path / "sub" / "dead.png") as working:
            working.write_bytes(b"half")
            os._exit(0)
    wait_for(child)
    (dead,) = (tmp_path / "sub").iterdir()
    elsewhere = tmp_path / ".sheet.1-1.png"
    elsewhere.write_bytes(b"half")
    with files.new_file(tmp_path / "alive.png") as working:
        working.write_bytes(b"half")
        files.remove_leftovers(tmp_path)
        assert not dead.exists()
        assert working.exists()
        assert elsewhere.exists()
        os.utime(elsewhere, (0, 0))
        files.remove_leftovers(tmp_path)
        assert not elsewhere.exists()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["alive.png"]


def test_a_disk_that_fills_up_is_one_line(trained, tmp_path, monkeypatch):
    flush, calls = files._flush, [0]

    def fill_up(path):
        calls[0] += 1
        if calls[0] > 9:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    monkeypatch.setattr(files, "_flush", fill_up)
    (tmp_path / "sample.json").write_text(json.dumps(build_values(trained, tmp_path / "out")))
    result = CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("steelgen:")]
    assert len(lines) == 1
    assert "No space left on device" in lines[0]
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert written
    assert not [path for path in written if path.name.startswith(".")]
    monkeypatch.undo()
    assert CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")]).exit_code == 0
    check_like(tmp_path / "out", sample(parse_config(build_values(trained, tmp_path / "whole"), SampleConfig)))


@pytest.mark.parametrize("shard", ["3/2", "0/2", "two"])
def test_an_impossible_shard_is_one_line_and_makes_no_folder(trained, tmp_path, shard):
    (tmp_path / "sample.json").write_text(json.dumps(build_values(trained, tmp_path / "out")))
    result = CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json"), "--shard", shard])
    assert result.exit_code == 2
    assert result.stderr.startswith("steelgen: ")
    assert result.stderr.count("\n") == 1
    assert shard in result.stderr
    assert not (tmp_path / "out").exists()


def draw(trained, compiled=False, channels_last=False, mixed_precision="no"):
    generator = prepare_generator(trained[1], channels_last, compiled)
    solver = SolverSection(num_inference_steps=5)
    images = generate_images(generator, SamplingBatch(MASKS, [0, 1, 2], solver), mixed_precision)
    return np.stack(images).astype(float)


@pytest.mark.parametrize(("precision", "most", "mean"), [("bf16", 12, 1.5), ("fp16", 3, 0.3)])
def test_half_precision_stays_within_gray_levels(trained, precision, most, mean):
    """Of 256, over five guided steps: bf16 has 8 bits of mantissa, fp16 has 11."""
    difference = np.abs(draw(trained, mixed_precision=precision) - draw(trained))
    assert 0 < difference.max() <= most
    assert difference.mean() <= mean


def test_channels_last_changes_rounding_alone(trained):
    assert np.abs(draw(trained, channels_last=True) - draw(trained)).max() <= 1


def test_compiled_with_static_shapes_the_network_draws_the_same(trained, monkeypatch):
    """Traced once for each of two batch sizes; run without a C++ compiler, on the traced graph."""
    counter, chosen, original = CompileCounter(), [], torch.nn.Module.compile

    def compile_traced(module, **options):
        chosen.append(options)
        original(module, backend=counter, **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_traced)
    torch._dynamo.reset()
    compiled = draw(trained, compiled=True)
    assert chosen == [{"dynamic": False}]
    assert counter.frame_count == 2  # guided steps and those outside the interval, without the null mask's pass
    assert np.abs(compiled - draw(trained)).max() <= 1
