"""describe and evaluate by latents: tables against the masks, figures against closed forms, pictures that are there."""

import csv
import itertools
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.train import TrainConfig
from steelgen.data.folder import save_mask
from steelgen.errors import InputError
from steelgen.evaluation.clusters import compute_adjusted_rand, compute_occupancy, find_clusters
from steelgen.evaluation.describe import describe
from steelgen.evaluation.describe_pictures import draw_layout, find_plane
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_mmd
from steelgen.training.setup import prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset

PICTURES = ("manifold.png", "scatter.png", "layout.png", "clusters.png")


def build_run(dataset, folder, **section):
    values = tiny_train_config(dataset, folder / "unused")
    values["generator"] = {"kind": "rvae", "encoder_channels": 4, "decoder_channels": 8, **section}
    del values["preview"]
    generator, _ = prepare_training(parse_config(values, TrainConfig))
    generator.save(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset with a temperature beside each micrograph, and a generator of its geometry."""
    folder = tmp_path_factory.mktemp("describe")
    dataset = write_tiny_dataset(folder / "tiny")
    rows = [
        {"file_name": path.relative_to(dataset).as_posix(), "temperature": 400 + 25 * (index % 2), "heat": f"h{index}"}
        for index, path in enumerate(sorted(dataset.glob("*/images/*.png")))
    ]
    (dataset / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataset, build_run(dataset, folder / "rvae")


def write_samples(dataset, folder, count=6, shape=12):
    """What `sample` would write: images at 2/3 of the micrographs' scale, each with an oblong island."""
    for name in ("samples", "labels"):
        (folder / name).mkdir(parents=True)
    (folder / "dataset.json").write_text((dataset / "dataset.json").read_text())
    cut = {"image_size": 32, "crop_size": 48, "in_channels": 1}
    (folder / "sampling.json").write_text(json.dumps(cut))
    rng = np.random.default_rng(0)
    for index in range(count):
        mask = np.zeros((32, 32), np.uint8)
        top, left = rng.integers(2, 16, 2)
        mask[top : top + shape, left : left + shape + index % 4] = 1
        image = (60 + 60 * mask + rng.normal(0, 8, mask.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / "samples" / f"{index:06d}.png")
        save_mask(folder / "labels" / f"{index:06d}.png", mask, [(0, 0, 0), (255, 0, 0), (0, 255, 0)])
    return folder


def test_the_table_holds_every_whole_island(trained, tmp_path):
    dataset, run = trained
    found = describe(run, dataset, tmp_path / "out", color_by="temperature", num_clusters=2)
    with open(tmp_path / "out/islands.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    expected = []
    for path in sorted(dataset.glob("*/masks/*.png")):
        mask = np.asarray(Image.open(path))
        for label, name in ((1, "island"), (2, "film")):
            labels, _ = ndimage.label(mask == label, np.ones((3, 3)))
            for number, box in enumerate(ndimage.find_objects(labels), start=1):
                ends = [(part.start > 0, part.stop < size) for part, size in zip(box, mask.shape, strict=True)]
                area = int((labels == number).sum())
                if np.all(ends) and area >= 30:
                    expected.append((f"{path.parents[1].name}/images/{path.name}", name, area))
    assert len(expected) > 5
    assert sorted((row["file"], row["class"], int(float(row["area_px"]))) for row in rows) == sorted(expected)
    assert found["islands"] == len(rows)
    assert {row["temperature"] for row in rows} == {"400", "425"}
    assert {row["cluster"] for row in rows} == {"0", "1"}
    assert all(
        np.isfinite(float(row[key])) for row in rows for key in ("z1", "z2", "angle_deg", "error", "aspect_ratio")
    )
    for name in (*PICTURES, "occupancy.png"):
        assert np.asarray(Image.open(tmp_path / "out" / name)).std() > 0, name
    pyarrow = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.read_table(tmp_path / "out/islands.parquet").to_pylist()
    assert [row["area_px"] for row in table] == [float(row["area_px"]) for row in rows]


def test_occupancy_counts_the_table(trained, tmp_path):
    dataset, run = trained
    describe(run, dataset, tmp_path / "out", color_by="temperature", num_clusters=2)
    with open(tmp_path / "out/islands.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with open(tmp_path / "out/occupancy.csv", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            own = [row for row in rows if row["temperature"] == line["temperature"]]
            share = sum(row["cluster"] == line["cluster"] for row in own) / len(own)
            assert int(line["islands"]) == len(own)
            assert float(line["share"]) == pytest.approx(share, abs=1e-5)
            assert float(line["low"]) <= share <= float(line["high"])


def test_samples_are_described_at_their_own_scale(trained, tmp_path):
    dataset, run = trained
    samples = write_samples(dataset, tmp_path / "samples")
    done = CliRunner().invoke(app, ["describe", str(run), str(samples), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["islands"] == 6
    with open(tmp_path / "out/islands.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {float(row["area_px"]) for row in rows} == {144.0, 156.0, 168.0, 180.0}
    assert {row["file"] for row in rows} == {f"samples/{index:06d}.png" for index in range(6)}
    # 30 px of the micrographs are 13 px of these images.
    small = write_samples(dataset, tmp_path / "small", count=4, shape=2)
    with pytest.raises(InputError, match="no islands with at least 30 px"):
        describe(run, small, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert describe(run, write_samples(dataset, tmp_path / "larger", shape=4), tmp_path / "few")["islands"] == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color_by": "strain"}, "--color-by strain: no such column for .*; known: temperature, heat, file"),
        ({"splits": ["heat"]}, r"no split 'heat' \(present: train, val, test\)"),
        ({"num_clusters": 1000}, "clusters 1000: there are only "),
    ],
)
def test_bad_requests_are_one_line(trained, tmp_path, options, message):
    dataset, run = trained
    with pytest.raises(InputError, match=message):
        describe(run, dataset, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_other_generators_describe_nothing(trained, tmp_path):
    values = tiny_train_config(trained[0], tmp_path / "unused")
    generator, _ = prepare_training(parse_config(values, TrainConfig))
    generator.save(tmp_path / "diffusion")
    with pytest.raises(InputError, match="kind semantic_diffusion cannot describe islands; use kind rvae"):
        describe(tmp_path / "diffusion", trained[0], tmp_path / "out")


def test_evaluate_takes_it_as_a_judge(trained, tmp_path):
    """Squares like the real ones lie nearer to them than slivers do."""
    dataset, run = trained
    values = []
    for name, shape in (("alike", 8), ("strange", 5)):
        config = {
            "generated": str(write_samples(dataset, tmp_path / name, 12, shape)),
            "dataset": str(dataset),
            "output_dir": str(tmp_path / f"report-{name}"),
            "descriptors": str(run),
            "num_real": 24,
            "segmenter": {"steps": 2, "base_channels": 8, "num_levels": 1},
            "memorization": {"max_images": 2},
            "cache_dir": str(tmp_path / "cache"),
        }
        result = evaluate(parse_config(config, EvaluateConfig))
        figures = [figure for figure in result["figures"] if figure["section"] == "descriptors"]
        assert [figure["compared"] for figure in figures] == ["generated vs test", "generated vs train"]
        assert figures[0]["floor"] is not None
        low, high = figures[0]["interval"]
        assert low <= figures[0]["value"] <= high
        values.append(figures[0]["value"])
        details = result["details"]["descriptors"]
        assert details["islands"]["generated"] == 12
        distances = [row["distance"] for row in details["farthest"]]
        assert len(distances) == 12
        assert distances == sorted(distances, reverse=True)
        assert "Islands unlike any real one" in (tmp_path / f"report-{name}/report.html").read_text()
    assert values[0] < values[1]


def test_latents_are_features(trained, tmp_path):
    dataset, run = trained
    with pytest.raises(InputError, match="it sees masks, which images have not"):
        build_extractor(f"rvae:{run}")
    extractor = build_extractor(f"rvae:{build_run(dataset, tmp_path / 'gray', channels='image', patches='grid')}")
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32), np.uint8)
    found = compute_features(images, extractor)
    assert found.shape == (5, 4)
    with pytest.raises(InputError, match="larger than the images"):
        compute_features(images[:, :8, :8], extractor)
    assert extractor.frechet_name == "FD-rVAE"
    turned = compute_features(np.rot90(images, axes=(1, 2)).copy(), extractor)
    np.testing.assert_allclose(turned, found, rtol=1e-3, atol=1e-3)


def test_mmd_of_two_normal_distributions():
    """E exp(-|x-y|²/2σ²) of x - y ~ N(m, 2I) is (σ²/(σ²+2))^(D/2) exp(-|m|²/(2(σ²+2)))."""
    rng = np.random.default_rng(0)
    first, second = rng.normal([1.0, 0.5], 1, (1500, 2)), rng.normal(0, 1, (1500, 2))
    squared = np.median([np.sum((a - b) ** 2) for a, b in itertools.combinations(second[:300], 2)])
    shrink = squared / (squared + 2)
    expected = 2 * shrink * (1 - np.exp(-1.25 / (2 * (squared + 2))))
    ones = np.ones((1, 1500))
    assert compute_mmd(first, second, ones, ones)[0] == pytest.approx(expected, rel=0.15)
    assert abs(compute_mmd(rng.normal(0, 1, (1500, 2)), second, ones, ones)[0]) < 0.002


def test_weights_of_mmd_leave_points_out():
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(20, 3)), rng.normal(size=(15, 3)) + 1
    weights = np.ones((2, 20))
    weights[1, 10:] = 0
    both = compute_mmd(first, second, weights, np.ones((2, 15)))
    assert both[1] == pytest.approx(compute_mmd(first[:10], second, np.ones((1, 10)), np.ones((1, 15)))[0])
    assert both[0] != pytest.approx(both[1])
    assert np.isnan(compute_mmd(first[:1], second, np.ones((1, 1)), np.ones((1, 15)))[0])


def test_clusters_are_found_and_ordered_by_size():
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [60, 30, 10])
    points = np.array([[0, 0], [0, 900], [5, 0]])[truth] + rng.normal(0, [0.3, 30], (100, 2))
    found = find_clusters(points, 3)
    assert np.array_equal(found.labels, truth)
    np.testing.assert_allclose(found.centers[2], points[90:].mean(axis=0))
    typical = found.list_typical(1, 5)
    assert set(typical) <= set(range(60, 90))
    assert (np.diff(found.distances[typical]) >= 0).all()
    with pytest.raises(InputError, match="only 1 distinct islands"):
        find_clusters(np.zeros((10, 2)), 3)


def test_adjusted_rand_counts_pairs():
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 3, 40), rng.integers(0, 4, 40)
    pairs = list(itertools.combinations(range(40), 2))
    alike = np.array([[part[a] == part[b] for a, b in pairs] for part in (first, second)])
    both, shares = (alike[0] & alike[1]).sum(), alike.sum(axis=1)
    expected = shares.prod() / len(pairs)
    assert compute_adjusted_rand(first, second) == pytest.approx((both - expected) / (shares.mean() - expected))
    assert compute_adjusted_rand(first, (first + 1) % 3) == 1


def test_occupancy_is_by_condition():
    found = compute_occupancy(np.array([0, 0, 1, 1, 1]), [500, 400, 400, 500, 500], 2)
    assert list(found) == [400, 500]
    assert [share for share, _ in found[500]] == pytest.approx([1 / 3, 2 / 3])


def test_planes_and_layouts():
    latents = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * [1, 5, 0.1]
    plane = find_plane(latents, np.ones(50))
    assert np.corrcoef(plane.places[:, 0], latents[:, 1])[0, 1] ** 2 > 0.99
    assert find_plane(latents[:, :1], np.full(50, 100.0)).places[:, 1].tolist() == [2.0] * 50
    two = find_plane(np.array([[0, 0], [1, 1], [0, 1], [1, 0]] * 50, np.float32), np.ones(200))
    sheet = draw_layout(two, lambda row: np.full((8, 8), 10 * (row % 4), np.uint8))
    # The second latent grows upwards: row 1 has two large ones, row 2 a small first and a large second one.
    corners = {(0, 0): 20, (0, -1): 10, (-1, 0): 0, (-1, -1): 30}
    assert {place: sheet[place][0] for place in corners} == corners


def test_the_command_prints_tables_or_nothing(trained, tmp_path):
    dataset, run = trained
    words = ["describe", str(run), str(dataset), "--split", "train", "--clusters", "2"]
    shown = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "shown")])
    assert shown.exit_code == 0, shown.output
    assert "agreement of clusters with class (adjusted Rand)" in shown.stdout
    assert "median area (px)" in shown.stdout
    quiet = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "quiet"), "--quiet"])
    assert quiet.exit_code == 0
    assert quiet.output == ""
    again = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "quiet")])
    assert again.exit_code == 2
