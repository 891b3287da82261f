"""Turn raw stills into a clean dataset whose train, validation and test frames come from different shots.

python filter.py data/raw --out data/processed                       # keeps frames in which a person is seen
python filter.py my_screenshots --detector none --min-frames 20      # keeps all good frames; seconds on a laptop
python filter.py data/raw --detector yolo11n.onnx --subsets 5 50     # and the archives of the original project
torchrun --nproc-per-node 4 filter.py data/raw                       # films shared out among processes, GPUs or hosts
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import logging
import math
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from PIL.Image import open as open_image
from tqdm import tqdm

from data import draw_subset, film_offset, group_frames, split_groups, write_csv, write_manifest
from identify import IMAGE_SUFFIXES, UserError, atomic_write, find_bars, natural_key, one_line_errors, read_image

VERDICTS = ("kept", "unreadable", "too_small", "dark", "duplicate", "conflict", "no_person")
MIN_SIDE = 100  # pixels; smaller stills are thumbnails
DUPLICATE_BITS = 2  # of 64: the same picture, compressed again
CROPS = (0.92, 0.85)  # sides of the central pieces that are hashed too, so that cropped copies find their originals
DOUBT = 0.05  # about --conf, where a detector in bf16 is asked again in float32
FORMAT = 4  # of the states in .filter; raised when the rules for keeping a frame change
CHUNK = 32  # frames that are decoded while the detector looks at as many


def find_films(raw: list[Path]) -> dict[str, Path]:
    """{title: folder} for folders of folders of images; a folder that holds images itself is one film.

    Raises UserError where nothing is found, two folders claim one title, or a title can't be one.
    """
    films: dict[str, Path] = {}
    for root in raw:
        if not root.is_dir():
            raise UserError(f"{root}: no such folder", 2)
        entries = sorted(os.scandir(root), key=lambda e: e.name)
        stills = [e.name for e in entries if e.is_file() and Path(e.name).suffix.lower() in IMAGE_SUFFIXES]
        # hidden folders are skipped, "...And Justice for All (1979)" is not; links to folders are not followed
        found = [Path(e.path) for e in entries if e.is_dir(follow_symlinks=False) and not re.match(r"\.(?!\.)", e.name)]
        if stills and found:
            raise UserError(f"{root}: holds {stills[0]} beside folders; move it away, or name the film folders", 2)
        for folder in [root] if stills else found:
            title = folder.resolve().name
            if title in films:
                raise UserError(f"{folder}: the title {title!r} is also in {films[title]}; rename one of them", 2)
            if not title.isprintable() or len(title.encode(errors="surrogateescape")) > 200:
                raise UserError(f"{folder!r}: a title must be printable and at most 200 bytes; rename the folder", 2)
            films[title] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return dict(sorted(films.items()))


def list_frames(folder: Path) -> list[dict]:
    """A film's frames in film order: {"file", "shot", "time", "source"}, from frames.jsonl and the file names."""
    sidecar, lines = {}, []
    with contextlib.suppress(FileNotFoundError):
        lines = (folder / "frames.jsonl").read_text("utf-8", errors="replace").split("\n")
    for line in lines:
        # a line may be cut off by a kill; the image itself still counts
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            frame = json.loads(line)
            sidecar[str(frame["file"])] = frame
    files = [os.path.relpath(os.path.join(root, name), folder) for root, _, names in os.walk(folder) for name in names]
    files = [file.replace(os.sep, "/") for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES]
    frames = []
    for file in sorted(files, key=natural_key):
        known = sidecar.get(file, {})
        shot, time = known.get("shot"), known.get("shot_time_ms")
        if shot is None and (match := re.search(r"shot_(\d+)_img_\d+", file)):  # MovieNet's names
            shot = int(match[1])
        shot = shot if isinstance(shot, (int, str)) else None
        number = isinstance(time, (int, float)) and not isinstance(time, bool) and math.isfinite(time)
        source = str(known.get("source") or "folder").encode(errors="replace").decode()
        frames.append({"file": file, "shot": shot, "time": time if number else None, "source": source})
    if all(frame["time"] is not None for frame in frames):
        frames.sort(key=lambda f: f["time"])
    return frames


