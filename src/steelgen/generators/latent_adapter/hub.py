"""Where the pretrained base comes from: a folder, or the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

from steelgen.errors import InputError, first_line, quote_value
from steelgen.files import hash_files, load_json

_INDEX = "model_index.json"
_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}
"""Class of each network."""
_WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
"""Name of each network's weights file, without suffix."""
_HUB_NAME = re.compile(r"(?=.{3,96}$)(?!.*(--|\.\.))\w([\w.-]*\w)?/\w([\w.-]*\w)?")


def find_base(base: str) -> Path:
    """Finds the folder of a base: a folder, or a name on the hub that is in the Hugging Face cache.

    Raises:
        InputError: if it is neither; the message says what to fetch.
    """
    path = Path(base)
    if path.is_dir():
        return path
    if not _HUB_NAME.fullmatch(base):
        raise InputError(f"generator.base {base!r}: no such folder")
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(base, _INDEX)
    if not isinstance(index, str):
        raise InputError(
            f"generator.base {base!r}: no such folder, and not in the cache of the Hugging Face hub; run "
            f"`steelgen data fetch model {base}` where there is a network"
        )
    return Path(index).parent


def fetch_base(name: str, endpoint: str | None = None) -> Path:
    """Downloads a base from the Hugging Face hub into its cache; a second call resumes.

    Args:
        name: OWNER/NAME.
        endpoint: mirror to download from; None uses the hub.

    Raises:
        InputError: if the name is not one, or the download fails.
    """
    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"fetch model {name!r}: must be OWNER/NAME, as on the Hugging Face hub")
    from huggingface_hub import snapshot_download

    wanted = [_INDEX, "scheduler/*.json", "tokenizer/*", "*.md", "LICENSE*"]
    for part, weights in _WEIGHTS.items():
        wanted += [f"{part}/config.json", f"{part}/{weights}.safetensors"]
    try:
        path = Path(snapshot_download(name, allow_patterns=wanted, endpoint=endpoint))
    except Exception as error:  # the hub's exceptions share no base class
        raise InputError(f"fetch model {name}: {type(error).__name__}: {first_line(error)}") from None
    check_kind(path)
    return path


def check_kind(path: Path) -> None:
    """Raises InputError if a folder is not that of a Stable Diffusion 1.x or 2.x."""
    if not (path / _INDEX).is_file():
        raise InputError(f"{path}: not a model in the format of diffusers (no {_INDEX})")
    index = load_json(path / _INDEX)
    for name, kind in (_CLASSES | {"tokenizer": "CLIPTokenizer"}).items():
        found = index.get(name) if isinstance(index, dict) else None
        if not (isinstance(found, list) and found and str(found[-1]).removesuffix("Fast") == kind):
            made_by = index.get("_class_name", "unknown") if isinstance(index, dict) else "unknown"
            raise InputError(
                f"{path / _INDEX}: a model of another kind ({made_by}): {name} is {quote_value(found)}, must be {kind} "
                "as in Stable Diffusion 1.x and 2.x"
            )
    if index.get("text_encoder_2"):
        raise InputError(f"{path / _INDEX}: Stable Diffusion XL, which has two text encoders, is not supported")


def hash_base(path: Path) -> str:
    """SHA-256, in hex, of the weights of a base."""
    return hash_files(*(find_weights(path, part)[0] for part in _WEIGHTS))


def find_weights(base: Path, part: str) -> tuple[Path, str | None]:
    """Returns the weights file of a network of a base, and its variant for diffusers.

    Raises:
        InputError: if it or config.json is missing.
    """
    folder, file = base / part, _WEIGHTS[part]
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder / 'config.json'}: no such file; the base is incomplete, fetch it again")
    for variant in (None, "fp16"):
        path = folder / f"{file}{f'.{variant}' if variant else ''}.safetensors"
        if path.is_file():
            return path, variant
    raise InputError(f"{folder / file}.safetensors: no such file; the base is incomplete, fetch it again")
