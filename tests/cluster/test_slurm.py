"""Jobs on a real Slurm: cut and requeued, two nodes, an array with a killed task, the workflow, a failure."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.loop import train
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.generators.test_gan import gan_config
from tests.training.test_loop import Recorder, assert_same_tensors, load_weights

CUT_STEPS = 150


def steelgen(cluster, folder, *arguments, code=0):
    """Runs a steelgen command in `folder` with the cluster's environment and returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "steelgen", *map(str, arguments)],
        env=cluster.environment,
        cwd=folder,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def job_ids(output):
    return re.findall(r"job (\d+) →", output)


def write_json(path, values):
    path.write_text(json.dumps(values))
    return path


def write_profile(folder, **fields):
    environment = {"OMP_NUM_THREADS": "1", **fields.pop("environment", {})}
    values = {"gpus_per_node": 0, "time": "5", "signal_seconds": 10, "environment": environment, **fields}
    return write_json(folder / "profile.json", values)


def read_logs(output):
    folder = output.with_name(f"{output.name}.slurm")
    return "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))


@pytest.fixture(scope="module")
def cut_training(cluster, tmp_path_factory):
    """A training that its limit of one minute cuts again and again; it goes on beside the other tests."""
    folder = tmp_path_factory.mktemp("cut")
    dataset = write_tiny_dataset(folder / "tiny")
    slow = str(Path(__file__).parent / "slow")
    profile = write_profile(folder, time="1", environment={"PYTHONPATH": slow})
    write_json(folder / "train.json", tiny_train_config(dataset, "run", max_steps=CUT_STEPS))
    (job,) = job_ids(steelgen(cluster, folder, "slurm", "submit", "train", "-c", "train.json", "--profile", profile))
    return folder, job


