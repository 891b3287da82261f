"""The film on a disc that lies in a folder: a DVD's VIDEO_TS, or a Blu-ray's BDMV."""

import os
import re
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

VOB = re.compile(r"(?i)vts_(\d\d)_([0-9])\.vob|video_ts\.vob")
DISC_FOLDERS = frozenset(["video_ts", "bdmv", "stream"])
ASIDE = frozenset(["backup", "playlist", "clipinf", "auxdata", "bdjo", "jar", "meta", "certificate"])  # in a BDMV
MAX_PLAYLISTS = 2_000  # some discs hide the right one among hundreds
MAX_PLAYLIST_BYTES = 1_000_000
MAX_SECONDS = 24 * 3600  # a playlist that lasts longer is no film


@dataclass
class Disc:
    """The film on a disc."""

    parts: tuple[Path, ...]  # in order of play
    shorter: int  # titles or streams that are not taken
    notes: list[str] = field(default_factory=list)


def is_vob(name: str) -> bool:
    """Whether a file is a part of a DVD."""
    return VOB.fullmatch(name) is not None


def disc_place(folder: Path) -> Path:
    """The folder that a disc is, above its VIDEO_TS or BDMV/STREAM."""
    while folder.name.lower() in DISC_FOLDERS and folder.parent != folder:
        folder = folder.parent
    return folder


def find_dvd(files: dict[Path, int]) -> Disc | None:
    """The title set with most bytes; None where there are but menus (VTS_01_0.VOB). files: {path: bytes}."""
    sets: dict[str, list[Path]] = {}
    for path in files:
        found = VOB.fullmatch(path.name)
        if found and found[1] and found[2] != "0":
            sets.setdefault(found[1], []).append(path)
    if not sets:
        return None
    best = max(sorted(sets), key=lambda number: sum(files[path] for path in sets[number]))
    return Disc(tuple(sorted(sets[best], key=lambda path: path.name.lower())), len(sets) - 1)


def find_bluray(stream: Path, files: dict[Path, int]) -> Disc:
    """The longest playlist, or the largest stream where none can be read. stream: BDMV/STREAM; files: {path: bytes}."""
    clips = {path.stem.lower(): path for path in files}
    sizes = {path.stem.lower(): size for path, size in files.items()}
    notes: list[str] = []
    names = longest_playlist(stream.parent, sizes, notes)
    if not names:
        names = (max(sorted(sizes), key=sizes.__getitem__),)
    return Disc(tuple(clips[name] for name in names), len(files) - len(names), notes)


def longest_playlist(bdmv: Path, sizes: dict[str, int], notes: list[str]) -> tuple[str, ...]:
    """Names of the clips of the longest playlist whose clips are all there; none where no playlist can be read.

    sizes: {name of a clip: its bytes}. notes: where to say which playlists can't be read.
    """
    try:
        folder = next(path for path in bdmv.iterdir() if path.name.lower() == "playlist")
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".mpls")[:MAX_PLAYLISTS]
    except (OSError, StopIteration):
        return ()
    best: tuple[int, int, tuple[str, ...]] = (0, 0, ())
    for path in files:
        try:
            clips = read_playlist(path)
        except (OSError, ValueError) as error:
            notes.append(f"{path}: passed over, not a playlist that can be read ({error})")
            continue
        seconds = sum(clips.values())
        if seconds <= MAX_SECONDS and all(name in sizes for name in clips):
            best = max(best, (round(seconds), sum(sizes[name] for name in clips), tuple(clips)))
    return best[2]


def read_playlist(path: Path) -> dict[str, float]:
    """{name of a clip: seconds of it} of a *.mpls, each clip once. Raises ValueError, OSError.

    The format as libbluray reads it: at byte 8 where the list begins; there, after a length and two bytes, the number
    of items; an item is a length, a name of five letters, and from its byte 14 on its times of in and out, in 45 kHz.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("not a file")
    with open(path, "rb") as file:
        data = file.read(MAX_PLAYLIST_BYTES)
    if data[:4] != b"MPLS":
        raise ValueError("it does not begin with MPLS")
    clips: dict[str, float] = {}
    try:
        (start,) = struct.unpack_from(">I", data, 8)
        (count,) = struct.unpack_from(">H", data, start + 6)
        place = start + 10
        for _ in range(count):
            length, name = struct.unpack_from(">H5s", data, place)
            begin, end = struct.unpack_from(">II", data, place + 14)
            clips.setdefault(name.decode("ascii").lower(), max(0, end - begin) / 45_000)
            place += 2 + length
    except (struct.error, UnicodeDecodeError):
        raise ValueError("damaged or cut off") from None
    return clips
