"""Changes between the config of an output folder and that of a later call: listed, refused or recorded."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from steelgen.config.base import Section, config_to_json, parse_config
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, save_json

CHANGES_FILE = "changes.jsonl"
"""Record of allowed changes in an output folder: time, field, value before and now."""
_MAX_NAMED = 3
"""Changes that a message names."""


@dataclass(frozen=True)
class Change:
    """A config field, or the digest of an input, that differs between two calls."""

    field: str
    """Dotted name, as for --set."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field} was {json.dumps(self.before)}, is now {json.dumps(self.now)}"


def refresh_config(written: dict[str, Any], kind: type[Section]) -> dict[str, Any]:
    """Adds the defaults of newer fields to a config of an older steelgen; returns an invalid config unchanged."""
    try:
        return config_to_json(parse_config(written, kind))
    except InputError:
        return written


def list_changes(before: Any, now: Any, field: str = "") -> Iterator[Change]:
    """Yields the fields in which two JSON values differ, sorted by name; a missing field counts as null."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from list_changes(before.get(key), now.get(key), f"{field}.{key}" if field else key)
    elif before != now:
        yield Change(field, before, now)


def open_search(path: Path, config: Section, parts: str, described: str) -> None:
    """Writes the config of a search into a new folder, or checks that an existing folder has the same config.

    Args:
        path: the config file in the output folder.
        config: the search.
        parts: field of the config by name, to which entries may be added.
        described: what the folder contains, for the message.

    Raises:
        InputError: if the folder contains a search with another config.
    """
    settings = config_to_json(config)
    if not path.is_file():
        with new_folder(path.parent) as working:
            save_json(working / path.name, settings)
        return
    written = refresh_config(load_json(path), type(config))
    kept = written.get(parts, {}).keys() & settings[parts].keys()
    before, now = (
        {**values, parts: {name: values[parts][name] for name in sorted(kept)}} for values in (written, settings)
    )
    if change := next(list_changes(before, now), None):
        raise InputError(f"{path.parent}: contains a {described} with another config ({change}); use another folder")
    save_json(path, settings)


def list_known_changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """Yields the fields whose digests differ; fields that an older steelgen did not record are ignored."""
    common = known.keys() & now.keys()
    return list_changes({field: known[field] for field in common}, {field: now[field] for field in common})


def is_among(field: str, names: Sequence[str]) -> bool:
    """Returns whether a field is one of `names` or inside a section that is."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def refuse_changes(folder: Path, changes: Sequence[Change], allowed: Sequence[str]) -> None:
    """Raises InputError if a field has changed that is not among the allowed fields and sections."""
    refused = [change for change in changes if not is_among(change.field, allowed)]
    if not refused:
        return
    more = f" and {len(refused) - _MAX_NAMED} more" if len(refused) > _MAX_NAMED else ""
    flags = " ".join(f"--allow-changed {change.field}" for change in refused[:_MAX_NAMED])
    raise InputError(
        f"{folder}: {'; '.join(map(str, refused[:_MAX_NAMED]))}{more}: resuming would mix results of both; restore the "
        f"old value, use another folder, or pass {flags}"
    )


def note_changes(folder: Path, changes: Sequence[Change]) -> None:
    """Appends allowed changes to changes.jsonl."""
    if not changes:
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with open(folder / CHANGES_FILE, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps({"time": now, **asdict(change)}) + "\n" for change in changes))
