"""`python bench.py filter` and `persons`: frames a second, and how often two ways or two detectors agree."""

import csv
import tempfile
import time
from pathlib import Path

from PIL import Image

from answering.pictures import read_image
from benchmarks.harness import sample, show

SIZE = (600, 256)  # of the original's frames, px
BATCH = 64  # frames at once, for the detector alone


def filter_one_by_one(model, folder: Path, out: Path) -> dict[str, bool]:
    """The original's way: read, resize, detect, write, a frame at a time. {file name: whether a person is seen}."""
    import cv2

    persons = {}
    for path in sorted(folder.iterdir()):
        image = cv2.resize(cv2.imread(str(path)), SIZE)
        persons[path.name] = len(model.predict(image, classes=[0], device="cpu", verbose=False)[0].boxes) > 0
        if persons[path.name]:
            cv2.imwrite(f"{out}/{path.stem}.jpg", image)
    return persons


def time_detector(detect, files: list[str]) -> float:
    """Seconds of filter.py's detector for these files, once they are read."""
    pictures = [read_image(file, draft=512) for file in files]
    start = time.perf_counter()
    for k in range(0, len(pictures), BATCH):
        detect(pictures[k : k + BATCH])
    return time.perf_counter() - start


def read_verdicts(path: Path) -> dict[str, str]:
    """{file name: verdict} of a verdicts.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return {row["file"]: row["verdict"] for row in csv.DictReader(file)}


def bench_filter(raw: Path, *, detector: str, frames: int = 200) -> None:
    """Frames per second from file to filtered file on the CPU: the original's way, ours, our detector alone."""
    from filter import filter_films
    from training.detector import import_yolo, person_detector

    files = sample(raw, frames)
    YOLO = import_yolo()
    detect = person_detector(detector, confidence=0.25, device="cpu", batch=32, size="600x256")  # exports it, too
    model = YOLO(detector, task="detect")
    model.predict(Image.new("RGB", SIZE), device="cpu", verbose=False)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        copies = Path(folder) / "raw" / "Bench (2026)"
        copies.mkdir(parents=True)
        for i, file in enumerate(files):
            (copies / f"{i:05}{Path(file).suffix}").write_bytes(Path(file).read_bytes())
        start = time.perf_counter()
        persons = filter_one_by_one(model, copies, Path(folder))
        seconds["original's way"] = time.perf_counter() - start
        start = time.perf_counter()
        filter_films([copies.parent], Path(folder) / "new", detector=detector, min_frames=1, device="cpu")
        seconds["filter.py"] = time.perf_counter() - start
        verdicts = read_verdicts(Path(folder, "new", "verdicts.csv"))
    seconds["its detector alone"] = time_detector(detect, files)
    judged = [name for name in persons if verdicts[name] in ("kept", "no_person")]
    alike = sum(persons[name] == (verdicts[name] == "kept") for name in judged)
    ratio = seconds["filter.py"] / seconds["its detector alone"]
    text = f"Of {len(judged)} frames, neither dark nor duplicate, {alike} are judged alike by both;"
    text += f" filter.py takes {ratio:.2f} times its detector's time."
    rows = {name: {"frames/s": len(files) / s, "ms a frame": 1000 * s / len(files)} for name, s in seconds.items()}
    show(f"Filter, {len(files)} frames", rows, text)


def bench_persons(raw: Path, *, detector: str, other: str, weights: str = "", frames: int = 817) -> None:
    """How often two detectors agree whether a frame shows a person, on the CPU, and how fast each is.

    other: another YOLO file, or ssdlite or fasterrcnn, whose weights are that file or torchvision's own.
    """
    from training.detector import TORCHVISION, person_detector

    pictures = [read_image(file, draft=512) for file in sample(raw, frames)]
    seen = {}
    rows = {}
    for name in (detector, other):
        file = Path(weights) if weights and name in TORCHVISION else None
        detect = person_detector(name, confidence=0.25, device="cpu", batch=32, size="600x256", file=file)
        detect(pictures[:2])  # warms up
        start = time.perf_counter()
        seen[name] = [count > 0 for k in range(0, len(pictures), BATCH) for count in detect(pictures[k : k + BATCH])]
        seconds = time.perf_counter() - start
        rows[name] = {"frames/s": len(pictures) / seconds, "with a person": sum(seen[name])}
    alike = sum(one == two for one, two in zip(*seen.values(), strict=True))
    show("Persons", rows, f"Of {len(pictures)} frames, {alike} are judged alike: {alike / len(pictures):.1%}.")
