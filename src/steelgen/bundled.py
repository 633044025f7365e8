"""Generators that come with the package, each with masks to draw for and a model card."""

from __future__ import annotations

from pathlib import Path

from steelgen.errors import InputError

PREFIX = "bundled:"
"""Paths in configs that begin so lie in the package: bundled:uhcs is a generator, bundled:uhcs/masks a folder in it."""
BUNDLED_SAMPLE_CONFIG = Path(f"{PREFIX}uhcs/sample.json")
"""What `steelgen sample` does without a config."""
_ASSETS = Path(__file__).parent / "assets"


def list_bundled() -> list[str]:
    """Names of the bundled generators."""
    return sorted(folder.name for folder in _ASSETS.iterdir() if (folder / "generator.json").is_file())


def resolve_bundled(path: Path) -> Path:
    """Where a path lies that may begin with `PREFIX`; any other is returned as it is.

    Raises:
        InputError: if no bundled model has that name, or it has no such file.
    """
    if not str(path).startswith(PREFIX):
        return path
    name, *rest = Path(str(path).removeprefix(PREFIX)).parts or ("",)
    if name not in list_bundled():
        raise InputError(f"{path}: no such bundled model; there are: {', '.join(list_bundled())}")
    found = _ASSETS.joinpath(name, *rest)
    if ".." in rest or not found.exists():
        raise InputError(f"{path}: the bundled model {name} holds nothing of that name")
    return found
