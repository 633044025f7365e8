"""Conditions: columns of metadata.jsonl that a generator is told of each micrograph."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.stats import iqr, spearmanr

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.conditions import Row, encode_rows, fit_conditions
from steelgen.data.folder import SPLITS, load_metadata, save_metadata
from steelgen.data.images import save_image
from steelgen.diffusion.randomness import CropRandomness
from steelgen.errors import InputError
from steelgen.generators import DrawRequest
from steelgen.generators.families import load_generator
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from steelgen.models.semantic_unet import SemanticUNet
from steelgen.sampling.conditions import ConditionSource, encode_conditions
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.training.loop import finetune, train
from steelgen.training.setup import prepare
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.models.test_semantic_unet import build_network, draw_inputs
from tests.training.test_loop import Recorder

ONE_STEP = {"num_inference_steps": 1}


def rows_of(**columns):
    count = len(next(iter(columns.values())))
    return [
        Row(f"m{i}.png", {name: values[i] for name, values in columns.items() if values[i] is not ...})
        for i in range(count)
    ]


def write_metadata(dataset, **columns):
    """Gives the micrographs of all splits, in order, the values of columns."""
    images = sorted(dataset.glob("*/images/*.png"), key=lambda path: (SPLITS.index(path.parts[-3]), path))
    rows = [{"file_name": str(path.relative_to(dataset))} for path in images]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=False):
            row[name] = value
    save_metadata(dataset, rows)
    return dataset


@pytest.fixture
def told(tiny_dataset):
    """4 train, 2 val, 2 test micrographs with a number, a number that spans decades, and a category."""
    return write_metadata(
        tiny_dataset,
        temperature=[700, 800, 900, 1000, 750, 850, 700, 700],
        hours=[0.1, 1, 10, 100, 1, 1, 1, 1],
        steel=["A", "B", "A", "B", "A", "A", "B", "B"],
    )


@pytest.fixture
def trained(told, tmp_path):
    values = tiny_train_config(told, tmp_path / "run")
    values["data"]["conditions"] = ["temperature", "hours", "steel"]
    train(parse_config(values, TrainConfig), Recorder())
    return values


def test_numbers_are_scaled_by_quartiles_and_categories_are_numbered():
    rng = np.random.default_rng(0)
    heat, hours = rng.normal(800, 50, 40).tolist(), np.exp(rng.normal(2, 3, 40)).tolist()
    steel = rng.choice(["X", "A"], 40).tolist()
    rows = rows_of(heat=heat, hours=hours, steel=steel)
    columns = fit_conditions(["heat", "hours", "steel"], [rows])
    encoded = encode_rows([rows], columns)
    # scipy's iqr(scale="normal") is the oracle of the spread.
    expected = [(np.array(v) - np.median(v)) / iqr(v, scale="normal") for v in (heat, np.log(hours))]
    assert np.allclose(encoded[:, 0], expected[0], rtol=1e-3)
    assert np.allclose(encoded[:, 1], expected[1], rtol=1e-3)
    assert [column.log for column in columns] == [False, True, False]
    assert columns[2].categories == ["A", "X"]
    assert encoded[:, 2].tolist() == [float(value == "X") for value in steel]


def test_known_conditions_keep_their_scale_and_gain_categories():
    known = fit_conditions(["heat", "steel"], [rows_of(heat=[1, 2, 3], steel=["B", "A", "B"])])
    later = fit_conditions(["heat", "steel"], [rows_of(heat=[5, 9], steel=["C", "A"])], known)
    assert (later[0].center, later[0].scale, later[0].low, later[0].high) == (2, known[0].scale, 1, 9)
    assert later[1].categories == ["A", "B", "C"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"heat": [1, 2]}, "no micrograph has 'x' in metadata.jsonl; columns: heat"),
        ({"x": [1, ..., 3]}, "m1.png: has no 'x' in metadata.jsonl, other micrographs of its dataset do"),
        ({"x": [5, 5, 5]}, "'x' is 5 for all micrographs; remove it"),
        ({"x": ["A", "A"]}, "'x' is .A. for all micrographs; remove it"),
        ({"x": [1, "hot", 3]}, "'x' mixes numbers and others, for example .hot."),
        ({"x": [f"s{i}" for i in range(256)]}, "'x' has 256 categories, more than 255"),
    ],
)
def test_columns_that_cannot_be_used_are_one_line(columns, message):
    with pytest.raises(InputError, match=message):
        fit_conditions(["x"], [rows_of(**columns)])


def test_unseen_values_are_one_line(told, tmp_path):
    columns = fit_conditions(["hours", "steel"], [rows_of(hours=[0.1, 100], steel=["A", "B"])])
    with pytest.raises(InputError, match=r"m0.png: steel .C. was not trained; known: A, B"):
        encode_rows([rows_of(hours=[1], steel=["C"])], columns)
    with pytest.raises(InputError, match=r"m0.png: hours is -1, must be a positive number"):
        encode_rows([rows_of(hours=[-1], steel=["A"])], columns)
    path = told / "metadata.jsonl"
    path.write_text(path.read_text().replace("900", "NaN"))
    values = tiny_train_config(told, tmp_path / "run")
    values["data"]["conditions"] = ["temperature"]
    with pytest.raises(InputError, match=r"metadata.jsonl:3: not valid JSON"):
        prepare(parse_config(values, TrainConfig))
    gan = {**values, "generator": {"kind": "gan", "architecture": "dcgan"}}
    gan["data"] = {**values["data"], "image_size": 16}
    with pytest.raises(InputError, match=r"data.conditions: not applicable to generator.kind gan"):
        parse_config(gan, TrainConfig)


def test_a_dataset_of_a_mixture_may_lack_a_column(told, tmp_path):
    plain = write_tiny_dataset(tmp_path / "plain", splits=(("train", 2),))
    values = tiny_train_config(told, tmp_path / "run")
    values["data"] = {"image_size": 16, "crop_size": 24, "conditions": ["temperature"]}
    values["data"]["datasets"] = [{"dataset": str(told)}, {"dataset": str(plain)}]
    _, micrographs = prepare(parse_config(values, TrainConfig))
    assert np.isnan(micrographs.conditions[:, 0]).tolist() == [False] * 4 + [True] * 2


def test_dropping_conditions_leaves_the_other_random_numbers_alone():
    plain, told = (CropRandomness(3, (1, 4, 4), 0.3, count) for count in (0, 2))
    rows = [(plain(n), told(n)) for n in range(3000)]
    assert all(torch.equal(a[key], b[key]) for a, b in rows[:50] for key in a)
    dropped = np.array([bool(b["dropped"]) for _, b in rows])
    gone = np.array([b["conditions_dropped"].numpy() for _, b in rows])
    assert np.allclose(gone[~dropped].mean(axis=0), 0.3, atol=0.04)
    assert np.isclose(gone[~dropped].all(axis=1).mean(), 0.09, atol=0.02)
    # With half of the dropped masks all conditions are dropped.
    assert np.isclose(gone[dropped].all(axis=1).mean(), 0.5 + 0.5 * 0.09, atol=0.06)


def test_the_null_condition_adds_nothing_and_each_value_counts():
    network, plain = build_network(conditions=(0, 3)), build_network()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if "condition" not in k})
    image, timesteps, mask = draw_inputs()
    nothing = torch.full((2, 2), torch.nan)
    assert torch.equal(network(image, timesteps, mask, conditions=nothing), plain(image, timesteps, mask))
    given = torch.tensor([[0.4, torch.nan], [torch.nan, 2]])
    output = network(image, timesteps, mask, conditions=given)
    assert not torch.allclose(output, plain(image, timesteps, mask))
    for row, column, value in ((0, 0, -0.4), (1, 1, 1)):
        other = given.clone()
        other[row, column] = value
        changed = network(image, timesteps, mask, conditions=other)
        assert not torch.allclose(changed[row], output[row])
        assert torch.allclose(changed[1 - row], output[1 - row])
    cached = network.compute_mask_features(mask, conditions=given)
    assert torch.equal(network(image, timesteps, mask_features=cached), output)


def test_a_new_network_ignores_conditions_at_first():
    torch.manual_seed(0)
    sizes = {"image_size": 16, "base_channels": 8, "channel_mult": (1, 2), "norm_groups": 4, "num_head_channels": 8}
    network = SemanticUNet(**sizes, conditions=(0,))
    torch.nn.init.normal_(network.conv_out.weight)
    image, timesteps, mask = draw_inputs(num_classes=2)
    one, other = (network(image, timesteps, mask, conditions=torch.full((2, 1), value)) for value in (-1.0, 2.0))
    assert torch.equal(one, other)


def test_guidance_extrapolates_from_neither_mask_nor_conditions(trained):
    generator = load_generator(Path(trained["run_dir"]))
    for parameter in generator.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    masks = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    conditions = torch.tensor([[0.5, -1.0, 0], [-2.0, torch.nan, 1]])

    def draw(scale, masks=masks, conditions=conditions):
        solver = SolverSection(num_inference_steps=1, guidance_scale=scale, guidance_interval=None)
        images = generator.draw(DrawRequest([1, 2], masks, solver=solver, conditions=conditions)).images
        return (images - generator.intensity[0]) / generator.intensity[1]

    nothing = draw(1.0, torch.full_like(masks, 255), None)
    inside = (draw(1.0).abs() < 1) & (nothing.abs() < 1)  # gray levels that are not clipped
    assert inside.float().mean() > 0.1
    expected = nothing + 1.2 * (draw(1.0) - nothing)
    guided = draw(1.2)
    inside &= guided.abs() < 1
    assert torch.allclose(guided[inside], expected[inside], atol=1e-3)


def test_windows_of_a_large_image_share_its_conditions(trained):
    """Images of two conditions in one batch, larger than the network, are those drawn one by one."""
    generator = load_generator(Path(trained["run_dir"]))
    for parameter in generator.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(2, 24, 32, dtype=torch.int64)
    conditions = torch.tensor([[0.5, -1.0, 0], [-2.0, 1.0, 1]])
    sampler = SemanticSampler(generator.network, generator.schedule)
    solver = SolverSection(num_inference_steps=2)
    both = sampler.sample_batch(masks, [1, 2], solver, conditions=conditions)
    for row in range(2):
        alone = sampler.sample_batch(masks[[row]], [row + 1], solver, conditions=conditions[[row]])
        assert torch.allclose(both[[row]], alone, atol=1e-4)
    assert not torch.allclose(both[[0]], sampler.sample_batch(masks[[0]], [1], solver), atol=1e-2)


def draw(values, out, **changes):
    settings = {"generator": values["run_dir"], "output_dir": str(out), "num_samples": 4, "solver": ONE_STEP}
    settings["mask_source"] = {"kind": "split", "dataset": values["data"]["dataset"], "split": "val"}
    sample(parse_config({**settings, **changes}, SampleConfig))
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_sampling_takes_values_ranges_and_those_of_the_micrograph_and_replays(trained, tmp_path):
    rows = draw(trained, tmp_path / "a", conditions={"temperature": [720, 2000], "hours": [0.1, 100], "steel": "B"})
    heats = [row["conditions"]["temperature"] for row in rows]
    assert len(set(heats)) == 4
    assert all(720 <= heat <= 2000 for heat in heats)
    assert {row["conditions"]["steel"] for row in rows} == {"B"}
    notes = json.loads((tmp_path / "a/sampling.json").read_text())["notes"]
    assert notes == ["conditions.temperature: 2000 lies outside the trained 700 to 1000"]
    assert replay(tmp_path / "a/metadata.jsonl", 2)[1] is True
    metadata = load_metadata(Path(trained["data"]["dataset"]))
    for row in draw(trained, tmp_path / "b", conditions="micrograph"):
        name = row["source_mask"].replace("masks", "images") + ".png"
        known = {key: metadata[name][key] for key in ("temperature", "hours", "steel")}
        assert row["conditions"] == known
    rows = draw(trained, tmp_path / "c", conditions={"steel": "A"})
    assert rows[0]["conditions"] == {"steel": "A"}
    assert "conditions" not in draw(trained, tmp_path / "d")[0]


def test_hours_from_a_range_are_uniform_in_their_logarithm(trained):
    values = {"generator": trained["run_dir"], "output_dir": "x", "mask_source": {"kind": "none"}}
    config = parse_config({**values, "conditions": {"hours": [0.1, 100], "temperature": [700, 900]}}, SampleConfig)
    source = ConditionSource(config, load_generator(Path(trained["run_dir"])))
    chosen = [source.choose(seed, None) for seed in range(400)]
    assert np.isclose(np.mean(np.log10([each["hours"] for each in chosen])), 0.5, atol=0.15)
    assert np.isclose(np.mean([each["temperature"] for each in chosen]), 800, atol=9)


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"heat": 3}, "conditions.heat: not a condition of the generator; known: temperature, hours, steel"),
        ({"steel": "C"}, "conditions: steel .C. was not trained; known: A, B"),
        ({"steel": [1, 2]}, "conditions.steel: a range of a category"),
        ({"temperature": "hot"}, "conditions: temperature is .hot., must be a number"),
        ({"hours": 0}, "conditions: hours is 0.*, must be a positive number"),
        ({"hours": [3, 1]}, "conditions.hours: the smaller limit must come first"),
    ],
)
def test_wrong_conditions_are_one_line_before_anything_is_written(trained, tmp_path, conditions, message):
    with pytest.raises(InputError, match=message):
        draw(trained, tmp_path / "out", conditions=conditions)
    assert not (tmp_path / "out").exists()


def test_conditions_need_a_generator_that_has_them(tiny_dataset, tmp_path):
    values = tiny_train_config(tiny_dataset, tmp_path / "plain")
    train(parse_config(values, TrainConfig), Recorder())
    with pytest.raises(InputError, match="the generator was trained without"):
        draw(values, tmp_path / "out", conditions={"steel": "A"})
    with pytest.raises(InputError, match="needs mask_source"):
        draw(values, tmp_path / "out", conditions="micrograph", mask_source={"kind": "none"})


def test_finetuning_keeps_adds_and_drops_conditions(trained, told, tmp_path):
    values = {name: value for name, value in trained.items() if name != "generator"}
    values |= {"checkpoint": trained["run_dir"], "run_dir": str(tmp_path / "tuned")}
    values["train"] = {**values["train"], "max_steps": 1, "warmup_steps": 10**6}  # a step of almost no length
    write_metadata(
        told, steel=["C", "B", "A", "B", "A", "A", "A", "A"], temperature=[1, 2, 3, 4] * 2, grade=list("xyxyxyxy")
    )
    values["data"] = {**values["data"], "conditions": ["steel", "grade", "temperature"]}
    finetune(parse_config(values, FinetuneConfig), Recorder())
    note = json.loads((tmp_path / "tuned/transfer.json").read_text())["note"]
    assert "conditions kept: steel, temperature; conditions new: grade; conditions dropped: hours" in note
    before, after = load_generator(Path(trained["run_dir"])), load_generator(tmp_path / "tuned")
    assert [condition.name for condition in after.conditions] == ["steel", "grade", "temperature"]
    assert after.conditions[0].categories == ["A", "B", "C"]
    assert after.conditions[2].scale == before.conditions[0].scale
    old, new = before.network.condition_embedding.layers, after.network.condition_embedding.layers
    assert torch.allclose(new[0][0].weight[:2], old[2][0].weight, atol=1e-6)
    assert torch.allclose(new[0][1].weight, old[2][1].weight, atol=1e-6)
    assert torch.allclose(new[2][0].weight, old[0][0].weight, atol=1e-6)


def test_changed_conditions_are_refused_when_resuming(trained, told):
    path = told / "metadata.jsonl"
    path.write_text(path.read_text().replace("900", "905"))
    with pytest.raises(InputError, match=r"data\.conditions was"):
        train(parse_config(trained, TrainConfig), Recorder(), resume=True)


@pytest.mark.parametrize("column", ["length", "kind"])
def test_the_scale_of_a_texture_follows_the_condition(tmp_path, column):
    """A made world: the correlation length of a random field is the number, or of two kinds; drawn images have it."""
    rng = np.random.default_rng(0)
    lengths = np.geomspace(0.3, 1.2, 12)
    for index, length in enumerate(lengths):
        field = gaussian_filter(rng.normal(size=(96, 96)), length, mode="wrap")
        save_image(
            tmp_path / f"world/train/images/m{index:02d}.png",
            (128 + 40 * field / field.std()).clip(0, 255).astype(np.uint8),
        )
    kinds = ["rough"] * 6 + ["smooth"] * 6
    write_metadata(tmp_path / "world", length=lengths.tolist(), kind=kinds)
    values = tiny_train_config(tmp_path / "world", tmp_path / "run", max_steps=200, train_batch_size=16, log_every=50)
    values["data"] |= {"crop_size": 16, "conditions": [column]}
    values["generator"]["unet"] |= {"dropout": 0.0, "attention_resolutions": []}
    values["train"] |= {"learning_rate": 2e-3, "ema_decay": 0.98, "warmup_steps": 20}
    values["preview"], values["validation"] = {"num_images": 0}, {"split": None}
    train(parse_config(values, TrainConfig), Recorder())
    generator = load_generator(tmp_path / "run")
    asked = np.geomspace(0.32, 1.15, 12)
    told = [float(each) for each in asked] if column == "length" else kinds
    conditions = encode_conditions(generator.conditions, [{column: value} for value in told])
    solver = SolverSection(num_inference_steps=8)

    def measure(conditions, first):
        images = generator.draw(DrawRequest(range(first, first + 12), solver=solver, conditions=conditions)).images
        return [_neighbor_correlation(image[0].numpy()) for image in images]

    measured = np.mean([measure(conditions, first) for first in (0, 12, 24)], axis=0)
    if column == "length":
        assert spearmanr(asked, measured).statistic > 0.9
    else:
        assert max(measured[:6]) < min(measured[6:])
    assert abs(spearmanr(asked, measure(None, 0)).statistic) < 0.7


def _neighbor_correlation(image):
    pairs = ((image[:, 1:], image[:, :-1]), (image[1:], image[:-1]))
    return np.mean([np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in pairs])
