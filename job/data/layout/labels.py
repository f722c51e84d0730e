"""A table says what an image is: columns of paths and of classes, and perhaps of splits and of groups."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from job.config.errors import UserError
from job.data import archives
from job.data.archives import Member, is_debris, shown
from job.data.decoding import LARGEST, TOO_LARGE
from job.data.layout.folders import NAMES, SPLITS, Place, named, require_same

COLUMNS = {
    "path": "path filename file image filepath file_path file_name image_path image_name img img_path image_id id",
    "label": "label class target category class_name label_name labels classes",
    "split": "split set subset",
    "group": "group group_id patient patient_id subject subject_id camera camera_id",
}
"""what each column may be called, the likeliest first"""


class Row(NamedTuple):
    """One image of the table."""

    line: int
    path: str
    label: str
    split: str
    group: str


class Labels:
    """As ``Folders``, by the table ``name``, which lies in ``root`` or anywhere else."""

    inside = None

    def __init__(self, root: Path, name: str, *, skip_missing: bool) -> None:
        """Raises ``UserError`` with file and line for all that is wrong with the table; images that are not there are
        counted only, where they may be ``skip_missing``."""
        self.root = root
        self.missing: list[str] = []
        self._debris: set[str] = set()
        files: dict[str, Member] = {}
        last = posixpath.basename(name)
        for member in archives.members(root, None, lambda parts: parts[-1] == last):
            path = "/".join(member.parts)
            if member.debris:
                self._debris.add(path)
            elif member.content is not None:
                files[path] = member
        self.table, content, folder = _table(root, name, files)
        rows, self._columns = _rows(_text(content), self.table)
        self._rows = self._matched(rows, _Paths(files, folder), skip_missing)
        self._unlisted = [path for path in files if path not in self._rows and path != self.table]
        self.given = {_split(row) for row in self._rows.values()}
        self.has_groups = any(row.group for row in rows)

    def _matched(self, rows: list[Row], paths: _Paths, skip_missing: bool) -> dict[str, Row]:
        """The row of each image file."""
        found: dict[str, Row] = {}
        wrong: list[str] = []
        has_splits = any(row.split for row in rows)
        for row in rows:
            places, parts, fault = paths.find(row.path), _parts(row.path), ""
            debris = [place for place, part in enumerate(parts, 1) if is_debris(part)]
            if not row.path or not row.label:
                fault = f"no {'label' if row.path else 'path'}"
            elif has_splits and row.split.lower() not in NAMES:
                fault = f"the split is {row.split!r}"
            elif len(places) > 1:
                fault = f"{row.path} may be {' or '.join(places[:2])}"
            elif debris and not places:
                self._debris.add("/".join(parts[: debris[0]]))
            elif not places and skip_missing:
                self.missing.append(f"{row.path} (no such file, line {row.line} of {self.table})")
            elif not places:
                fault = f"there is no {row.path}"
            elif (first := found.setdefault(places[0], row)) is not row:
                fault = f"{row.path} stands in line {first.line} too"
            if fault:
                wrong.append(f"line {row.line}: {fault}")
        if wrong:
            raise UserError(f"{self.table}: {named(wrong)}", "mend the lines, or take them out")
        return found

    def locate(self, member: Member) -> Place | None:
        """What a file counts as; None for what is not in the table."""
        path = "/".join(member.parts)
        row = self._rows.get(path) if member.content is not None else None
        return Place(_split(row), row.label, path) if row else None

    def group(self, path: str) -> str:
        """The group of an image; one without has its own."""
        return self._rows[path].group or f"\0{path}"

    def classes(self) -> tuple[str, ...]:
        """Class names, sorted, numbers by their value. Raises ``UserError`` as ``Folders`` does."""
        found: defaultdict[str, set[str]] = defaultdict(set)
        for row in self._rows.values():
            found[_split(row)].add(row.label)
        if len(found["train"]) < 2:
            only = named(sorted(found["train"])) or "none"
            raise UserError(f"{self.table}: fewer than two classes to train on: {only}", "label images of two or more")
        require_same(self.table, found, {})
        return tuple(sorted(found["train"], key=lambda name: (int(name) if name.isdecimal() else -1, name)))

    def called(self, split: str, name: str = "") -> str:
        """The rows of a split, or of a class there."""
        return f"{self.table} ({split} {shown(name)})"

    def notes(self, counts: Counter[str]) -> list[str]:
        """A line for each kind of decision, and of what was left out; ``counts`` are the images of each split."""
        own = ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if counts[split])
        given = own if self.given > {"train"} else f"{counts['train']:,}"
        notes = [f"{self.table}: {given} images by {self._columns}"]
        if self._unlisted:
            count = f"{len(self._unlisted)} files that {posixpath.basename(self.table)} does not name passed over"
            notes.append(f"{self.root}: {count}: {named(self._unlisted)}")
        if self._debris:
            count = f"left out {len(self._debris)} that desktops, editors or a NAS made"
            notes.append(f"{self.root}: {count}: {named(sorted(self._debris))}")
        return notes


def digest_outside(root: Path, name: str) -> str:
    """Changes with the table ``name``, unless it lies in the archive ``root``."""
    path = _outside(root, name)
    return hashlib.sha256(_content(path, str(path)) if path else b"").hexdigest() + name


def _outside(root: Path, name: str) -> Path | None:
    """The table ``name`` in the folder ``root``, or where the name itself leads; None where there is nothing."""
    own = Path(name).expanduser()
    return next((path for path in (root / own, own.absolute()) if os.path.exists(path)), None)


def _table(root: Path, name: str, files: dict[str, Member]) -> tuple[str, bytes, str]:
    """What the table is called, its content, and the folder below ``root`` that it lies in.

    It is what has just this name in ``root``, else on this machine, else in some folder of ``root``.
    """
    inner, outer = "/".join(_parts(name)), _outside(root, name)
    inside = [path for path in files if path == inner] or [path for path in files if path.endswith(f"/{inner}")]
    if outer is not None and inside != [inner]:
        folder = outer.parent.relative_to(root).as_posix() if outer.is_relative_to(root) else ""
        return str(outer), _content(outer, str(outer)), folder
    if len(inside) != 1:
        where = f"may be {named(inside)} in" if inside else "is neither on this machine nor in"
        raise UserError(f"data.labels={name} {where} {root}", "give the path of a table in data.root, or of any other")
    return inside[0], _content(files[inside[0]].content, inside[0]), posixpath.dirname(inside[0])


def _content(content: bytes | Path | str | None, name: str) -> bytes:
    if isinstance(content, Path):
        try:
            if content.is_file():  # a pipe would be waited for
                content = content.read_bytes() if content.stat().st_size <= LARGEST else TOO_LARGE
        except OSError as error:
            raise UserError(f"{name}: {error.strerror}", "make it readable") from None
    if not isinstance(content, bytes):
        raise UserError(f"data.labels={name} is no table", "give a file of columns, such as path,label")
    return content


def _text(content: bytes) -> str:
    """A table's text: UTF-8, or what Excel writes."""
    with contextlib.suppress(UnicodeDecodeError):
        return content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    return content.decode("cp1252", "replace")


