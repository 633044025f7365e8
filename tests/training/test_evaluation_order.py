"""A step is saved before it is evaluated: a failure costs no step, and a resumed run repeats the evaluation."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.checkpoint import list_checkpoints
from steelgen.training.held_out import HeldOutChecks
from steelgen.training.loop import train
from steelgen.training.preview import PreviewWriter
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


def evaluation_config(dataset, run_dir, **options):
    values = tiny_train_config(dataset, run_dir, max_steps=4, checkpoint_every=2, **options)
    values["preview"]["every"] = 2
    values["validation"] = {"every": 2, "crops": 8}
    values["measurement"] = {"every": 4, "num_images": 4, "searched_images": 2, "solver": {"num_inference_steps": 2}}
    return parse_config(values, TrainConfig)


def read_metrics(run_dir):
    """The lines of a run without what depends on the machine."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("images_per_second", "memory_gib")} for line in lines]


def test_a_preview_that_fails_is_a_warning(tiny_dataset, tmp_path, monkeypatch):
    def fail(self, step):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(PreviewWriter, "draw", fail)
    observer = Recorder()
    result = train(evaluation_config(tiny_dataset, tmp_path / "run"), observer)
    assert result.export.is_dir()
    warnings = [event for event in observer.events if event.startswith("warning: preview of step ")]
    assert len(warnings) == 3
    assert warnings[0] == "warning: preview of step 0 failed, training continues: CUDA out of memory."


@pytest.mark.parametrize("failing", ["measure", "preview"])
def test_a_step_that_could_not_be_looked_at_is_saved_and_looked_at_on_resuming(
    tiny_dataset, tmp_path, monkeypatch, failing
):
    train(evaluation_config(tiny_dataset, tmp_path / "whole"), Recorder())
    config, calls = evaluation_config(tiny_dataset, tmp_path / "cut"), []

    def die(self, *arguments):
        calls.append(arguments)
        if failing == "measure" or len(calls) == 2:
            raise KeyboardInterrupt
        return draw(self, *arguments)

    draw = PreviewWriter.draw
    owner, name = (HeldOutChecks, "run_due") if failing == "measure" else (PreviewWriter, "draw")
    run_due = HeldOutChecks.run_due
    monkeypatch.setattr(owner, name, die)
    if failing == "measure":
        monkeypatch.setattr(owner, name, lambda self: die(self) if self._state.step == 2 else run_due(self))
    with pytest.raises(KeyboardInterrupt):
        train(config, Recorder())
    saved = list_checkpoints(tmp_path / "cut")[-1]
    assert saved.name == "step-000002"
    assert json.loads((saved / "training.json").read_text())["progress"]["unseen"] is not None
    monkeypatch.undo()
    train(config, Recorder(), resume=True)
    assert read_metrics(tmp_path / "cut") == read_metrics(tmp_path / "whole")
    for picture in (tmp_path / "whole/previews").glob("step-*.png"):
        assert (tmp_path / "cut/previews" / picture.name).read_bytes() == picture.read_bytes()
    one, other = (load_file(next((tmp_path / name / "export").rglob("*.safetensors"))) for name in ("whole", "cut"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    best = [json.loads((tmp_path / name / "best/selection.json").read_text()) for name in ("whole", "cut")]
    assert best[0] == best[1]


def test_compiled_graphs_outlive_checkpoints_previews_and_validation(tiny_dataset, tmp_path, monkeypatch):
    """Each training step runs the graph made for the first one: save_pretrained, evaluation and previews make none."""
    graphs, calls = [], [0]

    def counting(graph, inputs):
        graphs.append(graph)

        def run(*arguments):
            calls[0] += 1
            return graph.forward(*arguments)

        return run

    compile_module = nn.Module.compile
    chosen = []
    monkeypatch.setattr(
        nn.Module, "compile", lambda self, backend: chosen.append(backend) or compile_module(self, backend=counting)
    )
    torch.compiler.reset()
    config = evaluation_config(tiny_dataset, tmp_path / "run", compile="cudagraphs", gradient_accumulation_steps=2)
    result = train(config, Recorder())
    assert result.global_step == 4
    assert (len(graphs), calls[0]) == (1, 8)
    assert chosen == ["cudagraphs"]