def is_flat(rgb: np.ndarray) -> bool:
    """Fades, black frames and title cards: almost nothing lit, or almost no contrast. rgb: uint8 [H, W, 3], no bars."""
    counts = np.array(Image.fromarray(rgb[::4, ::4]).convert("L").histogram())
    shares, levels = counts / counts.sum(), np.arange(256)
    median, mean = int(np.searchsorted(shares.cumsum(), 0.5)), shares @ levels
    contrast, background = shares @ (levels - mean) ** 2, shares[max(0, median - 5) : median + 6].sum()
    return bool(shares[29:].sum() < 0.05 or contrast < 5**2 or background > 0.93)


def fit_size(width: int, height: int, size: str) -> tuple[int, int]:
    """(width, height) in pixels of the processed frame: "WxH", or "keep-aspect" for a shorter side of 256."""
    if size == "keep-aspect":
        scale = min(1.0, 256 / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    return tuple(int(side) for side in size.split("x"))


def examine(path: Path, size: str, look: bool = False) -> tuple[dict, tuple | None]:
    """One raw frame -> its row (verdict, reason, phash, width, height, bars) and, if it is good, three pictures.

    They are: its pixels, uint8 [H, W, 3]; a small grey one without bars, of PIL, to be hashed; and, if look, the one
    for a detector, resized as the original did it, by OpenCV without antialiasing, so that both see the same persons
    (an antialiased one changes the verdict on 4% of frames).
    """
    row = {"verdict": "kept", "reason": "", "phash": "", "width": "", "height": "", "bars": "", "crops": []}
    try:
        rgb = read_image(path, draft=512)
        with open_image(path) as image:  # the size before a reduced decode, upright as rgb is
            sides = sorted(image.size)
    except (UserError, OSError) as error:
        return row | {"verdict": "unreadable", "reason": str(error).rsplit(": ", 1)[-1]}, None
    height, width = rgb.shape[:2]
    row["width"], row["height"] = sides if width < height else sides[::-1]
    if sides[0] < MIN_SIDE:
        return row | {"verdict": "too_small", "reason": f"{row['width']}x{row['height']}"}, None
    left, top, right, bottom = box = find_bars(rgb)
    if box != (0, 0, width, height):  # as fractions: left, top, right, bottom
        row["bars"] = f"{left / width:.3f} {top / height:.3f} {1 - right / width:.3f} {1 - bottom / height:.3f}"
    picture = rgb[top:bottom, left:right]
    if is_flat(picture):
        return row | {"verdict": "dark", "reason": "dark, flat or a title card"}, None
    grey = Image.fromarray(rgb).reduce(max(1, min(picture.shape[:2]) // 128), box=box).convert("L")
    row["phash"] = str(imagehash.phash(grey))
    if not look:
        return row, (rgb, grey, None)
    import cv2

    return row, (rgb, grey, cv2.resize(rgb, fit_size(width, height, size)))


class Lookup(defaultdict):
    """Names of pictures, found by hashes within DUPLICATE_BITS without a look at all of them.

    Two different bits can't lie in all three parts of a hash, so pictures that near have a part in common, the key.
    """

    def add(self, phash: str, name) -> None:
        value = int(phash, 16)
        for part in enumerate((value >> 43, value >> 22 & 0x1FFFFF, value & 0x3FFFFF)):
            self[part].append((value, name))

    def near(self, phash: str) -> set:
        value = int(phash, 16)
        parts = enumerate((value >> 43, value >> 22 & 0x1FFFFF, value & 0x3FFFFF))
        pictures = (picture for part in parts for picture in self.get(part, ()))
        return {name for other, name in pictures if (other ^ value).bit_count() <= DUPLICATE_BITS}


def filter_film(title: str, folder: Path, work: Path, *, size: str, detect, threads: int) -> dict:
    """Examine one film and write its kept frames to work/<slug>/; returns its state, {"title", "rows"}.

    detect: function from a list of RGB uint8 arrays [H, W, 3] to persons a frame, or None.
    """
    frames, rows, saved, taken, originals = list_frames(folder), [], [], set(), Lookup(list)
    target = work / slug(title)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)

    def look(frame: dict) -> tuple:
        return examine(folder / frame["file"], size, bool(detect))

    def save(row: dict, rgb: np.ndarray, grey: Image.Image) -> None:
        margins = [(grey.width * (1 - share) / 2, grey.height * (1 - share) / 2) for share in CROPS]
        boxes = [(round(x), round(y), round(grey.width - x), round(grey.height - y)) for x, y in margins]
        row["crops"] = [str(imagehash.phash(grey.crop(box))) for box in boxes]
        fitted = fit_size(rgb.shape[1], rgb.shape[0], size)
        Image.fromarray(rgb).resize(fitted, Image.Resampling.BILINEAR).save(target / row["name"], quality=95)

    chunks = [frames[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]
    with ThreadPoolExecutor(threads) as pool:
        ahead = pool.map(look, frames[:CHUNK])
        for chunk, upcoming in itertools.zip_longest(chunks, chunks[1:], fillvalue=[]):
            examined, good = list(ahead), []
            ahead = pool.map(look, upcoming)  # while the detector looks at this chunk
            for frame, (found, pictures) in zip(chunk, examined, strict=True):
                row = frame | found | {"persons": "", "name": ""}
                rows.append(row)
                if pictures is None:
                    continue
                if twins := originals.near(row["phash"]):
                    row |= {"verdict": "duplicate", "reason": f"the same picture as {min(twins)[1]}"}
                else:
                    originals.add(row["phash"], (len(rows), row["file"]))
                    good.append((row, *pictures))
            persons = detect([seen for *_, seen in good]) if detect and good else [""] * len(good)
            for (row, rgb, grey, _), row["persons"] in zip(good, persons, strict=True):
                if row["persons"] == 0:
                    row |= {"verdict": "no_person", "reason": "no person seen"}
                else:
                    row["name"] = free_name(row["file"], taken)
                    saved.append(pool.submit(save, row, rgb, grey))
        for future in saved:
            future.result()  # raises what went wrong there
    return {"title": title, "rows": rows}


def free_name(file: str, taken: set[str]) -> str:
    """A name for a frame beside those taken, on any file system; it joins them."""
    flat = re.sub(r"[/\\\r\n]", "_", file).encode(errors="replace").decode()
    name, n = f"{Path(flat).stem}.jpg", 1
    while name.casefold() in taken:
        name, n = f"{flat}-{n}.jpg", n + 1
    taken.add(name.casefold())
    return name


def slug(title: str) -> str:
    """A short name for a film's state, whatever its title is made of."""
    return hashlib.sha256(title.encode(errors="surrogateescape")).hexdigest()[:16]


def film_key(title: str, folder: Path, options: dict) -> str:
    """Fingerprint of a film's files and the options: a finished film with the same key is not done again."""
    digest = hashlib.sha256(json.dumps([FORMAT, title, options], sort_keys=True).encode())
    for frame in list_frames(folder):
        stat = os.lstat(folder / frame["file"])
        digest.update(json.dumps([frame, stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def import_yolo():
    """ultralytics.YOLO, which must not unpickle freely, nor install packages by itself."""
    os.environ.setdefault("ULTRALYTICS_SAFE_LOAD", "true")  # read when ultralytics is imported
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    try:
        from ultralytics import YOLO
    except ImportError:
        raise UserError("--detector needs ultralytics: pip install ultralytics (or --detector none)", 2) from None
    return YOLO


def person_detector(weights: str, *, confidence: float, device: str | None, batch: int, size: str):
    """Function from a list of RGB uint8 arrays [H, W, 3] to the number of persons (COCO class 0) in each.

    On a CPU the model runs in OpenVINO, exported once by ultralytics and cached; on a GPU in ultralytics itself.
    """
    YOLO = import_yolo()
    mend = "name a local file with --detector PATH, or keep every good frame with --detector none"
    if not Path(weights).exists() and os.sep in weights:
        raise UserError(f"--detector {weights}: no such file; {mend}", 2)
    try:
        import torch

        if device == "cpu" or not (device or torch.cuda.is_available()):
            sides = (16, 9) if size == "keep-aspect" else fit_size(0, 0, size)
            width, height = (-(-round(640 * side / max(sides)) // 32) * 32 for side in sides)  # as YOLO pads
            path = Path(weights) if weights.endswith(".onnx") else openvino_export(weights, height, width)
            return openvino_detector(path, height, width, confidence=confidence)
        device = device or str(from_launcher("LOCAL_RANK", "SLURM_LOCALID", 0) % torch.cuda.device_count())
        model = YOLO(weights, task="detect")
        model.predict(Image.new("RGB", (64, 64)), device=device, verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"--detector {weights}: it can't be had or read ({reason}); {mend}") from None

    def detect(images: list[np.ndarray]) -> list[int]:
        results = []
        for start in range(0, len(images), batch):
            pictures = [image[..., ::-1] for image in images[start : start + batch]]
            results += model.predict(pictures, conf=confidence, classes=[0], device=device, verbose=False)
        return [len(result.boxes) for result in results]

    return detect


def openvino_export(weights: str, height: int, width: int) -> Path:
    """The .xml of a YOLO checkpoint for inputs of this size in pixels, made by ultralytics and kept in the cache."""
    YOLO = import_yolo()
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    if not Path(weights).exists():
        YOLO(weights, task="detect")  # downloads it from its official place
    source = Path(weights)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "movie-by-frame"
    name = f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}-{width}x{height}"
    if not (cache / name / "model.xml").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            shutil.copy(source, Path(folder, "model.pt"))
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):
                net = YOLO(Path(folder, "model.pt"), task="detect")
                made = net.export(format="openvino", imgsz=(height, width), device="cpu")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(made, cache / name)
    return cache / name / "model.xml"


def openvino_detector(path: Path, height: int, width: int, *, confidence: float):
    """As person_detector, for an OpenVINO .xml or an .onnx of a YOLO model; height and width if it takes any.

    Ultralytics' own OpenVINO predictor sees the same persons in 1.4 times the time: it takes one image after the other.
    """
    import cv2
    import openvino
    from openvino.preprocess import PrePostProcessor
    from ultralytics.data.augment import LetterBox

    core = openvino.Core()
    model = core.read_model(str(path))
    sides = list(model.input().partial_shape)[2:]
    height, width = (s.get_length() if s.is_static else any_ for s, any_ in zip(sides, (height, width), strict=True))
    model.reshape([1, 3, height, width])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    model, options = steps.build(), {"PERFORMANCE_HINT": "THROUGHPUT"}
    nets = [core.compile_model(model, "CPU", options)]
    if nets[0].get_property("INFERENCE_PRECISION_HINT") != openvino.Type.f32:
        nets.append(core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"}))
    letterbox = LetterBox((height, width), auto=False)
    pool = ThreadPoolExecutor(nets[0].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def count(image: np.ndarray) -> int:
        picture = letterbox(image=image)[None]
        for net in nets:
            output = net.infer_new_request([picture])[0][0]  # float32 [4 + classes, boxes]: centre, size, scores
            output = output[:, output[4] > confidence - DOUBT]
            output = output[:, output[4:].argmax(axis=0) == 0]
            best = output[4].max(initial=0)
            if not confidence - DOUBT < best < confidence + DOUBT:
                break
        corners = np.vstack([output[:2] - output[2:4] / 2, output[2:4]])
        return len(cv2.dnn.NMSBoxes(corners.T, output[4], confidence, 0.7))

    return lambda images: list(pool.map(count, images))


def find_conflicts(films: dict[str, list[dict]]) -> dict[tuple[str, str], str]:
    """{(title, file): other title} for pictures that stand under two titles (logos, mislabelled stills)."""
    kept = [(title, row) for title, rows in films.items() for row in rows if row["verdict"] == "kept"]
    pictures, found = Lookup(list), {}
    for title, row in kept:
        pictures.add(row["phash"], title)
    for title, row in kept:
        if others := pictures.near(row["phash"]) - {title}:
            found[title, row["file"]] = min(others)
    return found


def filter_films(
    raw: list[Path],
    out: Path,
    *,
    detector: str = "yolo11n.pt",
    min_frames: int = 100,
    size: str = "600x256",
    confidence: float = 0.25,
    device: str | None = None,
    batch: int = 32,
    threads: int = 0,
    subsets: list[int] | None = None,
) -> dict:
    """Raw folders -> out/movies, out/unknown, out/manifest.csv, report.csv, report.png. Returns {title: counts}.

    Finished films are kept in out/.filter and not done again, so a killed run continues. raw is only read. Under
    torchrun or srun the films are shared out among the processes, on one file system; the first one, which writes the
    manifest, returns the counts and the others {}.
    """
    films, inside = find_films(raw), out.resolve()
    for folder in (folder.resolve() for folder in films.values()):
        if folder.is_relative_to(inside) or inside.is_relative_to(folder):
            raise UserError(f"--out {out}: it and the raw frames lie in each other; name another folder", 2)
    work = out / ".filter"
    if not work.is_dir() and any((out / place).exists() for place in ("movies", "unknown")):
        raise UserError(f"--out {out}: filter.py did not make the movies/ or unknown/ in it; name another folder", 2)
    work.mkdir(parents=True, exist_ok=True)
    options = {"detector": detector, "size": size, "confidence": confidence if detector != "none" else None}
    threads = threads or min(8, os.cpu_count() or 1)
    world = max(1, from_launcher("WORLD_SIZE", "SLURM_NTASKS", 1))
    rank = from_launcher("RANK", "SLURM_PROCID", 0) % world
    detect, states = None, {}
    mine = dict(list(films.items())[rank::world])
    for title, folder in tqdm(mine.items(), unit="film", disable=None if rank == 0 else True):
        key = film_key(title, folder, options)
        states[title] = finished_film(out, title, key)
        if states[title] is None:
            if detector != "none" and detect is None:  # only when there is something to detect
                detect = person_detector(detector, confidence=confidence, device=device, batch=batch, size=size)
            forget_film(out, title)
            state = filter_film(title, folder, work, size=size, detect=detect, threads=threads)
            with atomic_write(work / f"{slug(title)}.json", "w") as file:
                json.dump(state | {"key": key}, file)
            states[title] = state["rows"]
    if rank:
        return {}
    for title in films.keys() - mine.keys():  # torchrun and srun end this process too, should another one fail
        key = film_key(title, films[title], options)
        while (rows := finished_film(out, title, key)) is None:
            time.sleep(0.2)
        states[title] = rows
    for part in (*out.glob(".*.part"), *work.glob(".*.part")):  # of a run that was killed
        part.unlink()
    for path in work.glob("*.json"):
        title = json.loads(path.read_text())["title"]
        if title not in states:
            print(f"filter.py: {title} is no longer among the raw films and leaves {out}", file=sys.stderr)
            forget_film(out, title)
    counts = assemble({title: states[title] for title in films}, out, min_frames=min_frames)
    if subsets is not None:
        titles = [title for title, row in counts.items() if row["decision"] == "ADD"]
        for draw in [*subsets, None]:
            write_archive(out, titles, draw)
    return counts


def from_launcher(torchrun: str, srun: str, default: int) -> int:
    """A number that torchrun or srun give each process, in environment variables of these names."""
    value = os.environ.get(torchrun, os.environ.get(srun, ""))
    return int(value) if value.isdecimal() else default


def film_places(out: Path, title: str) -> list[Path]:
    """Folders where a film's frames may lie: where it is made and pictures in conflict stay, and the two for use."""
    return [out / ".filter" / slug(title), out / "movies" / title, out / "unknown" / title]


def frames_on_disk(out: Path, title: str) -> dict[str, Path]:
    """{name: folder} of a film's frames."""
    return {name: place for place in film_places(out, title) if place.is_dir() for name in os.listdir(place)}


def finished_film(out: Path, title: str, key: str) -> list[dict] | None:
    """Rows of a film that was filtered, from these frames with these options (film_key), and is whole; else None."""
    with contextlib.suppress(FileNotFoundError):
        state = json.loads((out / ".filter" / f"{slug(title)}.json").read_text())
        names = {row["name"] for row in state["rows"] if row["name"]}
        if state["key"] == key and names <= frames_on_disk(out, title).keys():
            return state["rows"]
    return None


def forget_film(out: Path, title: str) -> None:
    """Remove what an earlier run left of a film, the manifest first: it would name files that are gone."""
    for file in (out / "manifest.csv", out / ".filter" / f"{slug(title)}.json"):
        file.unlink(missing_ok=True)
    for place in film_places(out, title):
        shutil.rmtree(place, ignore_errors=True)


def assemble(films: dict[str, list[dict]], out: Path, *, min_frames: int) -> dict[str, dict]:
    """Move finished films to movies/ or unknown/ and write the manifest and the reports."""
    manifest, report, verdicts, conflicts = [], {}, [], find_conflicts(films)
    for title, rows in films.items():
        for row in rows:
            if other := conflicts.get((title, row["file"])):
                row |= {"verdict": "conflict", "reason": f"the same picture under {other}"}
        kept = [row for row in rows if row["verdict"] == "kept"]
        known, offset = len(kept) >= min_frames, film_offset(title)
        move_frames(title, rows, out, known)
        groups = group_frames(kept)
        splits = ["unknown_val" if offset < 0.5 else "unknown_test"] * len(kept)
        if known:
            splits = split_groups(groups, offset)
        for row, group, split in zip(kept, groups, splits, strict=True):
            path = f"{'movies' if known else 'unknown'}/{title}/{row['name']}"
            manifest.append(row | {"path": path, "movie": title, "split": split, "group": f"{title}#{group}"})
        counts = Counter(row["verdict"] for row in rows)
        report[title] = {"total": len(rows)} | {verdict: counts[verdict] for verdict in VERDICTS[1:]}
        report[title] |= {"kept": counts["kept"], "decision": "ADD" if known else "DELETE"}
        verdicts += [row | {"movie": title} for row in rows]
    if not any(row["decision"] == "ADD" for row in report.values()):
        best = max(row["kept"] for row in report.values())
        print(f"filter.py: no film has {min_frames} good frames (best: {best}); lower --min-frames", file=sys.stderr)
    write_csv(out / "verdicts.csv", ["movie", "file", "verdict", "reason"], verdicts)
    columns = ["movie", "total", *VERDICTS[1:], "kept", "decision"]
    write_csv(out / "report.csv", columns, [{"movie": title} | row for title, row in report.items()])
    draw_report(report, out / "report.png")
    write_manifest(out / "manifest.csv", manifest)  # last: with it the dataset is whole
    return report


def move_frames(title: str, rows: list[dict], out: Path, known: bool) -> None:
    """Each frame to its place; those in conflict stay in .filter, for the other film may go away again."""
    where, (aside, movies, unknown) = frames_on_disk(out, title), film_places(out, title)
    for row in rows:
        if name := row["name"]:
            place = aside if row["verdict"] == "conflict" else movies if known else unknown
            if where[name] != place:
                place.mkdir(parents=True, exist_ok=True)
                os.replace(where[name] / name, place / name)
    for place in (aside, movies, unknown):
        with contextlib.suppress(OSError):  # not empty, or not there
            place.rmdir()


def draw_report(report: dict[str, dict], path: Path) -> None:
    """Bars of verdicts a film, most kept frames first."""
    from matplotlib.figure import Figure

    titles = sorted(report, key=lambda t: report[t]["kept"])
    figure = Figure(figsize=(10, max(2.5, 0.22 * len(titles) + 1.2)), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(titles))
    colours = ["#2a9d8f", "#8d99ae", "#adb5bd", "#343a40", "#e9c46a", "#9b5de5", "#e76f51"]
    for verdict, colour in zip(VERDICTS, colours, strict=True):
        width = np.array([report[t][verdict] for t in titles])
        if width.sum():
            axes.barh(range(len(titles)), width, left=left, color=colour, label=f"{verdict} ({width.sum():,})")
        left += width
    names = [t if report[t]["decision"] == "ADD" else f"{t} (unknown)" for t in titles]
    axes.set_yticks(range(len(titles)), names, fontsize=7)
    axes.set_ylim(-0.6, len(titles) - 0.4)
    axes.set_xlabel("frames")
    axes.legend(fontsize=7, loc="lower right")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def write_archive(out: Path, titles: list[str], count: int | None) -> None:
    """movies_{5,50,all}_processed.zip, the original's archives: a folder a film."""
    chosen = titles if count is None else draw_subset(titles, count)
    if count is not None and len(titles) < count:
        raise UserError(f"--subsets {count}: only {len(titles)} films passed the filter")
    with (
        atomic_write(out / f"movies_{count or 'all'}_processed.zip") as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        for title in chosen:
            for name in sorted(os.listdir(out / "movies" / title), key=natural_key):
                # a fixed date, so that the same frames make the same bytes
                entry = zipfile.ZipInfo(f"{title}/{name}", (2025, 1, 1, 0, 0, 0))
                archive.writestr(entry, (out / "movies" / title / name).read_bytes())


def get_parser() -> argparse.ArgumentParser:
    default = "(default: %(default)s)"
    parser = argparse.ArgumentParser(description="Filter raw stills and split them by shot.")
    parser.add_argument("raw", nargs="+", type=Path, metavar="RAW", help="folders that hold a folder of images a film")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("data/processed"), help=default)
    group.add_argument("--size", default="600x256", help=f"WxH in pixels or keep-aspect {default}")
    group.add_argument("--subsets", type=int, nargs="*", metavar="N", help="write archives of N films, and of all")
    group = parser.add_argument_group("what stays")
    group.add_argument("--min-frames", type=int, default=100, help=f"fewer make a film unknown {default}")
    group.add_argument("--detector", default="yolo11n.pt", help=f"YOLO .pt or .onnx, or none {default}")
    group.add_argument("--conf", dest="confidence", type=float, default=0.25, help=f"least for a person {default}")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="for the detector: cpu, 0, 1 ... (default: a GPU where there is one)")
    group.add_argument("--batch", type=int, default=32, help=f"frames a call of a detector on a GPU {default}")
    group.add_argument("--threads", type=int, default=0, help=f"for decoding, 0 for all cores up to 8 {default}")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if not re.fullmatch(r"keep-aspect|[1-9]\d{1,3}x[1-9]\d{1,3}", args.size):
        parser.error(f"--size {args.size}: expected WxH, for example 600x256, or keep-aspect")
    if min(args.min_frames, args.batch, *(args.subsets or [1])) < 1:
        parser.error("--min-frames, --batch and --subsets take numbers of 1 or more")
    if args.threads < 0 or not 0 < args.confidence < 1:
        parser.error("--threads must be 0 or more, --conf between 0 and 1")
    report = filter_films(**vars(args))
    if not report:  # another process of the same run writes the manifest
        return 0
    for title, row in report.items():
        dropped = ", ".join(f"{row[v]} {v}" for v in VERDICTS[1:] if row[v])
        print(f"{title[:44]:44} good {row['kept']:5} total {row['total']:5} {row['decision']:6}  {dropped}")
    films = sum(row["decision"] == "ADD" for row in report.values())
    if not films:
        return 1
    frames = sum(row["kept"] for row in report.values() if row["decision"] == "ADD")
    print(f"films left {films} of {len(report)}, frames {frames}; the other films serve as unknown ones")
    print(f"next: python train.py {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
