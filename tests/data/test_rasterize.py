"""Areas of rasterized polygons, compared to shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from steelgen.data.rasterize import compute_coverage
from tests.data.samples import rasterize_polygons

_SETTINGS = settings(max_examples=200, deadline=None)


def _islands(radius: float, count: int = 300) -> list[np.ndarray]:
    """Wobbly islands with the area of a disc of the radius, at random places in a 200x200 image."""
    rng = np.random.default_rng(0)
    islands = []
    for _ in range(count):
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        reach = 1 + 0.2 * np.sin(3 * angles + rng.uniform(0, 6)) + 0.1 * np.sin(5 * angles + rng.uniform(0, 6))
        ring = np.stack([reach * np.cos(angles), reach * np.sin(angles)], axis=1)
        ring *= radius * np.sqrt(np.pi / shapely.Polygon(ring).area)
        islands.append(ring + rng.uniform(90, 110, 2))
    return islands


@pytest.mark.parametrize(("radius", "limit"), [(3, 0.02), (6, 0.005), (12, 0.005), (50, 0.005)])
def test_every_island_keeps_its_area(radius: float, limit: float) -> None:
    for ring in _islands(radius):
        area = shapely.Polygon(ring).area
        assert abs(rasterize_polygons([ring], 200, 200).sum() - area) / area < limit


@given(
    st.lists(st.tuples(st.floats(-60, 100), st.floats(-60, 100)), min_size=3, max_size=12, unique=True),
)
@_SETTINGS
def test_area_within_the_image_is_shapelys(points: list[tuple[float, float]]) -> None:
    ring = shapely.convex_hull(shapely.MultiPoint(points))
    if ring.geom_type != "Polygon":
        return
    corners = np.array(ring.exterior.coords[:-1])
    clipped = shapely.intersection(ring, shapely.box(0, 0, 50, 40)).area
    assert compute_coverage([corners], 40, 50).share.sum() == pytest.approx(clipped, abs=1e-6)
    assert abs(rasterize_polygons([corners], 40, 50).sum() - clipped) <= 0.5 + 1e-6


def test_share_of_each_pixel() -> None:
    coverage = compute_coverage([np.array([(0.5, 0), (2, 0), (2, 1), (0.5, 1)])], 4, 4)
    np.testing.assert_allclose(coverage.share, [[0.5, 1]])
    assert (coverage.top, coverage.left) == (0, 0)


def test_vertex_at_the_width_is_the_right_edge() -> None:
    mask = rasterize_polygons([np.array([(45.0, 0), (50, 0), (50, 40), (45, 40)])], 40, 50)
    assert mask[:, 45:].all()
    assert mask.sum() == 5 * 40


def test_bow_tie_fills_both_wings_as_make_valid_does() -> None:
    ring = np.array([(5.0, 5), (45, 35), (45, 5), (5, 35)])
    repaired = shapely.make_valid(shapely.Polygon(ring))
    assert rasterize_polygons([ring], 40, 50).sum() == pytest.approx(repaired.area, abs=1)


def test_bridge_to_an_inner_ring_leaves_a_hole() -> None:
    ring = np.array([(5.0, 5), (35, 5), (35, 35), (5, 35), (5, 5), (15, 15), (15, 25), (25, 25), (25, 15), (15, 15)])
    mask = rasterize_polygons([ring], 40, 40)
    assert not mask[15:25, 15:25].any()
    assert mask.sum() == 30 * 30 - 10 * 10


def test_polygon_with_two_windings_is_filled_once() -> None:
    ring = np.array([(5.0, 5), (15, 5), (15, 15), (5, 15)] * 2)
    assert rasterize_polygons([ring], 40, 40).sum() == 100


@pytest.mark.parametrize(
    "ring", [[(3.0, 3), (9, 3), (6, 3)], [(100.0, 100), (200, 100), (200, 200)], [(-9.0, -9), (-1, -9), (-1, -1)], []]
)
def test_nothing_to_fill(ring: list[tuple[float, float]]) -> None:
    assert not rasterize_polygons([np.array(ring, float).reshape(-1, 2)], 40, 50).any()


def test_polygon_around_the_whole_image() -> None:
    assert rasterize_polygons([np.array([(-1e6, -1e6), (1e6, -1e6), (1e6, 1e6), (-1e6, 1e6)])], 40, 50).all()
