"""What the page does, without the page: a generator, perhaps the micrographs it has learned, a folder for what is kept.

Usable from Python alone:

    studio = Studio(Path("bundled:uhcs"), out=Path("kept"))
    for drawn in studio.draw(studio.take_mask("bundled masks", 0), seeds=[0, 1]):
        studio.keep([drawn])
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.bundled import PREFIX, resolve_bundled
from steelgen.config.base import config_to_json
from steelgen.config.sample import FolderMasks, SampleConfig, SplitMasks
from steelgen.config.solver import SolverSection
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import list_splits, load_dataset_info
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.files import check_output_free
from steelgen.sampling.formats import (
    LAYOUTS,
    Origin,
    build_row,
    describe_models,
    describe_origin,
    hash_config,
    load_sampling,
    save_pair,
    save_rows,
)
from steelgen.sampling.generate import generate_images, prepare_generator
from steelgen.sampling.mask_sources import build_mask_source
from steelgen.sampling.masks import MaskSource, SourceMask, load_source_info
from steelgen.sampling.sample import describe_folder, save_contact_sheet

_SEARCH_SIZE = 32
"""Edge at which neighbors are looked for, px, as in evaluation."""
_LAYOUT = LAYOUTS["folders"]


class Cancelled(Exception):
    """Drawing was cut short because nobody waits for it any more."""


@dataclass(frozen=True)
class Nearest:
    """The place in the training micrographs that an image is nearest to; see `evaluation.memorization.Match`."""

    image: NDArray[np.uint8]
    """(S, S) or (S, S, 3), turned the way of the drawn image."""
    stem: str
    distance: float
    """Root mean square, in gray levels."""
    second_distance: float
    is_copy: bool


@dataclass(frozen=True)
class GeneratedPair:
    """One drawn pair, with all that its row of metadata.jsonl needs."""

    image: NDArray[np.uint8]
    """(S, S) or (S, S, 3)."""
    mask: SourceMask
    seed: int
    origin: Origin
    nearest: Nearest | None
    """None without a dataset."""


class Studio:
    """Draws for masks, one request after the other; safe to call from many threads.

    Args:
        generator: a run folder, a checkpoint, an export or bundled:NAME.
        dataset: the dataset folder that it was trained on, to take masks from and to look for copies in.
        out: the folder of samples that pairs are kept in; made with the first of them.

    Raises:
        InputError: if the generator, the dataset or the folder cannot be used.
    """

    def __init__(self, generator: Path, dataset: Path | None = None, out: Path = Path("studio-samples")) -> None:
        self.path, self.out = generator, out
        self.generator = prepare_generator(generator)
        self.info, self.geometry = self.generator.info, self.generator.geometry
        if not self.info.num_classes:
            raise InputError(f"{generator}: was trained without masks; there is nothing to paint for it")
        self._origin = describe_origin(self._configure(SolverSection(), 1))
        self._drawing, self._keeping = Lock(), Lock()
        self._sources = self._build_sources(dataset)
        self._search: CopySearch | None = None
        if dataset is not None:
            load_source_info(dataset, self.info)
            training = load_micrographs(dataset, "train", self.geometry.in_channels)
            self._search = CopySearch(training, self.geometry, min(_SEARCH_SIZE, self.geometry.image_size))
        self._check_out()

    @property
    def sources(self) -> list[str]:
        """What `take_mask` can take masks from; perhaps nothing."""
        return list(self._sources)

    @property
    def knows_training(self) -> bool:
        """Whether there are micrographs to look for copies in."""
        return self._search is not None

    def take_mask(self, source: str, number: int) -> SourceMask:
        """Mask number `number` ≥ 0 of one of the `sources`, without ignored pixels; with its micrograph, if any.

        Raises:
            InputError: if there is no such source.
        """
        if source not in self._sources:
            raise InputError(f"{source}: no such source of masks; there are: {', '.join(self._sources) or 'none'}")
        taken = self._sources[source].draw(number)
        return replace(taken, mask=np.where(taken.mask < self.info.num_classes, taken.mask, 0).astype(np.uint8))

    def draw(
        self,
        mask: SourceMask,
        seeds: Sequence[int],
        guidance_scale: float = 1.5,
        report: Callable[[int, int], None] = lambda done, total: None,
        is_cancelled: Callable[[], bool] = lambda: False,
    ) -> Iterator[GeneratedPair]:
        """Draws one image a seed, each handed over as soon as it is there.

        Args:
            mask: (image_size, image_size) class indices.
            seeds: of the variants.
            guidance_scale: see `SolverSection`.
            report: told (network evaluations done, expected: one a step of the solver), from any thread.
            is_cancelled: asked before every evaluation.

        Raises:
            Cancelled: as soon as `is_cancelled` says so.
        """
        solver = SolverSection(guidance_scale=guidance_scale)
        settings = config_to_json(self._configure(solver, 1))
        origin = replace(
            self._origin,
            config_sha256=hash_config(settings),
            draw={**self._origin.draw, "solver": settings["solver"]},
        )
        done, total = 0, len(seeds) * solver.num_inference_steps

        def before_evaluation(*_: Any) -> None:
            nonlocal done
            if is_cancelled():
                raise Cancelled
            report(min(done, total - 1), total)
            done += 1

        for seed in seeds:
            with self._drawing:
                networks = self.generator.networks.values()
                hooks = [network.register_forward_pre_hook(before_evaluation) for network in networks]
                try:
                    image = generate_images(self.generator, [mask.mask], [seed], solver)[0]
                finally:
                    for hook in hooks:
                        hook.remove()
            yield GeneratedPair(image, mask, seed, origin, self._find_nearest(image))
        report(total, total)

    def keep(self, pairs: Sequence[GeneratedPair]) -> list[str]:
        """Adds pairs to the folder of samples, as `steelgen sample` writes them.

        Returns:
            Their file stems.

        Raises:
            InputError: if the folder is in use for anything else.
        """
        with self._keeping:
            self._check_out()
            return self._save(self.out, pairs)

    def pack(self, pairs: Sequence[GeneratedPair]) -> bytes:
        """A ZIP of a folder of samples with these pairs alone."""
        buffer = io.BytesIO()
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            out = Path(folder) / "samples"
            self._save(out, pairs)
            for path in sorted(out.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(out.parent))
        return buffer.getvalue()

    def _save(self, out: Path, pairs: Sequence[GeneratedPair]) -> list[str]:
        count, stems = 0, []
        while _LAYOUT.sample_path(out, count).is_file():
            count += 1
        for drawn in pairs:
            row = build_row(_LAYOUT, drawn.origin, count, drawn.seed, drawn.mask)
            save_pair(out, _LAYOUT, row, drawn.mask, drawn.image, self.info)
            stems.append(_LAYOUT.name_stem(count))
            count += 1
        solver = SolverSection.model_validate(pairs[-1].origin.draw["solver"])
        config = self._configure(solver, count)
        describe_folder(out, config, self.generator, self.generator.info, describe_models(config, self._origin), 0, 1)
        save_rows(out, _LAYOUT, count)
        save_contact_sheet(out, _LAYOUT, count, self.info)
        return stems

    def _configure(self, solver: SolverSection, count: int) -> SampleConfig:
        """What `steelgen sample` would be told to draw the folder: its masks are those that lie in it."""
        masks = FolderMasks(folder=self.out / "labels")
        return SampleConfig(
            generator=self.path, output_dir=self.out, mask_source=masks, num_samples=count, batch_size=1, solver=solver
        )

    def _check_out(self) -> None:
        if not (self.out / "sampling.json").is_file():
            check_output_free(self.out)
            return
        own, begun = config_to_json(self._configure(SolverSection(), 1)), load_sampling(self.out).config.model_dump()
        for key in ("mask_source", "generator"):
            if begun.get(key) != own[key]:
                raise InputError(f"{self.out}: holds samples with another {key}; name another folder to keep pairs in")
        if load_dataset_info(self.out).class_names != self.info.class_names:
            raise InputError(f"{self.out}: holds samples of other classes; name another folder to keep pairs in")

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
        return Nearest(
            self._search.cut(match, self.geometry.image_size),
            self._search.micrographs.stems[match.micrograph],
            match.distance,
            match.second_distance,
            match.ratio < COPY_RATIO,
        )
