"""Hugging Face datasets: an imagefolder, or Parquet files that contain the images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from PIL import Image

from steelgen.data.exporters.pairs import ExportPair
from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.images import save_micrograph
from steelgen.errors import InputError

_ROWS_AT_ONCE = 64
_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def write_hf(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes train/, validation/ and test/ with images/, masks/ and a metadata.jsonl that `datasets` reads.

    Columns: image, mask and provenance.
    """
    for split, group in groupby(pairs, key=lambda pair: pair.item.split):
        folder = out / _SPLITS[split]
        folder.mkdir()
        with open(folder / "metadata.jsonl", "w", encoding="utf-8") as lines:
            for pair in group:
                name = f"{pair.item.name}.png"
                save_micrograph(folder / "images" / name, pair.image)
                save_mask(folder / "masks" / name, pair.mask, info.palette)
                row = {"file_name": f"images/{name}", "mask_file_name": f"masks/{name}", **_describe(pair)}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes data/SPLIT-00000-of-00001.parquet with images and masks as PNG bytes.

    Raises:
        InputError: if pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise InputError("parquet: needs pyarrow; pip install 'steelgen[parquet]'") from None

    png = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    columns = {name: pyarrow.string() for name in ("name", "origin", "source", "parent", "generator", "model_sha256")}
    types = {"image": png, "mask": png, **columns, "seed": pyarrow.int64()}
    features: dict[str, Any] = {name: {"dtype": "string", "_type": "Value"} for name in columns}
    features |= {name: {"_type": "Image"} for name in ("image", "mask")}
    features["seed"] = {"dtype": "int64", "_type": "Value"}
    described = {"huggingface": json.dumps({"info": {"features": {name: features[name] for name in types}}})}
    schema = pyarrow.schema(list(types.items()), metadata=described)
    (out / "data").mkdir()
    for split, group in groupby(pairs, key=lambda pair: pair.item.split):
        path = out / "data" / f"{_SPLITS[split]}-00000-of-00001.parquet"
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            rows = map(_encode, group)
            while chunk := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(chunk, schema))


def _encode(pair: ExportPair) -> dict[str, Any]:
    image, mask, name = io.BytesIO(), io.BytesIO(), f"{pair.item.name}.png"
    Image.fromarray(pair.image).save(image, "PNG", compress_level=2)
    Image.fromarray(pair.mask).save(mask, "PNG")
    encoded = {"image": image, "mask": mask}
    return {**{key: {"bytes": data.getvalue(), "path": name} for key, data in encoded.items()}, **_describe(pair)}


def _describe(pair: ExportPair) -> dict[str, Any]:
    row = {key: value for key, value in pair.item.provenance.items() if key != "split"}
    # A column has one type: seeds are integers or null.
    return {**row, "seed": row["seed"] if isinstance(row["seed"], int) else None}
