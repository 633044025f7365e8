"""State of a run folder during training, without a browser."""

import json

import pytest

from steelgen.errors import InputError
from tests.data.samples import save_noise

pytest.importorskip("gradio", reason="needs gradio: pip install 'steelgen[studio]'")

from steelgen.studio.run_tab import fingerprint, read_run


def begin_run(folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"max_steps": 40}}))
    return folder


def test_run_is_seen_as_it_goes(tmp_path):
    run = begin_run(tmp_path / "run")
    view = read_run(run)
    assert (view.step, view.max_steps, view.curves, view.previews, view.stopped_by) == (0, 40, None, [], None)
    before = fingerprint(run)
    assert fingerprint(run) == before
    lines = [json.dumps({"step": step, "loss": 1 / step}) for step in (10, 20)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 30, "lo')
    for name in ("step-000000", "step-000020", "copies-000020"):
        save_noise(run / "previews" / f"{name}.png")
    assert fingerprint(run) != before
    view = read_run(run)
    assert view.step == 20
    assert view.latest == {"loss": pytest.approx(0.05)}
    assert view.curves is not None
    assert [path.stem for path in view.previews] == ["step-000000", "step-000020"]
    assert [path.stem for path in view.copies] == ["copies-000020"]
    (run / "result.json").write_text(json.dumps({"global_step": 40, "stopped_by": "max_steps", "finished": True}))
    assert read_run(run).stopped_by == "max_steps"


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        read_run(tmp_path)
    (tmp_path / "config.json").write_text('{"train": []}')
    with pytest.raises(InputError, match=r"config\.json: train"):
        read_run(tmp_path)


def test_lines_without_figures_are_passed_over(tmp_path):
    run = begin_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(
        '7\n[]\n{"loss": 1}\n{"step": 5, "loss": "x", "kid": NaN}\n{"step": 6, "loss": 2}\n'
    )
    assert read_run(run).latest == {"loss": 2}
