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
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from tqdm import tqdm

from answering.console import UserError, atomic_write, one_line_errors
from answering.pictures import find_bars, is_flat, read_image
from answering.stills import Still, find_films, list_stills, natural_key
from training.dataset import Lookup, draw_subset, film_offset, group_frames, split_groups, write_csv, write_manifest

VERDICTS = ("kept", "unreadable", "too_small", "dark", "duplicate", "conflict", "no_person")
MIN_SIDE = 100  # pixels; smaller stills are thumbnails
CROPS = (0.92, 0.85)  # sides of the central pieces that are hashed too, so that cropped copies find their originals
DOUBT = 0.05  # about --conf, where a detector in bf16 is asked again in float32
FORMAT = 4  # of the states in .filter; raised when the rules for keeping a frame change
CHUNK = 32  # frames that are decoded while the detector looks at as many


def fit_size(width: int, height: int, size: str) -> tuple[int, int]:
    """(width, height) in pixels of the processed frame: "WxH", or "keep-aspect" for a shorter side of 256."""
    if size == "keep-aspect":
        scale = min(1.0, 256 / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    return tuple(int(side) for side in size.split("x"))


def examine(path: Path) -> tuple[dict, tuple | None]:
    """One raw frame -> its row and, if it is good, its pixels (uint8 [H, W, 3]) and a small grey PIL image to hash."""
    row = {"verdict": "kept", "reason": "", "phash": "", "width": "", "height": "", "bars": "", "crops": []}
    try:
        rgb = read_image(path, draft=512)
        with Image.open(path) as image:  # the size before a reduced decode, upright as rgb is
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
    return row, (rgb, grey)


def as_row(still: Still) -> dict:
    """What the row of a frame holds of its still."""
    return {
        "file": still.file,
        "shot": still.shot,
        "time": still.time_ms,
        "source": still.source,
        "imdb": still.imdb,
    }


def filter_film(folder: Path, target: Path, *, size: str, detect, threads: int) -> list[dict]:
    """Examine one film and write its kept frames to target, a new folder; returns a row a frame.

    detect: function from a list of RGB uint8 arrays [H, W, 3] to persons a frame, or None.
    """
    target.mkdir()

    def save(row: dict, rgb: np.ndarray, grey: Image.Image) -> None:
        margins = [(grey.width * (1 - share) / 2, grey.height * (1 - share) / 2) for share in CROPS]
        boxes = [(round(x), round(y), round(grey.width - x), round(grey.height - y)) for x, y in margins]
        row["crops"] = [str(imagehash.phash(grey.crop(box))) for box in boxes]
        fitted = fit_size(rgb.shape[1], rgb.shape[0], size)
        Image.fromarray(rgb).resize(fitted, Image.Resampling.BILINEAR).save(target / row["name"], quality=95)

    frames, rows, saved, taken, originals = list_stills(folder), [], [], set(), Lookup(list)
    with ThreadPoolExecutor(threads) as pool:
        ahead = pool.map(examine, [still.path for still in frames[:CHUNK]])
        for start in range(0, len(frames), CHUNK):
            examined, good, upcoming = list(ahead), [], frames[start + CHUNK : start + 2 * CHUNK]
            ahead = pool.map(examine, [still.path for still in upcoming])  # while the detector looks
            for still, (found, pictures) in zip(frames[start : start + CHUNK], examined, strict=True):
                row = as_row(still) | found | {"persons": "", "name": ""}
                rows.append(row)
                if pictures and (twins := originals.near(row["phash"])):
                    row |= {"verdict": "duplicate", "reason": f"the same picture as {min(twins)[1]}"}
                elif pictures:
                    originals.add(row["phash"], (len(rows), row["file"]))
                    good.append((row, *pictures))
            persons = detect([rgb for _, rgb, _ in good]) if detect and good else [""] * len(good)
            for (row, rgb, grey), row["persons"] in zip(good, persons, strict=True):
                if row["persons"] == 0:
                    row |= {"verdict": "no_person", "reason": "no person seen"}
                else:
                    flat = re.sub(r"[/\\\r\n]", "_", row["file"]).encode(errors="replace").decode()
                    names = itertools.chain([f"{Path(flat).stem}.jpg"], (f"{flat}-{n}.jpg" for n in itertools.count(1)))
                    row["name"] = next(name for name in names if name.casefold() not in taken)
                    taken.add(row["name"].casefold())  # one name on any file system
                    saved.append(pool.submit(save, row, rgb, grey))
        for future in saved:
            future.result()  # raises what went wrong there
    return rows


def film_key(title: str, folder: Path, options: dict) -> str:
    """Fingerprint of a film's files and the options: a finished film with the same key is not done again."""
    digest = hashlib.sha256(json.dumps([FORMAT, title, options], sort_keys=True).encode())
    for still in list_stills(folder):
        stat = os.lstat(still.path)
        digest.update(json.dumps([as_row(still), stat.st_size, stat.st_mtime_ns]).encode())
    return digest.hexdigest()


def import_yolo():
    """ultralytics.YOLO, which must not unpickle freely, nor install packages by itself."""
    for name, value in (("ULTRALYTICS_SAFE_LOAD", "true"), ("YOLO_AUTOINSTALL", "false"), ("YOLO_VERBOSE", "false")):
        os.environ.setdefault(name, value)  # read when ultralytics is imported
    try:
        from ultralytics import YOLO
    except ImportError:
        raise UserError("--detector needs ultralytics: pip install ultralytics (or --detector none)", 2) from None
    return YOLO


def person_detector(weights: str, *, confidence: float, device: str | None, batch: int, size: str):
    """Function from a list of RGB uint8 arrays [H, W, 3] to the number of persons (COCO class 0) in each.

    Frames are resized as the original did it, by OpenCV: an antialiased picture changes the verdict on 4% of them. On a
    CPU the model runs in OpenVINO, exported once by ultralytics and cached; on a GPU in ultralytics itself.
    """
    YOLO = import_yolo()
    import cv2
    import torch

    def fit(image: np.ndarray) -> np.ndarray:
        return cv2.resize(image, fit_size(image.shape[1], image.shape[0], size))

    def detect(images: list[np.ndarray]) -> list[int]:
        results = []
        for start in range(0, len(images), batch):
            pictures = [fit(image)[..., ::-1] for image in images[start : start + batch]]
            results += model.predict(pictures, conf=confidence, classes=[0], device=device, verbose=False)
        return [len(result.boxes) for result in results]

    mend = "name a local file with --detector PATH, or keep every good frame with --detector none"
    if not Path(weights).exists() and os.sep in weights:
        raise UserError(f"--detector {weights}: no such file; {mend}", 2)
    try:
        if device == "cpu" or not (device or torch.cuda.is_available()):
            sides = (16, 9) if size == "keep-aspect" else fit_size(0, 0, size)
            width, height = (-(-round(640 * side / max(sides)) // 32) * 32 for side in sides)  # as YOLO pads
            path = Path(weights) if weights.endswith(".onnx") else openvino_export(weights, height, width)
            count, threads = openvino_detector(path, height, width, confidence=confidence)
            pool = ThreadPoolExecutor(threads)
            return lambda images: list(pool.map(lambda image: count(fit(image)), images))
        process = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        device = device or str(process % torch.cuda.device_count())
        model = YOLO(weights, task="detect")
        model.predict(Image.new("RGB", (64, 64)), device=device, verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"--detector {weights}: it can't be had or read ({reason}); {mend}") from None
    return detect


def openvino_export(weights: str, height: int, width: int) -> Path:
    """The .xml of a YOLO checkpoint for inputs of this size in pixels, made by ultralytics and kept in the cache."""
    YOLO = import_yolo()
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
    """(Function from an RGB uint8 array [H, W, 3] to the number of persons, threads that may call it at a time).

    path: an OpenVINO .xml or an .onnx of a YOLO model; height and width in pixels are for one that takes any.
    Ultralytics' own OpenVINO predictor sees the same persons in 1.4 times the time: one image after the other.
    """
    import cv2
    import openvino
    from openvino.preprocess import PrePostProcessor
    from ultralytics.data.augment import LetterBox

    core = openvino.Core()
    model = core.read_model(str(path))
    if model.is_dynamic():
        model.reshape([1, 3, height, width])
    height, width = list(model.input().shape)[2:]
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    model, options = steps.build(), {"PERFORMANCE_HINT": "THROUGHPUT"}
    nets = [core.compile_model(model, "CPU", options)]
    if nets[0].get_property("INFERENCE_PRECISION_HINT") != openvino.Type.f32:
        nets.append(core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"}))
    letterbox = LetterBox((height, width), auto=False)

    def count(image: np.ndarray) -> int:
        picture = letterbox(image=image)[None]
        for net in nets:
            output = net.infer_new_request([picture])[0][0]  # float32 [4 + classes, boxes]: centre, size, scores
            output = output[:, output[4] > confidence - DOUBT]
            output = output[:, output[4:].argmax(axis=0) == 0]
            if not confidence - DOUBT < output[4].max(initial=0) < confidence + DOUBT:
                break
        corners = np.vstack([output[:2] - output[2:4] / 2, output[2:4]])
        return len(cv2.dnn.NMSBoxes(corners.T, output[4], confidence, 0.7))

    for net in nets:  # the first call of all must be one thread's: two wait for each other inside OpenVINO, for ever
        net.infer_new_request([np.zeros((1, height, width, 3), np.uint8)])
    return count, nets[0].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")


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

    Films that out/.filter calls finished are not done again, so a killed run continues. Under torchrun or srun the
    processes share the films; the first writes the manifest and returns the counts, the others return {}.
    """
    films, own = find_films(raw), out.resolve()
    for title, folder in films.items():
        if not title.isprintable() or len(title.encode(errors="surrogateescape")) > 200:
            raise UserError(f"{folder!r}: a title must be printable and at most 200 bytes; rename the folder", 2)
    if any(own.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(own) for folder in films.values()):
        raise UserError(f"--out {out}: it and the raw frames lie in each other; name another folder", 2)
    work = out / ".filter"
    if not work.is_dir() and any((out / place).exists() for place in ("movies", "unknown")):
        raise UserError(f"--out {out}: filter.py did not make the movies/ or unknown/ in it; name another folder", 2)
    work.mkdir(parents=True, exist_ok=True)
    options = {"detector": detector, "size": size, "confidence": confidence if detector != "none" else None}
    threads = threads or min(8, os.cpu_count() or 1)
    world = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_NTASKS") or 1)  # torchrun's name, and srun's
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0) % world
    detect, states, mine = None, {}, list(films)[rank::world]
    others = [] if rank else [title for title in films if title not in mine]  # the first process waits for the others
    for title in tqdm([*mine, *others], unit="film", disable=True if rank else None):
        key, target = film_key(title, films[title], options), film_places(out, title)[0]
        states[title] = finished_film(out, title, key)
        if states[title] is None and title in mine:
            if detector != "none" and detect is None:  # only when there is something to detect
                detect = person_detector(detector, confidence=confidence, device=device, batch=batch, size=size)
            forget_film(out, title)
            states[title] = filter_film(films[title], target, size=size, detect=detect, threads=threads)
            with atomic_write(target.with_suffix(".json"), "w") as file:
                json.dump({"title": title, "key": key, "rows": states[title]}, file)
        while states[title] is None:  # torchrun and srun end this process too, should another one fail
            time.sleep(0.2)
            states[title] = finished_film(out, title, key)
    if rank:
        return {}
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


def film_places(out: Path, title: str) -> list[Path]:
    """Folders where a film's frames may lie: where it is made and pictures in conflict stay, and the two for use."""
    made = hashlib.sha256(title.encode(errors="surrogateescape")).hexdigest()[:16]  # whatever the title is made of
    return [out / ".filter" / made, out / "movies" / title, out / "unknown" / title]


def frames_on_disk(out: Path, title: str) -> dict[str, Path]:
    """{name: folder} of a film's frames."""
    return {name: place for place in film_places(out, title) if place.is_dir() for name in os.listdir(place)}


def finished_film(out: Path, title: str, key: str) -> list[dict] | None:
    """Rows of a film that was filtered, from these frames with these options (film_key), and is whole; else None."""
    with contextlib.suppress(FileNotFoundError):
        state = json.loads(film_places(out, title)[0].with_suffix(".json").read_text())
        names = {row["name"] for row in state["rows"] if row["name"]}
        if state["key"] == key and names <= frames_on_disk(out, title).keys():
            return state["rows"]
    return None


def forget_film(out: Path, title: str) -> None:
    """Remove what an earlier run left of a film, the manifest first: it would name files that are gone."""
    places = film_places(out, title)
    for file in (out / "manifest.csv", places[0].with_suffix(".json")):
        file.unlink(missing_ok=True)
    for place in places:
        shutil.rmtree(place, ignore_errors=True)


def assemble(films: dict[str, list[dict]], out: Path, *, min_frames: int) -> dict[str, dict]:
    """Move finished films to movies/ or unknown/ and write the manifest and the reports."""
    manifest, report, conflicts = [], {}, find_conflicts(films)
    for title, rows in films.items():
        for row in rows:
            if other := conflicts.get((title, row["file"])):
                row |= {"verdict": "conflict", "reason": f"the same picture under {other}"}
        kept = [row for row in rows if row["verdict"] == "kept"]
        place = "movies" if len(kept) >= min_frames else "unknown"
        move_frames(title, rows, out, out / place / title)
        groups, offset = group_frames(kept), film_offset(title)
        unknown = ["unknown_val" if offset < 0.5 else "unknown_test"] * len(kept)
        splits = split_groups(groups, offset) if place == "movies" else unknown
        for row, group, split in zip(kept, groups, splits, strict=True):
            path = f"{place}/{title}/{row['name']}"
            manifest.append(row | {"path": path, "movie": title, "split": split, "group": f"{title}#{group}"})
        counts, decision = Counter(row["verdict"] for row in rows), "ADD" if place == "movies" else "DELETE"
        report[title] = {"total": len(rows)} | {verdict: counts[verdict] for verdict in VERDICTS[1:]}
        report[title] |= {"kept": len(kept), "decision": decision}
    verdicts = [row | {"movie": title} for title, rows in films.items() for row in rows]
    write_csv(out / "verdicts.csv", ["movie", "file", "verdict", "reason"], verdicts)
    columns = ["movie", "total", *VERDICTS[1:], "kept", "decision"]
    write_csv(out / "report.csv", columns, [{"movie": title} | row for title, row in report.items()])
    draw_report(report, out / "report.png")
    write_manifest(out / "manifest.csv", manifest)  # last: with it the dataset is whole
    return report


def move_frames(title: str, rows: list[dict], out: Path, target: Path) -> None:
    """A film's frames to target; those in conflict stay in .filter, for the other film may go away again."""
    where, places = frames_on_disk(out, title), film_places(out, title)
    for row in rows:
        if name := row["name"]:
            place = places[0] if row["verdict"] == "conflict" else target
            if where[name] != place:
                place.mkdir(parents=True, exist_ok=True)
                os.replace(where[name] / name, place / name)
    for place in places:
        with contextlib.suppress(OSError):  # not empty, or not there
            place.rmdir()


def draw_report(report: dict[str, dict], path: Path) -> None:
    """Bars of verdicts a film, most kept frames first."""
    from matplotlib.figure import Figure

    rows = sorted(report.items(), key=lambda item: item[1]["kept"])
    names = [title if row["decision"] == "ADD" else f"{title} (unknown)" for title, row in rows]
    figure = Figure(figsize=(10, max(2.5, 0.22 * len(rows) + 1.2)), layout="constrained")
    axes, left = figure.subplots(), np.zeros(len(rows))
    colours = ["#2a9d8f", "#8d99ae", "#adb5bd", "#343a40", "#e9c46a", "#9b5de5", "#e76f51"]
    for verdict, colour in zip(VERDICTS, colours, strict=True):
        width = np.array([row[verdict] for _, row in rows])
        if width.sum():
            axes.barh(range(len(rows)), width, left=left, color=colour, label=f"{verdict} ({width.sum():,})")
        left += width
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.set(xlabel="frames", ylim=(-0.6, len(rows) - 0.4))
    axes.legend(fontsize=7, loc="lower right")
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)


def write_archive(out: Path, titles: list[str], count: int | None) -> None:
    """movies_{5,50,all}_processed.zip, the original's archives: a folder a film."""
    if count is not None and len(titles) < count:
        raise UserError(f"--subsets {count}: only {len(titles)} films passed the filter")
    with atomic_write(out / f"movies_{count or 'all'}_processed.zip") as file, zipfile.ZipFile(file, "w") as archive:
        for title in titles if count is None else draw_subset(titles, count):
            for path in sorted((out / "movies" / title).iterdir(), key=natural_key):
                # a fixed date, so that the same frames make the same bytes
                archive.writestr(zipfile.ZipInfo(f"{title}/{path.name}", (2025, 1, 1, 0, 0, 0)), path.read_bytes())


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
    group.add_argument(
        "--batch", type=int, default=32, help=f"frames a call of a detector on a GPU, {CHUNK} at most {default}"
    )
    group.add_argument("--threads", type=int, default=0, help=f"for decoding, 0 for all cores up to 8 {default}")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if not re.fullmatch(r"keep-aspect|[1-9]\d{1,3}x[1-9]\d{1,3}", args.size):
        parser.error(f"--size {args.size}: expected WxH, for example 600x256, or keep-aspect")
    least = min(args.min_frames, args.batch, *(args.subsets or [1]))
    if least < 1 or args.threads < 0 or not 0 < args.confidence < 1:
        parser.error("--min-frames, --batch, --subsets take 1 or more, --threads 0 or more, --conf between 0 and 1")
    if args.batch > CHUNK:
        parser.error(f"--batch must be {CHUNK} or less")
    report = filter_films(**vars(args))
    if not report:  # another process of the same run writes the manifest
        return 0
    for title, row in report.items():
        dropped = ", ".join(f"{row[v]} {v}" for v in VERDICTS[1:] if row[v])
        print(f"{title[:44]:44} good {row['kept']:5} total {row['total']:5} {row['decision']:6}  {dropped}")
    added = [row["kept"] for row in report.values() if row["decision"] == "ADD"]
    if not added:
        raise UserError(f"no film has {args.min_frames} good frames; lower --min-frames")
    print(f"films left {len(added)} of {len(report)}, frames {sum(added)}; the other films serve as unknown ones")
    print(f"next: python train.py {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
