"""How records are to be read: whose they are, where their images lie; and how that is kept for the next command."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chip.data.readers.fields import decode_text, parse_json, parse_object
from chip.data.readers.owners import OwnerMap
from chip.data.window import Window
from chip.errors import ChipWarning, InputError, one_line

KEPT = ".map.json"
"""`records.jsonl` has its map in `records.map.json`."""


@dataclass(frozen=True)
class RecordSource:
    """A file of records, and what it does not say itself."""

    file: Path | str | None = None
    """A file or a folder; None: the one beside the checkpoint, or what `CHIP_RECORDS` names."""
    map: Mapping[str, str] = field(default_factory=dict)
    """Level (or `task`, `split`) -> where a row says it: `metadata.subject_id`,
    `image:/p(\\d{8})/`, `'General Hospital'`, `@table.csv:image_id:patient`, `dicom:PatientID`."""
    window: Window | tuple[float, float] | str | None = None
    """Center and width of the values that become gray, for images of more than 8 bits; DICOM files have their own."""
    images: Path | str | None = None
    """Folder that the images' paths start from, by default that of the file; relative to it."""

    @property
    def path(self) -> Path:
        assert self.file is not None
        return Path(self.file)

    @property
    def images_folder(self) -> Path | None:
        return None if self.images is None else self._folder / self.images

    @property
    def gray_window(self) -> Window | None:
        """Raises `InputError` where the window is none."""
        return None if self.window is None else Window.of(self.window)

    @property
    def given(self) -> bool:
        """Whether it says anything beside the file."""
        return bool(self.map) or self.window is not None or self.images is not None

    def owners(self) -> OwnerMap | None:
        """Raises `InputError` where the map cannot be understood."""
        return OwnerMap.of(self.map, self._folder) if self.map else None

    def with_kept(self) -> RecordSource:
        """With what a former command has kept, for what is not given now; said.

        Raises:
            InputError: that file is broken, or the window is none.
        """
        source = replace(self, window=self.gray_window)
        if not self._is_kept:
            return source
        kept = self._read_kept()
        taken = RecordSource(
            self.file,
            {} if self.map else kept.map,
            kept.window if self.window is None else None,
            kept.images if self.images is None else None,
        )
        if taken.given:
            message = f"{self._kept.name} says how the records are read: {taken.described}"
            warnings.warn(message, ChipWarning, stacklevel=3)
        return RecordSource(
            self.file,
            self.map or taken.map,
            taken.window if source.window is None else source.window,
            taken.images if self.images is None else self.images,
        )

    def _read_kept(self) -> RecordSource:
        name = self._kept.name
        entry = parse_object(parse_json(decode_text(self._kept.read_bytes(), name), name), name)
        owners, images, window = entry.get("map", {}), entry.get("images"), entry.get("window")
        texts = isinstance(owners, dict) and all(isinstance(text, str) for text in owners.values())
        if entry.keys() - {"map", "window", "images"} or not texts or not isinstance(images, str | None):
            raise InputError(f"{self._kept}: not what chip keeps there; delete it and give --map again")
        return RecordSource(self.file, owners, None if window is None else Window.of(window), images)

    def keep(self) -> None:
        """Write it beside the records, where it says anything; said where that changes what stands there."""
        content = json.dumps(self._content, indent=2) + "\n"
        if not self.given or (self._is_kept and self._kept.read_text(encoding="utf-8") == content):
            return
        temporary = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
        try:
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(self._kept)
        except OSError as error:
            message = f"{self._kept}: cannot be written ({one_line(error)}); give the map to each command"
            warnings.warn(message, ChipWarning, stacklevel=3)
            return
        message = f"kept in {self._kept.name}, for later commands: {self.described}"
        warnings.warn(message, ChipWarning, stacklevel=3)

    @property
    def described(self) -> str:
        parts = [f"{level}={text}" for level, text in self.map.items()]
        parts += [] if self.window is None else [f"window {self.window}"]
        parts += [] if self.images is None else [f"images in {self.images}"]
        return ", ".join(parts)

    @property
    def _folder(self) -> Path:
        """What relative paths start from."""
        return self.path if self.path.is_dir() else self.path.parent

    @property
    def _kept(self) -> Path:
        path = Path(os.path.abspath(self.path))  # noqa: PTH100 (not resolve(): beside a link; and `.` has a name so)
        return path.parent / f"{path.name if path.is_dir() else path.stem}{KEPT}"

    @property
    def _is_kept(self) -> bool:
        """Raises `InputError` where something else than a file is in its place."""
        if os.path.isfile(self._kept):  # noqa: PTH113 (Path.is_file raises where a name is too long to be one)
            return True
        if os.path.lexists(self._kept):
            raise InputError(f"{self._kept}: is no file, and chip keeps there how records are read; move it away")
        return False

    @property
    def _content(self) -> dict[str, Any]:
        window = None if self.window is None else str(self.window)
        content = {"map": dict(self.map), "window": window, "images": None if self.images is None else str(self.images)}
        return {key: value for key, value in content.items() if value}
