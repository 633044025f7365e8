"""Generators that ship with the package, each with masks to sample for and a model card."""

from __future__ import annotations

from pathlib import Path

from steelgen.errors import InputError

PREFIX = "bundled:"
"""Prefix of paths inside the package: bundled:uhcs is a generator, bundled:uhcs/masks a folder in it."""
BUNDLED_SAMPLE_CONFIG = Path(f"{PREFIX}uhcs/sample.json")
"""Config of `steelgen sample` without --config."""
_ASSETS = Path(__file__).parent / "assets"


def list_bundled() -> list[str]:
    """Lists the names of the bundled generators."""
    return sorted(folder.name for folder in _ASSETS.iterdir() if (folder / "generator.json").is_file())


def find_refining(generator: str) -> str | None:
    """Returns the refining stage that ships with a bundled generator, both as bundled:…; None without one."""
    name = generator.removeprefix(PREFIX)
    return f"{PREFIX}{name}/refine" if (_ASSETS / name / "refine" / "generator.json").is_file() else None


def resolve_bundled(path: Path) -> Path:
    """Resolves a path that starts with `PREFIX`; returns any other path unchanged.

    Raises:
        InputError: if there is no such bundled model or no such file in it.
    """
    if not str(path).startswith(PREFIX):
        return path
    name, *rest = Path(str(path).removeprefix(PREFIX)).parts or ("",)
    if name not in list_bundled():
        raise InputError(f"{path}: no such bundled model; available: {', '.join(list_bundled())}")
    found = _ASSETS.joinpath(name, *rest)
    if ".." in rest or not found.exists():
        raise InputError(f"{path}: the bundled model {name} contains no such file")
    return found