@pytest.fixture(scope="module")
def trained(cut_training, tmp_path_factory):
    """A folder with a tiny dataset and a generator trained on it."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = write_tiny_dataset(folder / "tiny")
    train(parse_config(tiny_train_config(dataset, folder / "run", max_steps=2), TrainConfig), Recorder())
    return folder


def sample_config(output_dir, num_samples):
    return {
        "generator": "run",
        "output_dir": output_dir,
        "mask_source": {"kind": "split", "dataset": "tiny", "split": "test"},
        "num_samples": num_samples,
        "batch_size": 1,
        "solver": {"num_inference_steps": 2},
    }


def test_failing_job_is_not_requeued(cluster, cut_training, tmp_path):
    """One that fails after its start: the micrographs are gone, so training ends with an error."""
    profile = write_profile(tmp_path)
    write_json(tmp_path / "train.json", tiny_train_config("nowhere", "run"))
    output = steelgen(cluster, tmp_path, "slurm", "submit", "train", "-c", "train.json", "--profile", profile)
    job = cluster.wait(job_ids(output)[0], 60)
    assert job["JobState"] == "FAILED"
    assert job["Restarts"] == "0"
    log = read_logs(tmp_path / "run")
    assert "nowhere" in log
    assert "not requeued" in log


def test_two_nodes_train_together(cluster, cut_training, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "tiny")
    profile = write_profile(tmp_path, nodes=2)
    write_json(tmp_path / "train.json", tiny_train_config(dataset, "run", max_steps=3))
    output = steelgen(cluster, tmp_path, "slurm", "submit", "train", "-c", "train.json", "--profile", profile)
    job = cluster.wait(job_ids(output)[0], 90)
    log = read_logs(tmp_path / "run")
    assert job["JobState"] == "COMPLETED", log
    assert job["NumNodes"] == "2"
    assert "STEELGEN_EXPECTED" not in log
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result == {"global_step": 3, "stopped_by": "max_steps", "finished": True}
    # An epoch's share says how many crops a step took: two processes take twice as many as one.
    epochs = [json.loads(line)["epoch"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    one = train(parse_config(tiny_train_config(dataset, tmp_path / "one", max_steps=3), TrainConfig), Recorder())
    alone = [json.loads(line)["epoch"] for line in (tmp_path / "one/metrics.jsonl").read_text().splitlines()]
    assert one.global_step == 3
    assert epochs == pytest.approx([2 * value for value in alone])
    fewer = cluster.run("sbatch", "--parsable", "--nodes=1", "run.slurm/train.sbatch", cwd=tmp_path).stdout.strip()
    assert cluster.wait(fewer, 30)["JobState"] == "FAILED"
    assert "requested 2 nodes, got 1" in read_logs(tmp_path / "run")


def test_a_generator_of_two_phases_trains_as_a_job(cluster, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "tiny")
    write_json(tmp_path / "train.json", gan_config(dataset, "run"))
    command = ("slurm", "submit", "train", "-c", "train.json", "--profile", write_profile(tmp_path))
    job = cluster.wait(job_ids(steelgen(cluster, tmp_path, *command))[0], 90)
    assert job["JobState"] == "COMPLETED", read_logs(tmp_path / "run")
    assert steelgen(cluster, tmp_path, "slurm", "status", "run").count("finished (max_steps)") == 1
    train(parse_config(gan_config(dataset, tmp_path / "here"), TrainConfig), Recorder())
    there, here = (load_file(tmp_path / run / "export/weights.safetensors") for run in ("run", "here"))
    assert_same_tensors(there, here)


def test_killed_shard_is_run_again_alone(cluster, trained):
    profile = write_profile(trained)
    write_json(trained / "sample.json", sample_config("samples", 40))
    command = ("slurm", "submit", "sample", "-c", "sample.json", "--array", "4", "--profile", profile)
    array, gather = job_ids(steelgen(cluster, trained, *command))
    wait_for_start_then_kill(cluster, f"{array}_3")
    for number in (1, 2, 4):
        assert cluster.wait(f"{array}_{number}", 90)["JobState"] == "COMPLETED"
    status = steelgen(cluster, trained, "slurm", "status", "samples")
    assert re.search(r"shard 3/4 +\d+ +10 +(missing|partial)", status)
    assert "sbatch --array=3 " in status
    # The gathering job was waiting for all four, and is dropped with the one that failed.
    assert cluster.wait(gather, 30)["JobState"] == "CANCELLED"
    assert not (trained / "samples/metadata.jsonl").exists()

    again = cluster.run(*re.search(r"sbatch .*", status)[0].replace("sbatch", "sbatch --parsable").split(), cwd=trained)
    after = f"--dependency=afterok:{again.stdout.strip()}"
    rerun = cluster.run("sbatch", "--parsable", after, "samples.slurm/gather.sbatch", cwd=trained)
    assert cluster.wait(rerun.stdout.strip(), 90)["JobState"] == "COMPLETED", read_logs(trained / "samples")
    assert len((trained / "samples/metadata.jsonl").read_text().splitlines()) == 40
    write_json(trained / "whole.json", sample_config("whole", 40))
    steelgen(cluster, trained, "sample", "-c", "whole.json")
    for number in range(40):
        name = f"samples/{number:06d}.png"
        assert (trained / "samples" / name).read_bytes() == (trained / "whole" / name).read_bytes()


def test_a_study_is_an_array_and_a_job_that_gathers(cluster, tmp_path):
    write_tiny_dataset(tmp_path / "tiny")
    profile = write_profile(tmp_path)
    study = {
        "dataset": "tiny",
        "output_dir": "study",
        "codes": ["RALLF000", "R2F000"],
        "architectures": ["unet"],
        "seeds": [0],
        "geometry": {"image_size": 16},
        "training": {"steps": 1, "batch_size": 2, "base_channels": 8},
    }
    write_json(tmp_path / "utility.json", study)
    command = ("slurm", "submit", "utility", "-c", "utility.json", "--array", "2", "--profile", profile)
    _, gather = job_ids(steelgen(cluster, tmp_path, *command))
    assert cluster.wait(gather, 180)["JobState"] == "COMPLETED", read_logs(tmp_path / "study")
    status = steelgen(cluster, tmp_path, "slurm", "status", "study")
    assert re.search(r"shard 2/2 +1 +1 +complete", status)
    assert re.search(r"gathered +1 +1 +complete", status)
    assert {path.name for path in (tmp_path / "study/cells").iterdir()} == {
        "RALLF000-unet-seed0.json",
        "R2F000-unet-seed0.json",
    }


def wait_for_start_then_kill(cluster, task):
    """Kills an array task once its process runs."""
    deadline = time.monotonic() + 60
    while cluster.job(task)["JobState"] == "PENDING" and time.monotonic() < deadline:
        time.sleep(0.2)
    cluster.run("scancel", "--signal=KILL", "--full", task)


def test_workflow_by_dependencies(cluster, cut_training, tmp_path):
    write_tiny_dataset(tmp_path / "tiny")
    (tmp_path / "more").mkdir()
    shutil.copyfile(next((tmp_path / "tiny/train/images").iterdir()), tmp_path / "more/unlabeled.png")
    profile = write_profile(tmp_path)
    write_json(
        tmp_path / "workflow.json",
        {
            "segment": {
                "dataset": "tiny",
                "unlabeled": "more",
                "output_dir": "segmenter",
                "image_size": 32,
                "crop_size": 32,
                "segmenter": {"architecture": "unet", "steps": 2, "num_levels": 1, "base_channels": 8},
            },
            "train": tiny_train_config("segmenter/dataset", "run", max_steps=2),
            "sample": sample_config("samples", 6),
            "evaluate": {
                "generated": "samples",
                "dataset": "tiny",
                "output_dir": "evaluation",
                "segmenter": {"steps": 2, "num_levels": 1, "base_channels": 8},
                "cache_dir": "cache",
            },
            "shards": 2,
        },
    )
    command = ("workflow", "-c", "workflow.json", "--slurm", "--profile", profile)
    segment_job, train_job, _, gather = job_ids(steelgen(cluster, tmp_path, *command))
    assert cluster.job(gather)["Dependency"].startswith("afterok:")
    assert "still in the queue" in steelgen(cluster, tmp_path, *command, code=2)
    job = cluster.wait(gather, 400)
    logs = read_logs(tmp_path / "run") + read_logs(tmp_path / "samples")
    assert job["JobState"] == "COMPLETED", logs
    assert all(cluster.job(done)["JobState"] == "COMPLETED" for done in (segment_job, train_job))
    assert (tmp_path / "segmenter/dataset/train/masks/unlabeled.png").is_file()
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"]
    output = steelgen(cluster, tmp_path, *command)
    assert output.count("skipped") == 4
    assert not job_ids(output)
    # The same files as on a workstation: there is nothing left to do there either.
    assert steelgen(cluster, tmp_path, "workflow", "-c", "workflow.json").count("skipped") == 4


def test_training_preempted_and_cancelled_goes_on(cluster, cut_training, tmp_path):
    """Preempted before its first checkpoint, cancelled, submitted again: still bit-identical."""
    dataset = write_tiny_dataset(tmp_path / "tiny")
    profile = write_profile(
        tmp_path,
        time="10",
        partition="low",
        cpus_per_task=3,
        sbatch=["--nodelist=steelgen-n2"],
        environment={"PYTHONPATH": str(Path(__file__).parent / "slow")},
    )
    write_json(tmp_path / "train.json", tiny_train_config(dataset, "run", max_steps=25))
    command = ("slurm", "submit", "train", "-c", "train.json", "--profile", profile)
    (job,) = job_ids(steelgen(cluster, tmp_path, *command))
    wait_for(lambda: count_logged(tmp_path / "run") > 1)
    urgent = ("--partition=urgent", "--nodelist=steelgen-n2", "--cpus-per-task=3", "--output=/dev/null")
    cluster.run("sbatch", *urgent, "--wrap=sleep 1", check=True)
    wait_for(lambda: cluster.job(job)["Restarts"] == "1")
    preempted = load_step(tmp_path / "run")
    assert preempted > 1

    wait_for(lambda: count_logged(tmp_path / "run") > preempted)
    cluster.run("scancel", job)
    ended = cluster.wait(job, 30)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1")
    assert load_step(tmp_path / "run") > preempted

    (again,) = job_ids(steelgen(cluster, tmp_path, *command))
    assert cluster.wait(again, 240)["JobState"] == "COMPLETED", read_logs(tmp_path / "run")
    train(parse_config(tiny_train_config(dataset, tmp_path / "whole", max_steps=25), TrainConfig), Recorder())
    assert_same_tensors(load_weights(tmp_path / "run", 25), load_weights(tmp_path / "whole", 25))


def wait_for(ready, seconds=120):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def count_logged(run):
    path = run / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def load_step(run):
    """The step that the run was last saved at."""
    return json.loads((run / "result.json").read_text())["global_step"]


def test_training_cut_by_its_time_limit_ends_bit_identical(cluster, cut_training, tmp_path):
    folder, job_id = cut_training
    job = cluster.wait(job_id, 240)
    log = read_logs(folder / "run")
    print(log)
    assert job["JobState"] == "COMPLETED", log
    assert int(job["Restarts"]) >= 2
    assert log.count("requeueing job") == int(job["Restarts"])
    whole = tiny_train_config(folder / "tiny", tmp_path / "whole", max_steps=CUT_STEPS)
    train(parse_config(whole, TrainConfig), Recorder())
    assert_same_tensors(load_weights(folder / "run", CUT_STEPS), load_weights(tmp_path / "whole", CUT_STEPS))
    steps = [json.loads(line)["step"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, CUT_STEPS + 1))
