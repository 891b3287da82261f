"""Turn raw stills into a clean dataset whose train, validation and test frames come from different shots.

python filter.py data/raw --out data/processed                       # keeps frames in which a person is seen
python filter.py my_screenshots --detector none --min-frames 20      # keeps all good frames; seconds on a laptop
python filter.py data/raw --detector yolo11n.onnx --subsets 5 50     # and the archives of the original project
torchrun --nproc-per-node 4 filter.py data/raw                       # films divided among processes, GPUs or hosts
"""

import argparse
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from answering.console import UserError, atomic_write, one_line_errors
from answering.cores import count_cores
from answering.flat import is_flat
from answering.pictures import read_image
from answering.reading import ReadingPool
from answering.screenshots import find_bars
from answering.stills import Still, describe_passed_over, find_films, list_stills, natural_key
from training.dataset import (
    UNKNOWN_SPLITS,
    Lookup,
    ManifestRow,
    draw_subset,
    film_offset,
    group_frames,
    split_groups,
    write_csv,
    write_manifest,
)
from training.detector import TORCHVISION, fit_size, person_detector

VERDICTS = ("kept", "unreadable", "too_small", "dark", "duplicate", "conflict", "no_person")
MIN_SIDE = 100  # pixels; smaller stills are thumbnails
CROPS = (0.92, 0.85)  # sides of the central pieces that are hashed too, so that cropped copies find their originals
FORMAT = 5  # of the states in .filter; raised when the rules for keeping a frame change
CHUNK = 32  # frames that are decoded while the detector looks at as many


@dataclass
class Frame:
    """A raw frame and what was found out about it; a row of a film's state in .filter/*.json, in this order."""

    file: str  # relative to the film's folder
    shot: int | str | None
    time: float | None  # milliseconds into the film
    source: str
    imdb: object
    verdict: str = "kept"  # one of VERDICTS
    reason: str = ""  # of any verdict but kept
    phash: str = ""  # 64 bits, hexadecimal; empty where the verdict came before it
    width: int | str = ""  # pixels of the raw frame, upright; empty where it is unreadable
    height: int | str = ""
    bars: str = ""  # shares of the sides: left, top, right, bottom; empty where there are none
    crops: list[str] = field(default_factory=list)  # phash of the central pieces, of a frame that was kept
    persons: int | str = ""  # empty where no detector looked
    name: str = ""  # of the processed file, where there is one

    def drop(self, verdict: str, reason: str) -> None:
        """Keep the frame out of the dataset."""
        self.verdict = verdict
        self.reason = reason


@dataclass
class FilmReport:
    """How many frames of a film have which verdict; a row of report.csv, in this order."""

    total: int
    unreadable: int
    too_small: int
    dark: int
    duplicate: int
    conflict: int
    no_person: int
    kept: int
    decision: str  # ADD: the film is to be known; DELETE: it has too few good frames and serves as an unknown one


class Picture(NamedTuple):
    """The pixels of a good frame."""

    rgb: np.ndarray  # uint8 [H, W, 3], with bars
    grey: Image.Image  # small and without bars, to hash


# ----------------------------------------------------------------------------------------------- one film


def still_facts(still: Still) -> dict:
    """What a Frame takes over from its still."""
    return {
        "file": still.file,
        "shot": still.shot,
        "time": still.time_ms,
        "source": still.source,
        "imdb": still.imdb,
    }


