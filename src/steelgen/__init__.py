"""steelgen: labeled synthetic micrographs from small annotated datasets."""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # diffusers finds the classes of a saved pipeline folder here; importing them costs seconds, so only on demand.
    if name == "SemanticUNet":
        from steelgen.models.semantic_unet import SemanticUNet

        return SemanticUNet
    if name == "SemanticDiffusionPipeline":
        from steelgen.generators.semantic_diffusion.pipeline import SemanticDiffusionPipeline

        return SemanticDiffusionPipeline
    raise AttributeError(f"module 'steelgen' has no attribute {name!r}")
