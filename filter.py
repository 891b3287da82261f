"""Turn raw stills into a clean dataset whose train, validation and test frames come from different shots.

python filter.py data/raw --out data/processed                       # keeps frames in which a person is seen
python filter.py my_screenshots --detector none --min-frames 20      # keeps all good frames; seconds on a laptop
python filter.py data/raw --detector yolo11n.onnx --subsets 5 50     # and the archives of the original project
torchrun --nproc-per-node 4 filter.py data/raw                       # films shared out among processes, GPUs or hosts
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
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
from PIL.Image import open as open_image
from tqdm import tqdm

from image import IMAGE_SUFFIXES, UserError, atomic_write, find_bars, natural_key, one_line_errors, read_image

VERDICTS = ("kept", "unreadable", "too_small", "dark", "duplicate", "conflict", "no_person")
MANIFEST = ["path", "movie", "split", "group", "persons", "width", "height", "phash", "source", "bars"]
SPLITS = ("train", "val", "test")
MIN_SIDE = 100  # pixels; smaller stills are thumbnails
DUPLICATE_BITS = 2  # of 64: the same picture, compressed again
CROPS = (0.92, 0.85)  # sides of the central pieces that are hashed too, so that cropped copies find their originals
DOUBT = 0.05  # about --conf, where a detector in bf16 is asked again in float32
FORMAT = 3  # of the states in .filter; raised when the rules for keeping a frame change
NEAR_BITS = 12  # of 64: the same shot; unrelated frames differ by 32 +- 4
CUT_BITS = 20  # of 64: neighbours that differ more stand in different shots
WINDOW_MS = 60_000  # without shots, frames of one minute of film belong together
CHUNK = 64  # frames in memory at a time


# ------------------------------------------------------------------------------------------- one film


def find_films(raw: list[Path]) -> dict[str, Path]:
    """{title: folder} for folders of folders of images; a folder that holds images itself is one film.

    Raises UserError where nothing is found or two folders claim one title.
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
        found = [root] if stills else found
        for folder in found:
            title = folder.resolve().name
            if title in films:
                raise UserError(f"{folder}: the title {title!r} is also in {films[title]}; rename one of them", 2)
            films[title] = folder
    if not films:
        raise UserError(f"{raw[0]}: no folders of images in it", 2)
    return dict(sorted(films.items()))


