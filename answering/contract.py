"""The contract of an exported file: what it says of itself, so that one file is enough to answer."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from PIL import Image

from answering.console import UserError, atomic_write
from answering.telemetry import turn_off_telemetry

FORMAT = "movie-by-frame 2"  # of an exported file
PLAIN_TEXT = ("architecture", "commit", "format")  # fields that are written as they are; the others as JSON
REMEDY = "export it again: python export.py runs/RUN/best.pt"


@dataclass
class Contract:
    """What an exported file says of itself: in metadata_props of an .onnx, rt_info of an .xml, and model.json.

    The graph takes image uint8 [N, S, S, 3] and gives logits [N, C], probabilities [N, C], known [N] and embedding
    [N, D]: known >= decision["movie"] names the first film, known >= decision["shortlist"] offers three, else unknown.
    An embedder, a network that was taught no films, has no classes and gives embedding alone.
    """

    architecture: str
    commit: str
    classes: list[str]
    preprocessing: dict  # the keys of PREPROCESSING
    # "movie" and "shortlist", thresholds of known; their "targets", None where no unknown films taught them and nothing
    # is promised; the "score" behind known
    decision: dict
    accuracy: dict  # figures, on the split that it names
    self_test: dict  # "output", its "values" on reference_frames, their "relative_error"; an index's "fingerprint"
    format: str = FORMAT

    def save(self, path: Path) -> None:
        """Put it into an .onnx or .xml file that export.py wrote, or into a .json file for people."""
        if path.suffix == ".json":
            write_json(path, asdict(self))
        elif path.suffix == ".onnx":
            write_onnx_metadata(path, self.as_metadata())
        else:
            write_openvino_metadata(path, self.as_metadata())

    def as_metadata(self) -> dict[str, str]:
        """Every field as text, the way load reads it."""
        return {
            name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for name, value in asdict(self).items()
        }

    @classmethod
    def load(cls, metadata: dict[str, str], path: Path) -> "Contract":
        """The contract in the metadata of the file path, every field checked.

        Raises UserError with the remedy, and the name of the field that is damaged.
        """
        if "format" not in metadata:
            raise UserError(f"--model {path}: carries no classes and no rule, so export.py did not write it; {REMEDY}")
        if metadata["format"] != FORMAT:
            raise UserError(f"--model {path}: is in the format {metadata['format'][:40]!r}, not {FORMAT!r}; {REMEDY}")
        values = {}
        for name in [field.name for field in fields(cls)]:
            try:
                values[name] = metadata[name] if name in PLAIN_TEXT else json.loads(metadata[name])
                sound = is_sound(name, values)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                sound = False
            if not sound:
                raise UserError(f"--model {path}: its metadata is damaged ({name}); {REMEDY}")
        return cls(**values)


# ------------------------------------------------------------------------------------------- a writer a kind of file


def write_json(path: Path, values: dict) -> None:
    with atomic_write(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1, ensure_ascii=False)


def write_onnx_metadata(path: Path, metadata: dict[str, str]) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def write_openvino_metadata(path: Path, metadata: dict[str, str]) -> None:
    turn_off_telemetry()
    import openvino

    model = openvino.Core().read_model(path, config={"ENABLE_MMAP": False})  # the file that is read is overwritten
    for name, value in metadata.items():
        model.set_rt_info(value, ["movie_by_frame", name])
    openvino.save_model(model, path, compress_to_fp16=False)


# --------------------------------------------------------------------------------------- checks, a field at a time


def is_sound(name: str, values: dict) -> bool:
    """Whether a field holds what the code relies on; values: the fields up to this one. What is malformed may raise."""
    if name == "classes":
        return are_titles(values["classes"])
    if name == "preprocessing":
        return is_preprocessing(values["preprocessing"])
    if name == "decision" and values["classes"]:
        targets = values["decision"].get("targets")
        is_promise = targets is None or all(0 < targets[kind] <= 1 for kind in ("movie", "shortlist"))
        return is_promise and 0 <= values["decision"]["shortlist"] <= values["decision"]["movie"]
    return True


def are_titles(classes: list) -> bool:
    """Two different titles or more, or none at all, as in an embedder."""
    if not all(isinstance(title, str) for title in classes):
        return False
    return len(classes) == len(set(classes)) != 1


def is_preprocessing(settings: dict) -> bool:
    """Whether all settings are there, with values that preprocess knows."""
    return (
        16 <= settings["size"] <= 2048
        and settings["resize"] == "squash"
        and len(settings["mean"] + settings["std"]) == 6
        and settings["crop_bars"] in (True, False)
        and settings["draft"] in (True, False)
        and settings["interpolation"].upper() in Image.Resampling.__members__
    )
