"""The studio without its page: a generator, its training micrographs, and a samples folder."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.bundled import PREFIX, resolve_bundled
from steelgen.config.base import config_to_json
from steelgen.config.mask_sources import FolderMasks, SplitMasks
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import SolverSection
from steelgen.data.folder import list_splits, load_dataset_info
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.files import check_output_free
from steelgen.sampling.formats import (
    LAYOUTS,
    Origin,
    build_row,
    describe_origin,
    hash_config,
    load_sampling,
    save_pair,
    save_rows,
)
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator
from steelgen.sampling.mask_sources import build_mask_source
from steelgen.sampling.masks import MaskSource, SourceMask, load_source
from steelgen.sampling.samples_folder import describe_folder, save_contact_sheet

_SEARCH_SIZE = 32
"""Edge of a crop in the copy search, px, as in evaluation."""
_LAYOUT = LAYOUTS["folders"]


class Cancelled(Exception):
    """Sampling was cancelled."""


@dataclass(frozen=True)
class Nearest:
    """The crop of the training micrographs nearest to an image; see `evaluation.copy_search.Match`."""

    image: NDArray[np.uint8]
    """(S, S) or (S, S, 3), in the orientation of the generated image."""
    stem: str
    distance: float
    """Root mean square difference, in gray levels."""
    second_distance: float
    is_copy: bool


@dataclass(frozen=True)
class GeneratedPair:
    """A generated pair with the metadata of its row of metadata.jsonl."""

    image: NDArray[np.uint8]
    """(S, S) or (S, S, 3)."""
    mask: SourceMask
    seed: int
    origin: Origin
    nearest: Nearest | None
    """None without a dataset."""


class Studio:
    """Generates images for masks, one at a time, and saves pairs; thread-safe.

    Args:
        generator: run folder, checkpoint, export or bundled:NAME.
        dataset: dataset folder that the generator was trained on, for masks and for the copy search.
        out: samples folder; created when the first pair is saved.

    Attributes:
        sources: mask sources by name; may be empty.
        has_dataset: whether images are compared with training micrographs.

    Raises:
        InputError: if the generator, the dataset or the folder cannot be used.
    """

    def __init__(self, generator: Path, dataset: Path | None = None, out: Path = Path("studio-samples")) -> None:
        self.path, self.out = generator, out
        self.generator = prepare_generator(generator)
        self.info, self.geometry = self.generator.info, self.generator.geometry
        if not self.info.num_classes:
            raise InputError(f"{generator}: was trained without masks; the studio needs a generator trained with masks")
        self._origin = describe_origin(self._build_config(SolverSection()))
        self._generating, self._saving = Lock(), Lock()
        self.sources = self._build_sources(dataset)
        self.has_dataset = dataset is not None
        self._search: CopySearch | None = None
        if dataset is not None:
            training = load_source(dataset, "train", self.info, self.geometry.in_channels)
            self._search = CopySearch(training, self.geometry, min(_SEARCH_SIZE, self.geometry.image_size))
        self._check_out()

    def get_mask(self, source: str, number: int) -> SourceMask:
        """Returns mask number `number` ≥ 0 of one of the `sources`, with ignored pixels set to class 0.

        Raises:
            InputError: if the source does not exist.
        """
        if source not in self.sources:
            raise InputError(f"{source}: unknown mask source, must be one of: {', '.join(self.sources) or '(none)'}")
        found = self.sources[source].draw(number)
        return replace(found, mask=np.where(found.mask < self.info.num_classes, found.mask, 0).astype(np.uint8))

    def generate(
        self,
        mask: SourceMask,
        seeds: Sequence[int],
        guidance_scale: float = 2.0,
        report: Callable[[int, int], None] = lambda done, total: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedPair]:
        """Generates one image per seed and yields each as soon as it is finished.

        Args:
            mask: (image_size, image_size) class indices.
            guidance_scale: see `SolverSection`.
            report: called with (network evaluations done, expected: one per solver step), from any thread.
            is_cancelled: called before every network evaluation.

        Raises:
            Cancelled: if `is_cancelled` returns True.
        """
        solver = SolverSection(guidance_scale=guidance_scale)
        settings = config_to_json(self._build_config(solver))
        draw = {**self._origin.draw, "solver": settings["solver"]}
        origin = replace(self._origin, config_sha256=hash_config(settings), draw=draw)
        done, total = 0, len(seeds) * solver.num_inference_steps

        def before_evaluation(*_: Any) -> None:
            nonlocal done
            if is_cancelled():
                raise Cancelled
            report(min(done, total - 1), total)
            done += 1

        for seed in seeds:
            with self._generating:
                networks = self.generator.networks.values()
                hooks = [network.register_forward_pre_hook(before_evaluation) for network in networks]
                try:
                    image = generate_images(self.generator, SamplingBatch([mask.mask], [seed], solver))[0]
                finally:
                    for hook in hooks:
                        hook.remove()
            yield GeneratedPair(image, mask, seed, origin, self._find_nearest(image))
        report(total, total)

    def save(self, pairs: Sequence[GeneratedPair]) -> list[str]:
        """Adds pairs to the samples folder, in the format of `steelgen sample`, and returns their file stems.

        Raises:
            InputError: if the folder is in use for something else.
        """
        with self._saving:
            self._check_out()
            return self._save(self.out, pairs)

    def build_zip(self, pairs: Sequence[GeneratedPair]) -> bytes:
        """Builds a ZIP of a samples folder with only these pairs."""
        with tempfile.TemporaryDirectory() as folder:
            self._save(Path(folder) / "samples", pairs)
            return Path(shutil.make_archive(f"{folder}/archive", "zip", folder, "samples")).read_bytes()

    def _save(self, out: Path, pairs: Sequence[GeneratedPair]) -> list[str]:
        first = 0
        while _LAYOUT.sample_path(out, first).is_file():
            first += 1
        for number, pair in enumerate(pairs, first):
            row = build_row(_LAYOUT, pair.origin, number, pair.seed, pair.mask)
            save_pair(out, _LAYOUT, row, pair.mask, pair.image, self.info)
        count = first + len(pairs)
        config = self._build_config(SolverSection.model_validate(pairs[-1].origin.draw["solver"]), count)
        describe_folder(out, config, self.generator, self.generator.info, self._origin.models, 0, 1)
        save_rows(out, _LAYOUT, count)
        save_contact_sheet(out, _LAYOUT, count, self.info)
        return [_LAYOUT.name_stem(number) for number in range(first, count)]

    def _build_config(self, solver: SolverSection, count: int = 1) -> SampleConfig:
        """Builds the config of a `steelgen sample` run that would generate the folder from the masks in it."""
        masks = FolderMasks(folder=self.out / "labels")
        return SampleConfig(
            generator=self.path, output_dir=self.out, mask_source=masks, num_samples=count, batch_size=1, solver=solver
        )

    def _check_out(self) -> None:
        if not (self.out / "sampling.json").is_file():
            check_output_free(self.out)
            return
        own = config_to_json(self._build_config(SolverSection()))
        found = load_sampling(self.out).config.model_dump(exclude_unset=True)  # as written
        different = [key for key in ("mask_source", "generator") if found.get(key) != own[key]]
        if load_dataset_info(self.out).class_names != self.info.class_names:
            different.append("class_names")
        if different:
            raise InputError(f"{self.out}: contains samples with another {different[0]}; choose another folder (--out)")

    def _build_sources(self, dataset: Path | None) -> dict[str, MaskSource]:
        configs: dict[str, Any] = {}
        if str(self.path).startswith(PREFIX) and (resolve_bundled(self.path) / "masks").is_dir():
            configs["bundled masks"] = FolderMasks(folder=self.path / "masks", augment=True)
        for split in list_splits(dataset) if dataset else ():
            configs[f"{split} split"] = SplitMasks.model_validate({"dataset": dataset, "split": split})
        return {name: build_mask_source(config, self.info, self.geometry, seed=0) for name, config in configs.items()}

    def _find_nearest(self, image: NDArray[np.uint8]) -> Nearest | None:
        if self._search is None:
            return None
        match = self._search.find(image[None])[0]
        crop, stem = self._search.cut(match, self.geometry.image_size), self._search.micrographs.stems[match.micrograph]
        return Nearest(crop, stem, match.distance, match.second_distance, match.ratio < COPY_RATIO)