def _rows(text: str, name: str) -> tuple[list[Row], str]:
    """The rows of a table, and in words which columns they are from."""
    rows: list[Row] = []
    head = text.partition("\n")[0]
    delimiter = max(",;\t|", key=head.count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        titles = [re.sub(r"[ -]", "_", cell.strip().lower()) for cell in next(lines, [])]
        places = {
            kind: next((titles.index(one) for one in known.split() if one in titles), -1)
            for kind, known in COLUMNS.items()
        }
        for kind in ("path", "label"):
            if places[kind] < 0:
                there = named(titles, 10) or "nothing"
                raise UserError(f"{name}, line 1: no column called {kind}, but {there}", "call one path, and one label")
        for cells in lines:
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(titles):
                raise UserError(
                    f"{name}, line {lines.line_num}: {len(cells)} cells under {len(titles)} titles",
                    "put what holds a separator in quotation marks",
                )
            rows.append(Row(lines.line_num, *(cells[at].strip() if at >= 0 else "" for at in places.values())))
    except csv.Error as error:
        raise UserError(f"{name}, line {lines.line_num}: {error}", "mend the line") from None
    return rows, ", ".join(f"{kind} from {titles[at]!r}" for kind, at in places.items() if at >= 0)


class _Paths:
    """Finds the files that a table means, which another machine may have written."""

    def __init__(self, files: Iterable[str], folder: str) -> None:
        self._files = {_key(path): path for path in files}
        self._folder = folder
        self._called: defaultdict[str, list[str]] = defaultdict(list)  # by name, and by name without its ending
        for path in self._files:
            name = posixpath.basename(path)
            for one in {name, posixpath.splitext(name)[0]}:
                self._called[one].append(path)

    def find(self, path: str) -> list[str]:
        """The file at ``path`` below the table's folder or the root, less any first folders of the path; else all those
        elsewhere whose paths, with an ending or without, end so."""
        parts = _parts(_key(path))
        for start in range(len(parts)):
            for folder in (self._folder, ""):
                if (key := posixpath.normpath(posixpath.join(folder, *parts[start:]))) in self._files:
                    return [self._files[key]]
        end = "/" + "/".join(parts)
        alike = self._called.get(parts[-1], []) if parts else []
        return [
            self._files[one]
            for one in alike
            if f"/{one}".endswith(end) or f"/{posixpath.splitext(one)[0]}".endswith(end)
        ]


def _key(path: str) -> str:
    return unicodedata.normalize("NFC", path)  # a Mac takes letters apart


def _parts(path: str) -> list[str]:
    return [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]


def _split(row: Row) -> str:
    return NAMES[row.split.lower()] if row.split else "train"