def list_frames(folder: Path) -> list[dict]:
    """A film's frames in film order: {"file", "shot", "time", "source", "id"}, from frames.jsonl and the file names."""
    sidecar = {}
    if (folder / "frames.jsonl").exists():
        with open(folder / "frames.jsonl", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    frame = json.loads(line)
                    sidecar[str(frame["file"])] = frame
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # a line cut off by a kill; the image itself still counts
    files = [os.path.join(root, name) for root, _, names in os.walk(folder) for name in names]
    files = [f for f in files if Path(f).suffix.lower() in IMAGE_SUFFIXES]
    files = [os.path.relpath(f, folder).replace(os.sep, "/") for f in files]
    frames = []
    for file in sorted(files, key=natural_key):
        known = sidecar.get(file, {})
        shot, time = known.get("shot"), known.get("shot_time_ms")
        if shot is None and (match := re.search(r"shot_(\d+)_img_\d+", file)):  # MovieNet's names
            shot = int(match[1])
        number = isinstance(time, (int, float)) and not isinstance(time, bool) and math.isfinite(time)
        shot = shot if isinstance(shot, (int, str)) else None
        source = str(known.get("source") or "folder").encode(errors="replace").decode()
        frames.append({"file": file, "shot": shot, "time": time if number else None, "source": source})
    if frames and all(frame["time"] is not None for frame in frames):
        frames.sort(key=lambda f: f["time"])
    return frames


def is_flat(rgb: np.ndarray) -> bool:
    """Fades, black frames and title cards: almost nothing lit, or almost no contrast. rgb: uint8 [H, W, 3], no bars."""
    luma = rgb[::4, ::4].astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
    background = np.median(luma)
    return bool((luma > 28).mean() < 0.05 or luma.std() < 5 or (np.abs(luma - background) < 6).mean() > 0.93)


def fit_size(width: int, height: int, size: str) -> tuple[int, int]:
    """(width, height) in pixels of the processed frame: "WxH", or "keep-aspect" for a shorter side of 256."""
    if size == "keep-aspect":
        scale = min(1.0, 256 / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    return tuple(int(side) for side in size.split("x"))


def examine(path: Path, size: str, look: bool = False) -> tuple[dict, Image.Image | None, np.ndarray | None]:
    """One raw frame -> its row (verdict, reason, phash, width, height, bars) and the resized picture if it is good.

    look: give a detector's picture too, resized as the original did it, by OpenCV without antialiasing, so that both
    see the same persons (an antialiased one changes the verdict on 4% of frames).
    """
    row = {"verdict": "kept", "reason": "", "phash": "", "width": "", "height": "", "bars": "", "crops": []}
    try:
        rgb = read_image(path, draft=512)
        with open_image(path) as image:  # the size before a reduced decode, upright as rgb is
            sides = sorted(image.size)
        row["width"], row["height"] = sides if rgb.shape[1] < rgb.shape[0] else sides[::-1]
    except (UserError, OSError) as error:
        return row | {"verdict": "unreadable", "reason": str(error).rsplit(": ", 1)[-1]}, None, None
    height, width = rgb.shape[:2]
    if min(row["width"], row["height"]) < MIN_SIDE:
        return row | {"verdict": "too_small", "reason": f"{row['width']}x{row['height']}"}, None, None
    left, top, right, bottom = find_bars(rgb)
    if (left, top, right, bottom) != (0, 0, width, height):  # as fractions: left, top, right, bottom
        row["bars"] = f"{left / width:.3f} {top / height:.3f} {1 - right / width:.3f} {1 - bottom / height:.3f}"
    picture = rgb[top:bottom, left:right]
    if is_flat(picture):
        return row | {"verdict": "dark", "reason": "dark, flat or a title card"}, None, None
    image = Image.fromarray(rgb)
    factor = max(1, min(picture.shape[:2]) // 128)
    row["phash"], *row["crops"] = hash_picture(image.reduce(factor, box=(left, top, right, bottom)).convert("L"))
    fitted, seen = fit_size(width, height, size), None
    if look:
        import cv2

        seen = cv2.resize(rgb, fitted)
    return row, image.resize(fitted, Image.Resampling.BILINEAR), seen


def hash_picture(image: Image.Image) -> list[str]:
    """Perceptual hashes (64 bits, hexadecimal) of a picture and of its central CROPS. image: grey, bars cut off."""
    width, height = image.size
    hashes = [imagehash.phash(image)]
    for share in CROPS:
        x, y = width * (1 - share) / 2, height * (1 - share) / 2
        hashes.append(imagehash.phash(image.crop((round(x), round(y), round(width - x), round(height - y)))))
    return [str(value) for value in hashes]


def filter_film(title: str, folder: Path, work: Path, *, size: str, detect, threads: int) -> dict:
    """Examine one film and write its kept frames to work/<slug>/; returns its state, {"title", "rows"}.

    detect: function from a list of RGB uint8 arrays [H, W, 3] to persons a frame, or None.
    """
    frames, rows, hashes, taken = list_frames(folder), [], [], set()
    target = work / slug(title)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(frames), CHUNK):
            chunk = frames[start : start + CHUNK]
            good = []
            examined = pool.map(lambda f: examine(folder / f["file"], size, bool(detect)), chunk)
            for frame, (row, image, seen) in zip(chunk, examined, strict=False):
                row = frame | row | {"persons": "", "name": ""}
                rows.append(row)
                if image is None:
                    continue
                value = int(row["phash"], 16)
                twin = next((name for other, name in hashes if (other ^ value).bit_count() <= DUPLICATE_BITS), None)
                if twin is not None:
                    row |= {"verdict": "duplicate", "reason": f"the same picture as {twin}"}
                    continue
                hashes.append((value, row["file"]))
                good.append((row, image, seen))
            persons = detect([seen for _, _, seen in good]) if detect and good else []
            for (row, _, _), count in zip(good, persons, strict=False):
                row["persons"] = count
                if not count:
                    row |= {"verdict": "no_person", "reason": "no person seen"}
            kept = [(row, image) for row, image, _ in good if row["verdict"] == "kept"]
            for row, _ in kept:
                flat = re.sub(r"[/\\\r\n]", "_", row["file"]).encode(errors="replace").decode()
                stem, n = Path(flat).stem, 1
                while f"{stem}.jpg".casefold() in taken:
                    stem, n = f"{flat}-{n}", n + 1
                row["name"] = f"{stem}.jpg"
                taken.add(row["name"].casefold())
            list(pool.map(lambda item: item[1].save(target / item[0]["name"], quality=95), kept))
    return {"title": title, "rows": rows}


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
        if device is None or device == "cpu":
            import torch

            if device == "cpu" or not torch.cuda.is_available():
                shape = detector_shape(size)
                path = Path(weights) if weights.endswith(".onnx") else openvino_export(weights, shape)
                return openvino_detector(path, shape, confidence=confidence)
        model = YOLO(weights, task="detect")
        model.predict(Image.new("RGB", (64, 64)), device=device, verbose=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"--detector {weights}: it can't be had or read ({reason}); {mend}") from None
    step = 1 if weights.endswith(".onnx") else batch  # such an export usually takes one image a call

    def detect(images: list[np.ndarray]) -> list[int]:
        results = []
        for start in range(0, len(images), step):
            results += model.predict(
                [image[..., ::-1] for image in images[start : start + step]],
                conf=confidence,
                classes=[0],
                device=device,
                verbose=False,
            )
        return [len(result.boxes) for result in results]

    return detect


def detector_shape(size: str) -> tuple[int, int]:
    """(height, width) in pixels of the detector's input for frames of --size: 640 at the longer side, as YOLO pads."""
    width, height = (16, 9) if size == "keep-aspect" else fit_size(0, 0, size)
    return tuple(-(-round(640 * side / max(width, height)) // 32) * 32 for side in (height, width))


def openvino_export(weights: str, shape: tuple[int, int]) -> Path:
    """The .xml of a YOLO checkpoint for inputs of shape (height, width), made by ultralytics and kept in the cache."""
    import logging

    YOLO = import_yolo()
    logging.getLogger("ultralytics").setLevel(logging.ERROR)
    if not Path(weights).exists():
        YOLO(weights, task="detect")  # downloads it from its official place
    source = Path(weights)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "movie-by-frame"
    name = f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}-{shape[1]}x{shape[0]}"
    if not (cache / name / "model.xml").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            shutil.copy(source, Path(folder, "model.pt"))
            with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
                warnings.simplefilter("ignore")
                net = YOLO(Path(folder, "model.pt"), task="detect")
                made = net.export(format="openvino", imgsz=shape, device="cpu")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(made, cache / name)
    return cache / name / "model.xml"


def openvino_detector(path: Path, shape: tuple[int, int], *, confidence: float):
    """As person_detector, for an OpenVINO .xml or an .onnx of a YOLO model; shape (height, width) if it takes any."""
    import openvino
    import torch
    from openvino.preprocess import PrePostProcessor
    from torchvision.ops import box_convert, nms
    from ultralytics.data.augment import LetterBox

    core = openvino.Core()
    model = core.read_model(str(path))
    sides = list(model.input().partial_shape)[2:]
    height, width = (s.get_length() if s.is_static else wanted for s, wanted in zip(sides, shape, strict=True))
    model.reshape([1, 3, height, width])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    model = steps.build()
    letterbox = LetterBox((height, width), auto=False)

    def run(precision: dict, images: list[np.ndarray]) -> list[tuple[int, float]]:
        """(persons, confidence of the surest) in each of the images, letterboxed uint8 [1, H, W, 3]."""
        if str(precision) not in queues:
            compiled = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"} | precision)
            queues[str(precision)] = openvino.AsyncInferQueue(compiled)
        queue, found = queues[str(precision)], [(0, 0.0)] * len(images)

        def count(request, i: int) -> None:
            output = request.get_output_tensor(0).data[0]  # float32 [4 + classes, anchors]: centre, size, scores
            output = output[:, output[4] > confidence - DOUBT]
            output = torch.from_numpy(output[:, output[4:].argmax(0) == 0]).T
            if len(output):
                boxes, scores = box_convert(output[:, :4], "cxcywh", "xyxy"), output[:, 4]
                sure = scores > confidence
                found[i] = len(nms(boxes[sure], scores[sure], 0.7)), float(scores.max())

        queue.set_callback(count)
        for i, image in enumerate(images):
            queue.start_async([image], i)
        queue.wait_all()
        return found

    def detect(images: list[np.ndarray]) -> list[int]:
        images = [letterbox(image=image)[None] for image in images]
        found = run({}, images)
        doubt = [i for i, (_, score) in enumerate(found) if abs(score - confidence) < DOUBT]
        exact = run({"INFERENCE_PRECISION_HINT": "f32"}, [images[i] for i in doubt]) if doubt else []
        for i, answer in zip(doubt, exact, strict=True):
            found[i] = answer
        return [persons for persons, _ in found]

    queues: dict = {}
    return detect


# ----------------------------------------------------------------------------------- groups and splits


def group_frames(rows: list[dict]) -> list[int]:
    """A group number a frame (rows in film order): stretches of film, joined where they hold near-duplicates.

    A stretch is a shot, else a minute of film, else a run of neighbours without a cut. Groups are numbered in film
    order of their first frame.
    """
    hashes = np.array([int(row["phash"], 16) for row in rows], np.uint64)
    stretch, current = [], 0
    for i, row in enumerate(rows):
        if row["shot"] is not None:
            stretch.append(("shot", row["shot"]))
        elif row["time"] is not None:
            stretch.append(("time", int(row["time"] // WINDOW_MS)))
        else:
            current += bool(i and int(np.bitwise_count(hashes[i] ^ hashes[i - 1])) > CUT_BITS)
            stretch.append(("run", current))
    first: dict = {}
    label = np.array([first.setdefault(key, i) for i, key in enumerate(stretch)])
    for row, value in zip(rows, hashes, strict=True):
        near = np.bitwise_count(hashes ^ value) <= NEAR_BITS
        for crop in row["crops"]:
            near |= np.bitwise_count(hashes ^ np.uint64(int(crop, 16))) <= NEAR_BITS
        joined = np.unique(label[near])
        if len(joined) > 1:
            label[np.isin(label, joined)] = joined[0]
    number: dict = {}
    return [number.setdefault(key, len(number)) for key in label.tolist()]


def film_offset(title: str) -> float:
    """A fixed number in [0, 1) from the title alone, so that films never move each other."""
    return int.from_bytes(hashlib.sha256(title.encode(errors="surrogateescape")).digest()[:8], "big") / 2**64


def split_groups(groups: list[int], offset: float, test: tuple[float, float] = (0.0, 0.15), val: float = 0.15) -> list:
    """ "train", "val" or "test" a frame; groups: a group number a frame, in film order.

    Groups stand in order of their middle, as on a ring that starts at offset; test is one arc of it, the interval test
    of the frames, and val the arc behind. Contiguous arcs are stricter than random groups: neighbouring shots of a
    scene look alike too. A group with over 40% of the film trains and is
    not on the ring; test and val get a group each where there are three.
    """
    counts = Counter(groups)
    places: dict = {}
    for i, g in enumerate(groups):
        places.setdefault(g, []).append(i)
    middle = {g: np.median(at) / len(groups) for g, at in places.items()}
    small = [g for g in counts if counts[g] <= 0.4 * len(groups)]
    ring = sorted(small, key=lambda g: ((middle[g] - offset) % 1, g))
    total, seen, splits = sum(counts[g] for g in ring), 0, dict.fromkeys(counts, "train")
    for g in ring:
        centre = (seen + counts[g] / 2) / total
        seen += counts[g]
        if test[0] <= centre < test[1]:
            splits[g] = "test"
        elif test[1] <= centre < test[1] + val or centre < test[1] + val - 1:
            splits[g] = "val"
    for wanted in ("train", "test", "val"):  # few, large groups: whoever has nothing gets the smallest one to spare
        held = Counter(splits.values())
        spare = [g for g in counts if held[splits[g]] >= 2]
        if not held[wanted] and spare:
            splits[min(spare, key=lambda g: (splits[g] != "train", counts[g], g))] = wanted
    return [splits[g] for g in groups]


def find_conflicts(films: dict[str, list[dict]]) -> dict[tuple[str, str], str]:
    """{(title, file): other title} for pictures that stand under two titles (logos, mislabelled stills)."""
    entries = [(title, row) for title, rows in films.items() for row in rows if row["verdict"] == "kept"]
    if not entries:
        return {}
    hashes = np.array([int(row["phash"], 16) for _, row in entries], np.uint64)
    owner = np.unique([title for title, _ in entries], return_inverse=True)[1]
    found = {}
    for shift in (0, 16, 32, 48):  # within 2 bits, one of four 16-bit quarters is the same
        quarter = (hashes >> np.uint64(shift)) & np.uint64(0xFFFF)
        order = np.argsort(quarter, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(quarter[order])) + 1):
            if len(bucket) < 2 or len(set(owner[bucket])) < 2:
                continue
            for i in bucket:
                twins = bucket[np.bitwise_count(hashes[bucket] ^ hashes[i]) <= DUPLICATE_BITS]
                twins = twins[owner[twins] != owner[i]]
                if len(twins):
                    title, row = entries[i]
                    found[title, row["file"]] = entries[twins[0]][0]
    return found


# -------------------------------------------------------------------------------------------- the dataset


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
    for title in films:
        if not title.isprintable() or len(title.encode(errors="surrogateescape")) > 200:
            raise UserError(f"{films[title]!r}: a title must be printable and at most 200 bytes; rename the folder", 2)
    work = out / ".filter"
    if not work.is_dir() and any((out / place).exists() for place in ("movies", "unknown")):
        raise UserError(f"--out {out}: filter.py did not make the movies/ or unknown/ in it; name another folder", 2)
    work.mkdir(parents=True, exist_ok=True)
    options = {"detector": detector, "size": size, "confidence": confidence if detector != "none" else None}
    threads = threads or min(8, os.cpu_count() or 1)
    rank, world = process_rank()
    detect, states = None, {}
    mine = dict(list(films.items())[rank::world])
    for title, folder in tqdm(mine.items(), unit="film", disable=None if rank == 0 else True):
        key, state, path = film_key(title, folder, options), None, work / f"{slug(title)}.json"
        if path.exists():
            state = json.loads(path.read_text())
            if state["key"] != key or not _place(out, title, state["rows"]):
                state = None
        if state is None:
            if detector != "none" and detect is None:  # only when there is something to detect
                device = device or local_gpu()
                detect = person_detector(detector, confidence=confidence, device=device, batch=batch, size=size)
            _forget(out, title)
            state = filter_film(title, folder, work, size=size, detect=detect, threads=threads)
            with atomic_write(path, "w") as file:
                json.dump(state | {"key": key}, file)
        states[title] = state["rows"]
    if rank:
        return {}
    for title in films.keys() - mine.keys():  # torchrun and srun end this process too, should another one fail
        states[title] = wait_for_film(out, title, film_key(title, films[title], options))
    states = {title: states[title] for title in films}
    for part in [*out.glob(".*.part"), *work.glob(".*.part")]:  # of a run that was killed
        part.unlink()
    for path in work.glob("*.json"):
        title = json.loads(path.read_text())["title"]
        if title not in states:
            print(f"filter.py: {title} is no longer among the raw films and leaves {out}", file=sys.stderr)
            _forget(out, title)
    counts = assemble(states, out, min_frames=min_frames)
    if subsets is not None:
        titles = [title for title, row in counts.items() if row["decision"] == "ADD"]
        for draw in [*subsets, None]:
            write_archive(out, titles, draw)
    return counts


def process_rank() -> tuple[int, int]:
    """(rank, number of processes) as torchrun or srun tell them; (0, 1) without either."""
    for rank, world in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_NTASKS")):
        if os.environ.get(rank, "").isdecimal() and os.environ.get(world, "").isdecimal():
            return int(os.environ[rank]), max(1, int(os.environ[world]))
    return 0, 1


def local_gpu() -> str | None:
    """The GPU of this process where several share a machine with GPUs, else None."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", ""))
    if not local.isdecimal():
        return None
    import torch

    return str(int(local) % torch.cuda.device_count()) if torch.cuda.is_available() else None


def wait_for_film(out: Path, title: str, key: str) -> list[dict]:
    """Rows of a film that another process works on, once it is whole and of these frames and options."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            state = json.loads((out / ".filter" / f"{slug(title)}.json").read_text())
            if state["key"] == key and _place(out, title, state["rows"]):
                return state["rows"]
        time.sleep(0.2)


def _forget(out: Path, title: str) -> None:
    """Remove what an earlier run left of a film, the manifest first: it would name files that are gone."""
    (out / "manifest.csv").unlink(missing_ok=True)
    (out / ".filter" / f"{slug(title)}.json").unlink(missing_ok=True)
    work = out / ".filter" / slug(title)
    for folder in (work, work.with_suffix(".aside"), out / "movies" / title, out / "unknown" / title):
        shutil.rmtree(folder, ignore_errors=True)


def _place(out: Path, title: str, rows: list[dict]) -> Path | None:
    """The folder where a finished film lies with all its kept frames, or None; frames set aside are put back first."""
    names = {row["name"] for row in rows if row["verdict"] == "kept"}
    work = out / ".filter" / slug(title)
    aside, places = work.with_suffix(".aside"), (work, out / "movies" / title, out / "unknown" / title)
    if not any(place.is_dir() for place in places):  # a film of which every frame was set aside, or none kept
        work.mkdir()
    for place in places:
        if place.is_dir():
            for name in os.listdir(aside) if aside.is_dir() else []:
                with contextlib.suppress(FileNotFoundError):  # another process of this run did it
                    os.replace(aside / name, place / name)
            if names <= set(os.listdir(place)):
                return place
    return None


def assemble(films: dict[str, list[dict]], out: Path, *, min_frames: int) -> dict[str, dict]:
    """Move finished films to movies/ or unknown/ and write the manifest and the reports."""
    for (title, file), other in find_conflicts(films).items():
        row = next(row for row in films[title] if row["file"] == file)
        row |= {"verdict": "conflict", "reason": f"the same picture under {other}"}
    manifest, report, verdicts = [], {}, []
    for title, rows in films.items():
        place = _place(out, title, [row for row in rows if row["name"]])
        kept = [row for row in rows if row["verdict"] == "kept"]
        known = len(kept) >= min_frames
        target = out / ("movies" if known else "unknown") / title
        if place != target:
            target.parent.mkdir(exist_ok=True)
            os.replace(place, target)
        aside = (out / ".filter" / slug(title)).with_suffix(".aside")
        for row in rows:
            if row["name"] and row["verdict"] == "conflict":  # the other film may go away again
                aside.mkdir(exist_ok=True)
                os.replace(target / row["name"], aside / row["name"])
        if not kept:
            target.rmdir()
        groups = group_frames(kept) if kept else []
        if known:
            splits = split_groups(groups, film_offset(title))
        else:
            splits = ["unknown_val" if film_offset(title) < 0.5 else "unknown_test"] * len(kept)
        for row, group, split in zip(kept, groups, splits, strict=True):
            path = f"{'movies' if known else 'unknown'}/{title}/{row['name']}"
            cells = [path, title, split, f"{title}#{group}", row["persons"], row["width"], row["height"]]
            manifest.append([*cells, row["phash"], row["source"], row["bars"]])
        counts = Counter(row["verdict"] for row in rows)
        report[title] = {"total": len(rows)} | {verdict: counts[verdict] for verdict in VERDICTS[1:]}
        report[title] |= {"kept": counts["kept"], "decision": "ADD" if known else "DELETE"}
        verdicts += [[title, row["file"], row["verdict"], row["reason"]] for row in rows]
    if not any(row["decision"] == "ADD" for row in report.values()):
        best = max(row["kept"] for row in report.values())
        print(f"filter.py: no film has {min_frames} good frames (best: {best}); lower --min-frames", file=sys.stderr)
    _write_csv(out / "verdicts.csv", ["movie", "file", "verdict", "reason"], verdicts)
    columns = ["total", *VERDICTS[1:], "kept", "decision"]
    _write_csv(out / "report.csv", ["movie", *columns], [[t, *(r[c] for c in columns)] for t, r in report.items()])
    draw_report(report, out / "report.png")
    _write_csv(out / "manifest.csv", MANIFEST, manifest)  # last: with it the dataset is whole
    return report


def _write_csv(path: Path, header: list[str], rows: list[list]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    with atomic_write(path) as file:
        file.write(text.getvalue().encode(errors="surrogateescape"))


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


def draw_subset(titles: list[str], count: int) -> list[str]:
    """count titles drawn with seed 13; a smaller draw lies inside a larger one."""
    order = np.random.default_rng(13).permutation(len(titles))
    return sorted(sorted(titles)[i] for i in order[:count])


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
    parser = argparse.ArgumentParser(description="Filter raw stills and split them by shot.")
    parser.add_argument("raw", nargs="+", type=Path, metavar="RAW", help="folders that hold a folder of images a film")
    group = parser.add_argument_group("output")
    group.add_argument("--out", type=Path, default=Path("data/processed"), help="default: %(default)s")
    group.add_argument("--size", default="600x256", help="WxH in pixels or keep-aspect (default: %(default)s)")
    group.add_argument(
        "--subsets", type=int, nargs="*", metavar="N", help="write archives of N films drawn, and of all"
    )
    group = parser.add_argument_group("what stays")
    group.add_argument("--min-frames", type=int, default=100, help="fewer make a film unknown (default: %(default)s)")
    group.add_argument("--detector", default="yolo11n.pt", help="YOLO .pt or .onnx, or none (default: %(default)s)")
    group.add_argument("--conf", type=float, default=0.25, help="least confidence of a person (default: %(default)s)")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", help="for the detector: cpu, 0, 1 ... (default: a GPU where there is one)")
    group.add_argument("--batch", type=int, default=32, help="frames a call of a .pt detector (default: %(default)s)")
    group.add_argument(
        "--threads", type=int, default=0, help="for decoding, 0 for all cores up to 8 (default: %(default)s)"
    )
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    if not re.fullmatch(r"keep-aspect|[1-9]\d{1,3}x[1-9]\d{1,3}", args.size):
        parser.error(f"--size {args.size}: expected WxH, for example 600x256, or keep-aspect")
    if any(draw < 1 for draw in args.subsets or []):
        parser.error("--subsets takes numbers of 1 or more")
    if args.min_frames < 1 or args.batch < 1 or args.threads < 0 or not 0 < args.conf < 1:
        parser.error("--min-frames and --batch must be 1 or more, --threads 0 or more, --conf between 0 and 1")
    report = filter_films(
        args.raw,
        args.out,
        detector=args.detector,
        min_frames=args.min_frames,
        size=args.size,
        confidence=args.conf,
        device=args.device,
        batch=args.batch,
        threads=args.threads,
        subsets=args.subsets,
    )
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
