"""Two calls on one folder: whatever decides the result must be the same, or be allowed to differ by name."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from steelgen.config.base import Section, config_to_json, parse_config
from steelgen.errors import InputError

CHANGES_FILE = "changes.jsonl"
"""In a folder that was gone on with although something had changed: what, from what to what, and when."""
_SHOWN = 3
"""Changes that a message tells in full."""


@dataclass(frozen=True)
class Change:
    """A field of a config, or what it stands for, that two calls have differently."""

    field: str
    """Dotted, as for --set."""
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.field} was {json.dumps(self.before)}, is now {json.dumps(self.now)}"


def refresh_config(written: dict[str, Any], kind: type[Section]) -> dict[str, Any]:
    """A config as an older steelgen wrote it, with the defaults of keys that are new since; unreadable, it stays."""
    try:
        return config_to_json(parse_config(written, kind))
    except InputError:
        return written


def list_changes(before: Any, now: Any, field: str = "") -> Iterator[Change]:
    """The fields in which two JSON values differ, by name; one that is missing is taken for null."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from list_changes(before.get(key), now.get(key), f"{field}.{key}" if field else key)
    elif before != now:
        yield Change(field, before, now)


def list_known_changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Change]:
    """The same of digests by field, of which an older steelgen may have noted fewer."""
    common = known.keys() & now.keys()
    return list_changes({field: known[field] for field in common}, {field: now[field] for field in common})


def is_among(field: str, names: Sequence[str]) -> bool:
    """Whether a field is one of those names, or lies in a section that is."""
    return any(field == name or field.startswith(f"{name}.") for name in names)


def refuse_changes(folder: Path, changes: Sequence[Change], allowed: Sequence[str]) -> None:
    """Raises InputError if something has changed that is not among the allowed fields and sections; names it."""
    refused = [change for change in changes if not is_among(change.field, allowed)]
    if not refused:
        return
    more = f" and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    flags = " ".join(f"--allow-changed {change.field}" for change in refused[:_SHOWN])
    raise InputError(
        f"{folder}: {'; '.join(map(str, refused[:_SHOWN]))}{more}: going on would mix the two; put it back, name "
        f"another folder, or add {flags} if it is meant"
    )


def note_changes(folder: Path, changes: Sequence[Change]) -> None:
    """Appends allowed changes to changes.jsonl."""
    if not changes:
        return
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    with open(folder / CHANGES_FILE, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps({"time": now, **asdict(change)}) + "\n" for change in changes))
