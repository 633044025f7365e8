"""CVAT for images 1.1: images/NAME.png and annotations.xml."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import XMLGenerator
from xml.sax.xmlreader import AttributesImpl

import numpy as np

from steelgen.data.exporters.pairs import ExportPair, color_classes, label_classes
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.data.outlines import Region, iterate_regions


def write_cvat(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes a polygon per island, or a mask if it has holes or several parts, which CVAT's polygons do not support.

    Ignored pixels are labeled `__ignore__`; the subset of an image is its split.
    """
    labels, colors = label_classes(info), color_classes(info)
    with open(out / "annotations.xml", "w", encoding="utf-8") as file:
        xml = XMLGenerator(file, encoding="utf-8", short_empty_elements=True)
        xml.startDocument()
        with _element(xml, "annotations"):
            with _element(xml, "version"):
                xml.characters("1.1")
            with _element(xml, "meta"), _element(xml, "task"), _element(xml, "labels"):
                for index in labels:
                    _write_label(xml, labels[index], "#{:02x}{:02x}{:02x}".format(*colors[index]))
            for number, pair in enumerate(pairs):
                name = f"{pair.item.name}.png"
                save_micrograph(out / "images" / name, pair.image)
                height, width = pair.mask.shape
                with _element(xml, "image", id=number, name=name, subset=pair.item.split, width=width, height=height):
                    for region in iterate_regions(pair.mask, labels, pair.instances):
                        _write_region(xml, region, labels[region.class_index])
                file.write("\n")
        xml.endDocument()


@contextmanager
def _element(xml: XMLGenerator, name: str, /, **attributes: object) -> Iterator[None]:
    xml.startElement(name, AttributesImpl({key: str(value) for key, value in attributes.items()}))
    yield
    xml.endElement(name)


def _write_label(xml: XMLGenerator, name: str, color: str) -> None:
    with _element(xml, "label"):
        for element, text in (("name", name), ("color", color)):
            with _element(xml, element):
                xml.characters(text)
        with _element(xml, "attributes"):
            pass


def _write_region(xml: XMLGenerator, region: Region, label: str) -> None:
    rings = region.trace_rings()
    shared = {"label": label, "source": "file", "occluded": 0, "z_order": 0}
    if len(rings) == 1:
        with _element(xml, "polygon", points=";".join(f"{x},{y}" for x, y in rings[0]), **shared):
            return
    # CVAT's masks are run lengths along the rows of their box, background first.
    changes = np.flatnonzero(np.diff(region.pixels.ravel().astype(np.int8), prepend=0))
    counts = np.diff(changes, prepend=0, append=region.pixels.size)
    height, width = region.pixels.shape
    box = {"left": region.left, "top": region.top, "width": width, "height": height}
    with _element(xml, "mask", rle=", ".join(map(str, counts)), **box, **shared):
        pass