def examine(still: Still) -> tuple[Frame, Picture | None]:
    """Look at one raw frame; its pixels are None where it is not good."""
    frame = Frame(**still_facts(still))
    try:
        rgb = read_image(still.path, draft=512)
        frame.width, frame.height = full_size(still.path, rgb)
    except (UserError, OSError) as error:
        frame.drop("unreadable", str(error).rsplit(": ", 1)[-1])
        return frame, None
    if min(frame.width, frame.height) < MIN_SIDE:
        frame.drop("too_small", f"{frame.width}x{frame.height}")
        return frame, None
    height, width = rgb.shape[:2]
    box = find_bars(rgb)
    left, top, right, bottom = box
    if box != (0, 0, width, height):
        frame.bars = f"{left / width:.3f} {top / height:.3f} {1 - right / width:.3f} {1 - bottom / height:.3f}"
    picture = rgb[top:bottom, left:right]
    if is_flat(picture):
        frame.drop("dark", "dark, flat, a title card or credits")
        return frame, None
    grey = Image.fromarray(rgb).reduce(max(1, min(picture.shape[:2]) // 128), box=box).convert("L")
    frame.phash = str(imagehash.phash(grey))
    return frame, Picture(rgb, grey)


def full_size(path: Path, rgb: np.ndarray) -> tuple[int, int]:
    """(width, height) in pixels of an image file that rgb was read from, perhaps smaller; upright, as rgb is."""
    with Image.open(path) as image:
        shorter, longer = sorted(image.size)
    height, width = rgb.shape[:2]
    return (shorter, longer) if width < height else (longer, shorter)


def examine_ahead(stills: list[Still], pool: ReadingPool) -> Iterator[list[tuple[Frame, Picture | None]]]:
    """Yield CHUNK examined frames at a time; the pool decodes the next ones while the caller works on these."""
    examined = []
    for still, result in zip(stills, pool.read_all(stills, ahead=CHUNK), strict=True):
        if isinstance(result, UserError):  # it hung its decoder, or crashed it
            frame = Frame(**still_facts(still))
            frame.drop("unreadable", str(result))
            result = frame, None
        examined.append(result)
        if len(examined) == CHUNK:
            yield examined
            examined = []
    if examined:
        yield examined


def filter_film(
    folder: Path, target: Path, *, size: str, detect: Callable | None, reader: ReadingPool, threads: int
) -> list[Frame]:
    """Examine one film and write its kept frames to target, a new folder; returns all its frames in film order.

    detect: function from a list of RGB uint8 arrays [H, W, 3] to persons a frame, or None. reader: calls examine.
    threads: that write frames.
    """
    target.mkdir()
    frames: list[Frame] = []
    originals = Lookup(list)
    taken: set[str] = set()
    saved = []
    with ThreadPoolExecutor(threads) as pool:
        for examined in examine_ahead(list_stills(folder), reader):
            good = drop_duplicates(examined, originals, len(frames))
            frames += [frame for frame, _ in examined]
            if detect and good:
                good = drop_without_persons(good, detect)
            for frame, picture in good:
                frame.name = choose_name(frame.file, taken)
                saved.append(pool.submit(save_frame, frame, picture, target / frame.name, size))
        for future in saved:
            future.result()  # raises what went wrong there
    return frames


def drop_duplicates(
    examined: list[tuple[Frame, Picture | None]], originals: Lookup, start: int
) -> list[tuple[Frame, Picture]]:
    """The good frames that are no copy of an earlier one. They are added to originals, and copies dropped.

    originals: of (place in the film, file); start: place of the first of these frames.
    """
    good = []
    for place, (frame, picture) in enumerate(examined, start):
        if picture is None:
            continue
        if copies := originals.near(frame.phash):
            _, first = min(copies)
            frame.drop("duplicate", f"the same picture as {first}")
        else:
            originals.add(frame.phash, (place, frame.file))
            good.append((frame, picture))
    return good


def drop_without_persons(good: list[tuple[Frame, Picture]], detect: Callable) -> list[tuple[Frame, Picture]]:
    """The frames in which detect sees somebody."""
    persons = detect([picture.rgb for _, picture in good])
    for (frame, _), count in zip(good, persons, strict=True):
        frame.persons = count
        if count == 0:
            frame.drop("no_person", "no person seen")
    return [(frame, picture) for frame, picture in good if frame.persons != 0]


def choose_name(file: str, taken: set[str]) -> str:
    """A file name for a processed frame that is not in taken, whatever the case; it is added to them."""
    flat = re.sub(r"[/\\\r\n]", "_", file).encode(errors="replace").decode()
    name = f"{Path(flat).stem}.jpg"
    number = 0
    while name.casefold() in taken:
        number += 1
        name = f"{flat}-{number}.jpg"
    taken.add(name.casefold())
    return name


def save_frame(frame: Frame, picture: Picture, path: Path, size: str) -> None:
    """Write the processed frame and hash its central pieces."""
    grey = picture.grey
    for share in CROPS:
        x = grey.width * (1 - share) / 2
        y = grey.height * (1 - share) / 2
        piece = grey.crop((round(x), round(y), round(grey.width - x), round(grey.height - y)))
        frame.crops.append(str(imagehash.phash(piece)))
    height, width = picture.rgb.shape[:2]
    fitted = Image.fromarray(picture.rgb).resize(fit_size(width, height, size), Image.Resampling.BILINEAR)
    fitted.save(path, quality=95)


# ----------------------------------------------------------------------------------- the state of a film


def film_key(title: str, folder: Path, options: dict) -> str:
    """Fingerprint of a film's files and the options: a finished film with the same key is not done again."""
    digest = hashlib.sha256(json.dumps([FORMAT, title, options], sort_keys=True).encode())
    for still in list_stills(folder):
        stat = os.lstat(still.path)
        digest.update(json.dumps([still_facts(still), stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def film_places(out: Path, title: str) -> list[Path]:
    """Folders where a film's frames may lie: where it is made and pictures in conflict stay, and the two for use."""
    made = hashlib.sha256(title.encode(errors="surrogateescape")).hexdigest()[:16]  # safe for any title
    return [out / ".filter" / made, out / "movies" / title, out / "unknown" / title]


def state_path(out: Path, title: str) -> Path:
    """The file that says that a film is finished, and what became of its frames."""
    return film_places(out, title)[0].with_suffix(".json")


def frames_on_disk(out: Path, title: str) -> dict[str, Path]:
    """{name: folder} of a film's processed frames."""
    found = {}
    for place in film_places(out, title):
        if place.is_dir():
            found.update(dict.fromkeys(os.listdir(place), place))
    return found


def finished_film(out: Path, title: str, key: str) -> list[Frame] | None:
    """Frames of a film that was filtered, from these files with these options (film_key), and is whole; else None."""
    with contextlib.suppress(FileNotFoundError):  # not begun, or another process is at it
        state = json.loads(state_path(out, title).read_text())
        names = {row["name"] for row in state["rows"] if row["name"]}
        if state["key"] == key and names <= frames_on_disk(out, title).keys():
            return [Frame(**row) for row in state["rows"]]
    return None


def write_state(out: Path, title: str, key: str, frames: list[Frame]) -> None:
    """Note that a film is finished."""
    with atomic_write(state_path(out, title), "w") as file:
        json.dump({"title": title, "key": key, "rows": [asdict(frame) for frame in frames]}, file)


def forget_film(out: Path, title: str) -> None:
    """Remove what an earlier run left of a film, the manifest first: it would name files that are gone."""
    (out / "manifest.csv").unlink(missing_ok=True)
    state_path(out, title).unlink(missing_ok=True)
    for place in film_places(out, title):
        shutil.rmtree(place, ignore_errors=True)


# ---------------------------------------------------------------------------------------------- all films


def filter_films(
    raw: list[Path],
    out: Path,
    *,
    detector: str = "yolo11n.pt",
    weights: Path | None = None,
    min_frames: int = 100,
    size: str = "600x256",
    confidence: float = 0.25,
    device: str | None = None,
    batch: int = 32,
    threads: int = 0,
    subsets: list[int] | None = None,
) -> dict[str, FilmReport]:
    """Raw folders -> out/movies, out/unknown, out/manifest.csv, report.csv, report.png. Returns {title: its report}.

    Films that are finished by out/.filter are not done again, so a killed run continues. Under torchrun or srun the
    processes share the films; the first writes the manifest and returns the reports, the others return {}.
    """
    films = find_films(raw)
    check_titles(films)
    check_out(out, films)
    (out / ".filter").mkdir(parents=True, exist_ok=True)

    @functools.cache  # it takes seconds to load, so only when there is something to detect
    def load_detector() -> Callable | None:
        if detector == "none":
            return None
        return person_detector(detector, confidence=confidence, device=device, batch=batch, size=size, file=weights)

    options = {"detector": detector, "size": size, "confidence": confidence if detector != "none" else None}
    if weights:
        options["weights"] = str(weights)
    threads = threads or min(8, count_cores())
    rank, processes = own_share()
    with contextlib.ExitStack() as stack:

        @functools.cache  # its processes start when there is something to read
        def open_reader() -> ReadingPool:
            return stack.enter_context(ReadingPool(examine, threads))

        finished = finish_films(
            films, out, options, load_detector, open_reader, threads=threads, rank=rank, processes=processes
        )
    if rank:
        return {}
    tidy(out, films)
    reports = assemble({title: finished[title] for title in films}, out, min_frames=min_frames)
    if subsets is not None:
        titles = [title for title, report in reports.items() if report.decision == "ADD"]
        for count in [*subsets, None]:
            write_archive(out, titles, count)
    return reports


def finish_films(
    films: dict[str, Path],
    out: Path,
    options: dict,
    load_detector: Callable,
    open_reader: Callable[[], ReadingPool],
    *,
    threads: int,
    rank: int,
    processes: int,
) -> dict[str, list[Frame]]:
    """Filter this process's share of the films; the first process waits for the others'. Returns {title: frames}.

    options: what the frames depend on: detector, size, confidence. load_detector, open_reader: return what filter_film
    wants.
    """
    own = list(films)[rank::processes]
    others = [title for title in films if title not in own] if rank == 0 else []
    finished: dict[str, list[Frame]] = {}
    for title in tqdm([*own, *others], unit="film", disable=True if rank else None):
        key = film_key(title, films[title], options)
        frames = finished_film(out, title, key)
        if frames is None and title in own:
            detect = load_detector()
            forget_film(out, title)
            target = film_places(out, title)[0]
            frames = filter_film(
                films[title], target, size=options["size"], detect=detect, reader=open_reader(), threads=threads
            )
            write_state(out, title, key, frames)
        finished[title] = wait_for_film(out, title, key) if frames is None else frames
    return finished


def check_titles(films: dict[str, Path]) -> None:
    """Raises UserError for titles that can't name a folder or stand in a manifest."""
    for title, folder in films.items():
        if not title.isprintable() or len(title.encode(errors="surrogateescape")) > 200:
            raise UserError(f"{folder!r}: a title must be printable and at most 200 bytes; rename the folder", 2)


def check_out(out: Path, films: dict[str, Path]) -> None:
    """Raises UserError where out is or holds what is not the filter's own."""
    target = out.resolve()
    for folder in films.values():
        folder = folder.resolve()
        if target.is_relative_to(folder) or folder.is_relative_to(target):
            raise UserError(f"--out {out}: it and the raw frames lie in each other; name another folder", 2)
    if not (out / ".filter").is_dir() and any((out / place).exists() for place in ("movies", "unknown")):
        raise UserError(f"--out {out}: filter.py did not make the movies/ or unknown/ in it; name another folder", 2)


def own_share() -> tuple[int, int]:
    """(Number of this process, how many there are) under torchrun or srun; (0, 1) else."""
    processes = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)
    number = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
    return number % processes, processes


def wait_for_film(out: Path, title: str, key: str) -> list[Frame]:
    """Frames of a film that another process is at; torchrun and srun end this one too, should that one fail."""
    while (frames := finished_film(out, title, key)) is None:
        time.sleep(0.2)
    return frames


def tidy(out: Path, films: dict[str, Path]) -> None:
    """Remove half-written files of a run that was killed, and films that are no longer among the raw ones."""
    work = out / ".filter"
    for part in (*out.glob(".*.part"), *work.glob(".*.part")):
        part.unlink()
    for path in work.glob("*.json"):
        title = json.loads(path.read_text())["title"]
        if title not in films:
            print(f"filter.py: {title} is no longer among the raw films and leaves {out}", file=sys.stderr)
            forget_film(out, title)


def find_conflicts(films: dict[str, list[Frame]]) -> dict[tuple[str, str], str]:
    """{(title, file): other title} for pictures that stand under two titles (logos, mislabelled stills)."""
    kept = [(title, frame) for title, frames in films.items() for frame in frames if frame.verdict == "kept"]
    pictures = Lookup(list)
    for title, frame in kept:
        pictures.add(frame.phash, title)
    found = {}
    for title, frame in kept:
        if others := pictures.near(frame.phash) - {title}:
            found[title, frame.file] = min(others)
    return found


def assemble(films: dict[str, list[Frame]], out: Path, *, min_frames: int) -> dict[str, FilmReport]:
    """Move finished films to movies/ or unknown/ and write the manifest and the reports."""
    drop_conflicts(films)
    reports: dict[str, FilmReport] = {}
    manifest: list[ManifestRow] = []
    unknown_splits = split_unknown(
        [title for title, frames in films.items() if sum(frame.verdict == "kept" for frame in frames) < min_frames]
    )
    for title, frames in films.items():
        kept = [frame for frame in frames if frame.verdict == "kept"]
        folder = "movies" if len(kept) >= min_frames else "unknown"
        move_frames(title, frames, out, out / folder / title)
        reports[title] = report_film(frames, "ADD" if folder == "movies" else "DELETE")
        manifest += manifest_rows(title, kept, out, folder, len(manifest), unknown_splits.get(title))
    write_reports(films, reports, out)
    write_manifest(out / "manifest.csv", manifest)  # last: with it the dataset is whole
    return reports


def drop_conflicts(films: dict[str, list[Frame]]) -> None:
    """Drop pictures that stand under two titles from both films."""
    conflicts = find_conflicts(films)
    for title, frames in films.items():
        for frame in frames:
            if other := conflicts.get((title, frame.file)):
                frame.drop("conflict", f"the same picture under {other}")


def split_unknown(titles: list[str]) -> dict[str, str]:
    """{title: split} of unknown films: every second one, in an order drawn by their titles, tests what the others fit.

    By count, so that neither is without films while there are two.
    """
    drawn = sorted(titles, key=film_offset)
    return {title: UNKNOWN_SPLITS[place % len(UNKNOWN_SPLITS)] for place, title in enumerate(drawn)}


def manifest_rows(
    title: str, kept: list[Frame], out: Path, folder: str, start: int, unknown_split: str | None
) -> list[ManifestRow]:
    """A film's rows of the manifest.

    folder: movies or unknown, with its frames; start: number of the first row; unknown_split: of a film in unknown.
    """
    offset = film_offset(title)
    groups = group_frames(kept)
    splits = split_groups(groups, offset) if folder == "movies" else [unknown_split] * len(kept)
    rows = []
    for frame, group, split in zip(kept, groups, splits, strict=True):
        path = f"{folder}/{title}/{frame.name}"
        row = ManifestRow(
            path=path,
            movie=title,
            split=split,
            group=f"{title}#{group}",
            persons=str(frame.persons),
            width=str(frame.width),
            height=str(frame.height),
            phash=frame.phash,
            source=frame.source,
            bars=frame.bars,
            file=out / path,
            place=start + len(rows),
        )
        rows.append(row)
    return rows


def report_film(frames: list[Frame], decision: str) -> FilmReport:
    """Count a film's verdicts."""
    counts = Counter(frame.verdict for frame in frames)
    return FilmReport(total=len(frames), **{verdict: counts[verdict] for verdict in VERDICTS}, decision=decision)


def write_reports(films: dict[str, list[Frame]], reports: dict[str, FilmReport], out: Path) -> None:
    """verdicts.csv, a row a raw frame; report.csv, a row a film; and report.png."""
    verdicts = [{"movie": title, **vars(frame)} for title, frames in films.items() for frame in frames]
    write_csv(out / "verdicts.csv", ["movie", "file", "verdict", "reason"], verdicts)
    rows = [{"movie": title, **asdict(report)} for title, report in reports.items()]
    write_csv(out / "report.csv", ["movie", *FilmReport.__dataclass_fields__], rows)
    draw_report(reports, out / "report.png")


def move_frames(title: str, frames: list[Frame], out: Path, target: Path) -> None:
    """A film's frames to target; those in conflict stay in .filter, for the other film may go away again."""
    where = frames_on_disk(out, title)
    places = film_places(out, title)
    for frame in frames:
        if not frame.name:
            continue
        place = places[0] if frame.verdict == "conflict" else target
        if where[frame.name] != place:
            place.mkdir(parents=True, exist_ok=True)
            os.replace(where[frame.name] / frame.name, place / frame.name)
    for place in places:
        with contextlib.suppress(OSError):  # not empty, or not there
            place.rmdir()


def draw_report(reports: dict[str, FilmReport], path: Path) -> None:
    """Bars of verdicts a film, most kept frames first."""
    from matplotlib.figure import Figure

    rows = sorted(reports.items(), key=lambda item: item[1].kept)
    names = [title if report.decision == "ADD" else f"{title} (unknown)" for title, report in rows]
    figure = Figure(figsize=(10, max(2.5, 0.22 * len(rows) + 1.2)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(rows))
    colours = ["#2a9d8f", "#8d99ae", "#adb5bd", "#343a40", "#e9c46a", "#9b5de5", "#e76f51"]
    for verdict, colour in zip(VERDICTS, colours, strict=True):
        width = np.array([getattr(report, verdict) for _, report in rows])
        if width.sum():
            axes.barh(range(len(rows)), width, left=left, color=colour, label=f"{verdict} ({width.sum():,})")
        left += width
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set(xlabel="frames", ylim=(-0.6, len(rows) - 0.4))
    axes.legend(fontsize=7, loc="lower right")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def write_archive(out: Path, titles: list[str], count: int | None) -> None:
    """movies_{5,50,all}_processed.zip, the original's archives: a folder a film. count: of films, None for all."""
    if count is not None:
        if len(titles) < count:
            raise UserError(f"--subsets {count}: only {len(titles)} films passed the filter")
        titles = draw_subset(titles, count)
    with atomic_write(out / f"movies_{count or 'all'}_processed.zip") as file, zipfile.ZipFile(file, "w") as archive:
        for title in titles:
            for path in sorted((out / "movies" / title).iterdir(), key=natural_key):
                # a fixed date, so that the same frames make the same bytes
                archive.writestr(zipfile.ZipInfo(f"{title}/{path.name}", (2025, 1, 1, 0, 0, 0)), path.read_bytes())


def get_parser() -> argparse.ArgumentParser:
    default = "(default: %(default)s)"
    parser = argparse.ArgumentParser(description="Filter raw stills and split them by shot.")
    text = "folders that hold one folder of images per film"
    parser.add_argument("raw", nargs="+", type=Path, metavar="RAW", help=text)
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("data/processed"), help=default)
    group.add_argument("--size", default="600x256", help=f"WxH in pixels or keep-aspect {default}")
    text = "also write archives of N films, and of all films"
    group.add_argument("--subsets", type=int, nargs="*", metavar="N", help=text)
    group = parser.add_argument_group("what is kept")
    text = f"a film with fewer becomes an unknown one {default}"
    group.add_argument("--min-frames", type=int, default=100, help=text)
    text = f"YOLO .pt or .onnx, {' or '.join(TORCHVISION)} of torchvision, or none {default}"
    group.add_argument("--detector", default="yolo11n.pt", help=text)
    text = f"file of the weights of {' or '.join(TORCHVISION)} (default: downloaded at first use)"
    group.add_argument("--weights", type=Path, metavar="PTH", help=text)
    text = f"confidence from which a detection counts as a person {default}"
    group.add_argument("--conf", dest="confidence", type=float, default=0.25, help=text)
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="for the detector: cpu, 0, 1 ... (default: a GPU where there is one)")
    group.add_argument(
        "--batch", type=int, default=32, help=f"frames per call of the detector on a GPU, {CHUNK} at most {default}"
    )
    text = f"processes that decode, 0 for one a core, 8 at most {default}"
    group.add_argument("--threads", type=int, default=0, help=text)
    return parser


def print_report(title: str, report: FilmReport) -> None:
    counts = {verdict: getattr(report, verdict) for verdict in VERDICTS[1:]}
    dropped = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    print(f"{title[:44]:44} good {report.kept:5} total {report.total:5} {report.decision:6}  {dropped}")


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if not re.fullmatch(r"keep-aspect|[1-9]\d{1,3}x[1-9]\d{1,3}", args.size):
        parser.error(f"--size {args.size}: expected WxH, for example 600x256, or keep-aspect")
    least = min(args.min_frames, args.batch, *(args.subsets or [1]))
    if least < 1 or args.threads < 0 or not 0 < args.confidence < 1:
        parser.error("--min-frames, --batch, --subsets take 1 or more, --threads 0 or more, --conf between 0 and 1")
    if args.weights and args.detector not in TORCHVISION:
        parser.error(f"--weights goes with --detector {' or '.join(TORCHVISION)}; a YOLO file is named by --detector")
    if args.batch > CHUNK:
        parser.error(f"--batch must be {CHUNK} or less")
    line = describe_passed_over(args.raw)
    if line and own_share()[0] == 0:
        print(f"filter.py: {line}", file=sys.stderr)
    reports = filter_films(**vars(args))
    if not reports:  # another process of the same run writes the manifest
        return 0
    for title, report in reports.items():
        print_report(title, report)
    added = [report.kept for report in reports.values() if report.decision == "ADD"]
    if not added:
        raise UserError(f"no film has {args.min_frames} good frames; lower --min-frames")
    print(f"films left {len(added)} of {len(reports)}, frames {sum(added)}; the other films serve as unknown ones")
    print(f"next: python train.py {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
