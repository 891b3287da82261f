"""How many persons a frame shows: a YOLO model, run by OpenVINO on a CPU and by ultralytics on a GPU.

Or one of torchvision's detectors, whose licence is BSD, where ultralytics, which is AGPL, is not wanted.
"""

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from answering.console import UserError
from answering.cores import runtime_threads
from answering.telemetry import turn_off_telemetry

# About --conf, where a CPU that computes in bf16 asks again in float32. In bf16 alone, 98.0% of 749 frames had the
# verdict of the original's way (a316ff4); asked again, 99.9% of 750 have it (e10b033).
DOUBT = 0.05
# our names of torchvision's detectors that are quick on a CPU
TORCHVISION = {"ssdlite": "ssdlite320_mobilenet_v3_large", "fasterrcnn": "fasterrcnn_mobilenet_v3_large_320_fpn"}
TORCHVISION_PERSON = 1  # of the classes of COCO, where 0 is the background
MAX_OVERLAP = 0.7  # intersection over union; boxes with more are one person


def fit_size(width: int, height: int, size: str) -> tuple[int, int]:
    """(width, height) in pixels of the processed frame: "WxH", or "keep-aspect" for a shorter side of 256."""
    if size == "keep-aspect":
        scale = min(1.0, 256 / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))
    wide, high = size.split("x")
    return int(wide), int(high)


def import_yolo():
    """ultralytics.YOLO, which must not unpickle freely, nor install packages by itself."""
    turn_off_telemetry()
    for name, value in (("ULTRALYTICS_SAFE_LOAD", "true"), ("YOLO_VERBOSE", "false")):
        os.environ.setdefault(name, value)  # read when ultralytics is imported
    try:
        from ultralytics import YOLO
    except ImportError:
        raise UserError("--detector needs ultralytics: pip install ultralytics (or --detector none)", 2) from None
    return YOLO


def person_detector(
    weights: str, *, confidence: float, device: str | None, batch: int, size: str, file: Path | None = None
) -> Callable[[list[np.ndarray]], list[int]]:
    """Function from a list of RGB uint8 arrays [H, W, 3] to the number of persons (COCO class 0) in each.

    Frames are resized as the original did it, by OpenCV: an antialiased picture changes the verdict on 4% of them. On a
    CPU the model runs in OpenVINO, exported once by ultralytics and cached; on a GPU in ultralytics itself. weights: of
    YOLO, or a name of TORCHVISION, whose weights are those of file, or downloaded by torchvision.
    """
    if weights in TORCHVISION:
        return torchvision_detector(weights, file, confidence=confidence, device=device, batch=batch, size=size)
    import_yolo()  # says what is missing
    import torch

    mend = "name a local file with --detector PATH, or keep every good frame with --detector none"
    if not Path(weights).exists() and os.sep in weights:
        raise UserError(f"--detector {weights}: no such file; {mend}", 2)
    try:
        if device == "cpu" or not (device or torch.cuda.is_available()):
            return cpu_detector(weights, confidence=confidence, size=size)
        return gpu_detector(weights, confidence=confidence, device=device, batch=batch, size=size)
    except Exception as error:
        reason = str(error).strip().splitlines()[-1][:160] if str(error).strip() else type(error).__name__
        raise UserError(f"--detector {weights}: it can't be had or read ({reason}); {mend}") from None


def resize_frame(image: np.ndarray, size: str) -> np.ndarray:
    """RGB uint8 [H, W, 3] at the size of the processed frame, not antialiased."""
    import cv2

    return cv2.resize(image, fit_size(image.shape[1], image.shape[0], size))


# ----------------------------------------------------------------------------------------- torchvision's


def torchvision_detector(
    name: str, file: Path | None, *, confidence: float, device: str | None, batch: int, size: str
) -> Callable[[list[np.ndarray]], list[int]]:
    """person_detector by a network of TORCHVISION. file: a state dict as torchvision publishes it. Raises UserError."""
    import torch
    from torchvision.models import get_model

    from training.device import choose_device  # which imports torch

    where = choose_device(f"cuda:{device}" if device and device.isdecimal() else device)
    try:
        model = get_model(TORCHVISION[name], weights=None if file else "DEFAULT", weights_backbone=None)
        if file:
            model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        mend = "name a file of torchvision's weights with --weights, or keep every good frame with --detector none"
        raise UserError(f"--detector {name}: its weights can't be had or read ({reason}); {mend}") from None
    model = model.eval().to(where)

    @torch.no_grad()
    def detect(images: list[np.ndarray]) -> list[int]:
        counts = []
        for start in range(0, len(images), batch):
            frames = [torch.from_numpy(resize_frame(image, size)).to(where) for image in images[start : start + batch]]
            for found in model([frame.permute(2, 0, 1) / 255 for frame in frames]):
                is_person = (found["labels"] == TORCHVISION_PERSON) & (found["scores"] >= confidence)
                counts.append(int(is_person.sum()))
        return counts

    return detect


# ------------------------------------------------------------------------------------------------ on a GPU


