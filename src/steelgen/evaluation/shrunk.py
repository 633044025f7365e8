"""Shrunk micrographs, compared with shrunk images at every position by FFT."""

from __future__ import annotations

import scipy.fft
import scipy.ndimage
import torch
import torch.nn.functional as F
from torch import Tensor


class ShrunkMicrograph:
    """One micrograph (H, W), shrunk so that `edge` becomes `size` px.

    Args:
        keep: keep the spectrum and the variances of windows, which take several times the memory of the shrunk
            micrograph.
    """

    def __init__(
        self, micrograph: int, gray: Tensor, edge: float, size: int, blur: float, device: str, keep: bool
    ) -> None:
        # The crop of a micrograph smaller than crop_size is its largest square.
        self.micrograph, self.edge = micrograph, min(edge, *gray.shape)
        self.shape = [max(size, round(whole * size / self.edge)) for whole in gray.shape]
        # The shape is rounded to whole pixels, so each axis has its own scale.
        self.scales = [whole / part for whole, part in zip(gray.shape, self.shape, strict=True)]
        self.small = shrink(gray, self.shape, blur).to(device)
        self._padded = tuple(scipy.fft.next_fast_len(part, real=True) for part in self.shape)
        self._keep = keep
        self._kept: dict[torch.Size, tuple[Tensor, Tensor]] = {}

    def compare(self, templates: Tensor, spectra: dict[tuple[int, ...], Tensor]) -> tuple[Tensor, Tensor]:
        """Compares K templates of mean 0, (K, h, w), with all windows; `spectra` caches theirs by padded shape.

        Returns:
            (K, H - h + 1, W - w + 1) covariances; (H - h + 1, W - w + 1) variances of the windows.
        """
        shape = templates.shape[1:]
        spectrum, variances = self._kept.get(shape) or self._prepare(shape)
        if self._padded not in spectra:
            spectra[self._padded] = torch.fft.rfft2(templates.to(variances.device), self._padded).conj()
        products = torch.fft.irfft2(spectrum * spectra[self._padded], self._padded)
        return products[:, : variances.shape[0], : variances.shape[1]] / shape.numel(), variances

    def _prepare(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """Spectrum, and (H - h + 1, W - w + 1) variances of the windows of a shape."""
        height, width = shape
        # Differences of large sums need double precision.
        tables = [_tabulate_sums(values) for values in (self.small.double(), self.small.double().square())]
        mean, square = (
            (sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width])
            / shape.numel()
            for sums in tables
        )
        prepared = torch.fft.rfft2(self.small, self._padded), (square - mean**2).clamp(min=0).float()
        if self._keep:
            self._kept[shape] = prepared
        return prepared


def shrink_windows(field: Tensor, corners: list[tuple[int, int]], edge: int, size: int) -> Tensor:
    """Shrinks square windows of a field (H, W) as `F.interpolate(mode="area")` does, by one summed-area table.

    Args:
        corners: K upper left corners (row, column).
        edge: edge of the windows, in px.

    Returns:
        (K, size, size).
    """
    places = torch.tensor(corners)
    (top, left), (bottom, right) = (place.tolist() for place in (places.min(dim=0).values, places.max(dim=0).values))
    part = field[top : bottom + edge, left : right + edge].double()
    sums = _tabulate_sums(part)
    start = torch.arange(size) * edge // size
    end = -(-(torch.arange(1, size + 1) * edge) // size)
    rows = [(places[:, :1] - top + bound)[:, :, None] for bound in (start, end)]
    columns = [(places[:, 1:] - left + bound)[:, None, :] for bound in (start, end)]
    total = (
        sums[rows[1], columns[1]] - sums[rows[0], columns[1]] - sums[rows[1], columns[0]] + sums[rows[0], columns[0]]
    )
    return (total / ((end - start)[:, None] * (end - start)[None, :])).float()


def _tabulate_sums(field: Tensor) -> Tensor:
    """Summed-area table of (H, W): (H + 1, W + 1)."""
    return F.pad(field.cumsum(dim=0).cumsum(dim=1), (1, 0, 1, 0))


def shrink(gray: Tensor, shape: list[int], blur: float) -> Tensor:
    """(H, W) → (h, w) float with mean 0; `blur` is the standard deviation of a Gaussian in px of the result."""
    small = F.interpolate(gray.float()[None, None], shape, mode="area")[0, 0]
    if blur:
        small = torch.from_numpy(scipy.ndimage.gaussian_filter(small.numpy(), blur, mode="nearest"))
    return small - small.mean()
