"""Sampling from the semantic U-Net."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.devices import is_compiled, map_on_single_threads, map_windows, randn_by_seed
from steelgen.diffusion.guidance import Coarse, Guide, GuidedNetwork
from steelgen.diffusion.known import Known
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.noise import NoiseSchedule
from steelgen.diffusion.randomness import build_noise_sources
from steelgen.diffusion.solvers import build_solver
from steelgen.diffusion.windows import WindowLayout
from steelgen.models.semantic_unet import SemanticUNet
from steelgen.models.spade import shrink_one_hot


class SemanticSampler:
    """Generates micrographs for masks of class indices.

    Args:
        unet: the network.
        schedule: the noise schedule of its training.
        mask_factor: pixels of the masks per pixel of the network, along an edge.
    """

    def __init__(self, unet: SemanticUNet, schedule: NoiseSchedule, mask_factor: int = 1) -> None:
        self.unet, self.schedule, self._mask_factor = unet, schedule, mask_factor

    def __call__(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: AnySolverSection | None = None,
        *,
        noise: Tensor | None = None,
        start_images: Tensor | None = None,
        strength: float = 1.0,
        value_range: tuple[float, float] | None = None,
        weak_unet: SemanticUNet | None = None,
        coarse: Coarse | None = None,
        conditions: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """Generates one image per mask; see `sample_batch` for the arguments.

        On the CPU each image is computed by itself, because CPU kernels order their sums by the batch size and images
        would differ in the last bit between batch sizes. Images of the network's size run in parallel, one thread
        each, and share the solver's mask_cache_gib; larger images run window by window.
        """
        solver = solver or SolverSection()

        def generate(rows: slice, cache_share: float = 1.0) -> Tensor:
            own_noise, start, told = (
                None if tensor is None else tensor[rows] for tensor in (noise, start_images, conditions)
            )
            return self.sample_batch(
                masks[rows],
                seeds[rows],
                solver,
                own_noise,
                start,
                strength,
                value_range,
                weak_unet,
                cache_share,
                coarse.select(rows) if coarse else None,
                told,
                known.select(rows) if known else None,
            )

        if self.unet.device.type != "cpu":
            return generate(slice(None))
        rows = [slice(index, index + 1) for index in range(len(seeds))]
        size = self._find_size(masks)
        if not self._fits_network(size, solver) or is_compiled(self.unet):
            return torch.cat([generate(row) for row in rows])
        share = 1 / torch.get_num_threads()
        return torch.cat(map_on_single_threads(lambda index: generate(rows[index], share), len(rows)))

    @torch.inference_mode()
    def sample_batch(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: AnySolverSection,
        noise: Tensor | None = None,
        start_images: Tensor | None = None,
        strength: float = 1.0,
        value_range: tuple[float, float] | None = None,
        weak_unet: SemanticUNet | None = None,
        cache_share: float = 1.0,
        coarse: Coarse | None = None,
        conditions: Tensor | None = None,
        known: Known | None = None,
    ) -> Tensor:
        """Generates one image per mask in one batch; the host waits for the device at most once per step.

        Images larger than the network's image_size are computed in overlapping windows (see `WindowLayout`).

        Args:
            masks: (N, H, W) int64 class indices; indices ≥ num_classes are ignored pixels.
            seeds: N seeds; an image depends on its mask and seed only, not on the batch.
            solver: solver and guidance.
            noise: (N, C, H, W) standard normal noise that replaces the seeds' noise.
            start_images, strength: images to start from; see `RespacedSolver.start`.
            value_range: limits of the gray levels in the network's units; None does not clip.
            weak_unet: the weaker network of autoguidance.
            cache_share: share of the solver's mask_cache_gib for this call.
            coarse: coarse images of a refining network.
            conditions: (N, K); see `ConditionEmbedding`. None is the null condition.
            known: pixels or mean to keep, in the network's units.

        Returns:
            (N, in_channels, ceil(H / mask_factor), ceil(W / mask_factor)) float32, in the network's units.
        """
        config, device = self.unet.config, self.unet.device
        guide = Guide.of(solver, weak_unet)
        conditions = None if conditions is None else conditions.to(device)
        max_bytes = cache_share * solver.mask_cache_gib * 2**30
        if coarse is not None:
            coarse = Coarse(*(tensor.to(device) for tensor in coarse))
        size = self._find_size(masks)
        if self._fits_network(size, solver):
            one_hot = self._encode_masks(masks).to(self.unet.dtype)
            network = GuidedNetwork(self.unet, one_hot, guide, max_bytes, coarse, conditions)
            predict: Callable[..., Tensor] = network.predict
        else:
            predict = self._build_window_predictor(masks, coarse, guide, max_bytes, solver, conditions)
        steps = build_solver(solver, self.schedule, self.unet, value_range)
        shape = (config.in_channels, *size)
        noise = (randn_by_seed(shape, seeds) if noise is None else noise).to(device)
        sources = build_noise_sources(shape, seeds)
        first, image = steps.start(noise, None if start_images is None else start_images.to(device), strength)
        times, kind = steps.times.to(device), self.schedule.prediction_type
        known = known.to(device) if known else None
        for step in range(first, len(times)):
            time, sigma = times[step : step + 1], steps.sigmas[step]

            def predict_step(noisy: Tensor, time: Tensor = time, sigma: float = sigma) -> Tensor:
                output = predict(noisy, time, guide.acts_at(sigma))
                return known.correct(output, noisy, sigma, kind) if known else output

            image = steps.advance(image, step, predict_step, sources)
        return image

    def _find_size(self, masks: Tensor) -> tuple[int, int]:
        """Height and width of the images in pixels of the network."""
        return -(-int(masks.shape[1]) // self._mask_factor), -(-int(masks.shape[2]) // self._mask_factor)

    def _fits_network(self, size: tuple[int, int], solver: AnySolverSection) -> bool:
        """Whether images are computed without windows."""
        return size == (self.unet.config.image_size,) * 2 and not solver.periodic

    def _encode_masks(self, masks: Tensor) -> Tensor:
        """One-hot masks (N, num_classes, h, w) in pixels of the network."""
        config = self.unet.config
        one_hot = one_hot_with_dropout(masks.to(self.unet.device), config.num_classes)
        return one_hot if self._mask_factor == 1 else shrink_one_hot(one_hot, self._mask_factor, config.mask_resize)

    def _build_window_predictor(
        self,
        masks: Tensor,
        coarse: Coarse | None,
        guide: Guide,
        max_bytes: float,
        solver: AnySolverSection,
        conditions: Tensor | None,
    ) -> Callable[[Tensor, Tensor, bool], Tensor]:
        """Like `GuidedNetwork.predict`, for masks (N, H, W) larger than the network's image_size.

        Mask features of as many windows as fit into `max_bytes` are cached; memory for the others does not grow with
        the image.
        """
        unet, edge, classes = self.unet, self.unet.config.image_size, self.unet.config.num_classes
        height, width = self._find_size(masks)
        layout = WindowLayout(height, width, edge, solver.window_overlap, solver.periodic, unet.device)
        if self._mask_factor == 1:
            indices = masks[:, None].clamp(max=classes).to(unet.device, torch.uint8)  # pixels of no class are all alike
            mask_pieces = layout.cut(indices)[:, 0]  # (N·windows, edge, edge)
        else:
            mask_pieces = layout.cut(self._encode_masks(masks))  # (N·windows, num_classes, edge, edge)
        coarse_pieces = None
        if coarse is not None:
            noise = coarse.noise.repeat_interleave(len(layout.origins))
            coarse_pieces = Coarse(layout.cut(coarse.images), noise)
        told = None if conditions is None else conditions.repeat_interleave(len(layout.origins), dim=0)
        chunk, on_cpu = 1, unet.device.type == "cpu"
        if not on_cpu:
            passes = 1 if guide.scale == 1 else 2
            chunk = max(1, int(solver.window_memory_gib * 2**30 / (passes * unet.estimate_activation_bytes())))
        rows = [slice(start, start + chunk) for start in range(0, len(mask_pieces), chunk)]

        def build(part: slice) -> GuidedNetwork:
            # Contiguous, because CPU kernels of another memory format round differently.
            own = mask_pieces[part]
            one_hot = (
                (one_hot_with_dropout(own, classes) if self._mask_factor == 1 else own).to(unet.dtype).contiguous()
            )
            seen = coarse_pieces.select(part) if coarse_pieces else None
            return GuidedNetwork(unet, one_hot, guide, coarse=seen, conditions=None if told is None else told[part])

        networks = build_within(max_bytes, build, rows)

        def predict(image: Tensor, time: Tensor, guided: bool) -> Tensor:
            pieces = layout.cut(image)

            def predict_part(index: int) -> Tensor:
                network = networks[index] if index < len(networks) else build(rows[index])
                return network.predict(pieces[rows[index]], time, guided)

            return layout.blend(map_windows(predict_part, len(rows), unet))

        return predict


def build_within(
    max_bytes: float, build: Callable[[slice], GuidedNetwork], rows: Sequence[slice]
) -> list[GuidedNetwork]:
    """Builds the networks of the first rows, as many as fit into `max_bytes`."""
    networks: list[GuidedNetwork] = []
    for part in rows:
        network = build(part)
        max_bytes -= network.cached_bytes
        if max_bytes < 0:
            break
        networks.append(network)
    return networks