def gpu_detector(weights: str, *, confidence: float, device: str | None, batch: int, size: str):
    """person_detector by ultralytics. device: None for one of the GPUs, another for each process of this machine."""
    import torch

    process = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
    device = device or str(process % torch.cuda.device_count())
    model = import_yolo()(weights, task="detect")
    model.predict(Image.new("RGB", (64, 64)), device=device, verbose=False)

    def detect(images: list[np.ndarray]) -> list[int]:
        results = []
        for start in range(0, len(images), batch):
            pictures = [resize_frame(image, size)[..., ::-1] for image in images[start : start + batch]]
            results += model.predict(pictures, conf=confidence, classes=[0], device=device, verbose=False)
        return [len(result.boxes) for result in results]

    return detect


# ------------------------------------------------------------------------------------------------ on a CPU


def cpu_detector(weights: str, *, confidence: float, size: str):
    """person_detector by OpenVINO, several frames at a time."""
    sides = (16, 9) if size == "keep-aspect" else fit_size(0, 0, size)
    width, height = (-(-round(640 * side / max(sides)) // 32) * 32 for side in sides)  # as YOLO pads
    path = Path(weights) if weights.endswith(".onnx") else openvino_export(weights, height, width)
    count, threads = openvino_detector(path, height, width, confidence=confidence)
    pool = ThreadPoolExecutor(threads)

    def detect(images: list[np.ndarray]) -> list[int]:
        return list(pool.map(lambda image: count(resize_frame(image, size)), images))

    return detect


def openvino_export(weights: str, height: int, width: int) -> Path:
    """The .xml of a YOLO checkpoint for inputs of this size in pixels, made by ultralytics and kept in the cache."""
    YOLO = import_yolo()
    if not Path(weights).exists():
        YOLO(weights, task="detect")  # downloads it from its official place
    source = Path(weights)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "movie-by-frame"
    digest = hashlib.sha256(source.read_bytes()).hexdigest()[:12]
    kept = cache / f"{source.stem}-{digest}-{width}x{height}"
    if not (kept / "model.xml").exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            shutil.copy(source, Path(folder, "model.pt"))
            with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(sys.stderr):
                model = YOLO(Path(folder, "model.pt"), task="detect")
                made = model.export(format="openvino", imgsz=(height, width), device="cpu")
            with contextlib.suppress(OSError):  # another process was faster
                os.replace(made, kept)
    return kept / "model.xml"


def openvino_detector(path: Path, height: int, width: int, *, confidence: float):
    """(Function from an RGB uint8 array [H, W, 3] to the number of persons, threads that may call it at a time).

    path: an OpenVINO .xml or an .onnx of a YOLO model; height and width in pixels are for one that takes any.
    Ultralytics' own OpenVINO predictor sees the same persons in 1.4 times the time: one image after the other.
    """
    import cv2
    import openvino
    from ultralytics.data.augment import LetterBox

    core = openvino.Core()
    model = read_yolo(core, path, height, width)
    height, width = list(model.input().shape)[1:3]
    options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": runtime_threads()}
    fast = core.compile_model(model, "CPU", options)
    exact = None  # in float32, where fast is not
    if fast.get_property("INFERENCE_PRECISION_HINT") != openvino.Type.f32:
        exact = core.compile_model(model, "CPU", options | {"INFERENCE_PRECISION_HINT": "f32"})
    letterbox = LetterBox((height, width), auto=False)

    def count(image: np.ndarray) -> int:
        picture = letterbox(image=image)[None]
        boxes = person_boxes(fast, picture, confidence - DOUBT)
        best = boxes[4].max(initial=0)
        if exact is not None and confidence - DOUBT < best < confidence + DOUBT:
            boxes = person_boxes(exact, picture, confidence - DOUBT)
        corners = np.vstack([boxes[:2] - boxes[2:4] / 2, boxes[2:4]])
        return len(cv2.dnn.NMSBoxes(corners.T, boxes[4], confidence, MAX_OVERLAP))

    # the first call of all must be one thread's: two wait for each other inside OpenVINO, for ever
    for network in (fast, exact):
        if network is not None:
            network.infer_new_request([np.zeros((1, height, width, 3), np.uint8)])
    return count, fast.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")


def read_yolo(core, path: Path, height: int, width: int):
    """The OpenVINO model of a YOLO file with another input: uint8 [1, H, W, 3] in place of float32 [1, 3, H, W]."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    model = core.read_model(str(path))
    if model.is_dynamic():
        model.reshape([1, 3, height, width])
    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    return steps.build()


def person_boxes(network, picture: np.ndarray, least: float) -> np.ndarray:
    """Boxes with a score over least that are persons rather than anything else: float32 [4 + classes, boxes].

    picture: uint8 [1, H, W, 3]. A column is a box: x and y of its centre, width, height, and its score by class.
    """
    boxes = network.infer_new_request([picture])[0][0]
    boxes = boxes[:, boxes[4] > least]
    return boxes[:, boxes[4:].argmax(axis=0) == 0]
