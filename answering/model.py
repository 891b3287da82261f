"""Identifier, an exported model that names films, and its answers: numpy, Pillow and one runtime, no torch."""

import base64
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from answering.console import UserError
from answering.contract import Contract
from answering.flat import is_flat
from answering.pictures import preprocess, read_image
from answering.runtimes import choose_file, cpu_flags, load_file, release_weights
from answering.screenshots import cut_still

TOO_LITTLE = "too little in the picture"  # the reason of an answer about a flat picture

# ------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True)
class Evidence:
    """The still of an index that is nearest to the frame, and the stretch of its film that looks alike."""

    title: str
    file: str  # the still's file name
    similarity: float  # cosine, -1..1
    time_ms: int | None  # milliseconds into the film; None where the still has no time
    from_ms: int | None
    to_ms: int | None
    thumbnail: bytes  # a small WebP, or a JPEG from an index of a version before

    def as_dict(self) -> dict:
        """For JSON: the thumbnail in base64."""
        return asdict(self) | {"thumbnail": base64.b64encode(self.thumbnail).decode()}


@dataclass(frozen=True)
class Candidate:
    title: str
    confidence: float  # 0..1
    evidence: Evidence | None = None  # with an index

    def as_dict(self) -> dict:
        """For JSON; without evidence there is no such key."""
        row = {"title": self.title, "confidence": round(self.confidence, 4)}
        if self.evidence:
            row["evidence"] = self.evidence.as_dict()
        return row


@dataclass(frozen=True)
class Answer:
    kind: str  # "movie", "shortlist" or "unknown"
    candidates: list[Candidate]  # best first, whatever the kind
    ms: float  # time for this frame, milliseconds
    look: str | None = None  # "still": it is about the picture inside a screenshot
    reason: str | None = None  # why it is unknown, where the model was not asked: TOO_LITTLE
    frames: int | None = None  # of a clip or several pictures, that were asked together

    def as_dict(self) -> dict:
        """For JSON, as identify.py --json prints it; look and reason are there only where they say something."""
        candidates = [candidate.as_dict() for candidate in self.candidates]
        row = {"kind": self.kind, "candidates": candidates, "ms": round(self.ms, 2)}
        if self.look:
            row["look"] = self.look
        if self.reason:
            row["reason"] = self.reason
        if self.frames is not None:
            row["frames"] = self.frames
        return row


class FilmIndex(Protocol):
    """What an Identifier asks of an index of known stills; Index of collection.py is one."""

    films: Collection[str]  # their titles; a dict by title is one

    def answers(self, embedding: np.ndarray, top: int = 3) -> list[Answer]:
        """An answer a row of embeddings float [N, D]."""

    def answer_together(
        self, embedding: np.ndarray, top: int = 3, *, time_ms: np.ndarray | None = None, length_ms: int = 0
    ) -> Answer:
        """One answer for several frames of a film: embeddings float [N, D]; of a clip, their times [N], its length."""


def answer_kind(score: float, *, movie: float, shortlist: float) -> str:
    """The kind of an answer with this score, by the thresholds from which a film is named or three are offered."""
    if score >= movie:
        return "movie"
    return "shortlist" if score >= shortlist else "unknown"


def join_answers(indexed: list[Answer], classified: list[Answer], films: Collection[str]) -> list[Answer]:
    """One answer each from those of an index and of a classifier, as join_answer has it.

    classified: as many answers, or none where there is no classifier; films: the titles of the index.
    """
    if not classified:
        return indexed
    return [join_answer(*pair, films) for pair in zip(indexed, classified, strict=True)]


def join_answer(indexed: Answer, classified: Answer, films: Collection[str]) -> Answer:
    """One answer from that of an index, which shows proof, and that of a classifier.

    A film that the classifier names and the index does not hold is named where the index names none. Where both name
    different films that the index holds, both are offered. In all other cases the index answers: where it refuses, the
    classifier is seldom right, even where both have the same best guess (RESULTS.md).
    """
    if classified.kind != "movie":
        return indexed
    named = classified.candidates[0].title
    if named not in films:
        return indexed if indexed.kind == "movie" else classified
    if indexed.kind == "movie" and indexed.candidates[0].title != named:
        return replace(indexed, kind="shortlist", candidates=put_second(indexed.candidates, classified.candidates[0]))
    return indexed


def put_second(candidates: list[Candidate], other: Candidate) -> list[Candidate]:
    """As many candidates, with one of them, or another, in the second place."""
    rest = [candidate for candidate in candidates[1:] if candidate.title != other.title]
    found = [candidate for candidate in candidates[1:] if candidate.title == other.title] or [other]
    return [candidates[0], *found, *rest][: max(2, len(candidates))]


def format_answer(answer: Answer, guess: bool = False) -> str:
    """One line for people. guess: with the candidates of an unknown film."""
    listed = " | ".join(f"{c.title} ({c.confidence:.0%})" for c in answer.candidates)
    inside = ", by the still inside it" if answer.look else ""
    if answer.kind == "movie":
        return f"{answer.candidates[0].title}  ({answer.candidates[0].confidence:.0%}{inside})"
    if answer.kind == "shortlist":
        return f"one of: {listed}{inside}"
    if answer.reason:
        return f"I don't know this film: {answer.reason}"
    return "I don't know this film" + (f"; best guess: {listed}" if guess else "")


# ------------------------------------------------------------------------------------------------ the model


class Identifier:
    """An exported model, loaded once.

    path: the folder that export.py wrote, or one of its .onnx or .xml files. runtime: "openvino" or "onnxruntime";
    format: "int8" or "fp32"; where they leave a choice, choose_file makes it (reason tells). threads: 0 for all cores.
    precision: "f32" or "bf16", for OpenVINO. Raises UserError for a model that is missing, broken, or not one of ours.

    index: None, or the films that answer first. run: uint8 [N, S, S, 3] -> {output: values [N, ...]}.
    """

    def __init__(self, path, *, runtime=None, format=None, threads: int = 0, precision: str | None = None):
        if precision and not runtime:
            runtime = "openvino"  # the only one that heeds it
        self.place = Path(path)  # as it was named
        chosen = choose_file(self.place, runtime, format, cpu_flags())
        self.path = chosen.path  # of the one file that was loaded
        self.runtime = chosen.runtime
        self.format = chosen.format
        self.reason = chosen.reason
        loaded = load_file(chosen, threads, precision)
        self.run = loaded.run
        self.contract = Contract.load(loaded.metadata, self.path)
        self.classes = self.contract.classes
        self.preprocessing = self.contract.preprocessing
        self.index: FilmIndex | None = None
        self.check_input(loaded.input)
        self.check_outputs()
        release_weights(self.path)

    def check_input(self, described: list) -> None:
        """Raise UserError unless the graph takes the pictures that the contract speaks of."""
        size = self.preprocessing["size"]
        if described != ["image", "tensor(uint8)", size, size, 3]:
            raise UserError(
                f"--model {self.path}: its input is {described}, not image uint8 [N, S, S, 3]; export it again"
            )

    def check_outputs(self) -> None:
        """Raise UserError unless the outputs fit the classes. The first run also warms the runtime up."""
        size = self.preprocessing["size"]
        outputs = self.run(np.zeros((1, size, size, 3), np.uint8))
        shapes = {name: list(values.shape[1:]) for name, values in outputs.items()}
        count = len(self.classes)
        wanted = {"embedding": shapes.get("embedding")}  # of any length
        if count:
            wanted |= {"logits": [count], "probabilities": [count], "known": []}
        if shapes != wanted:
            raise UserError(f"--model {self.path}: its outputs {shapes} don't fit its {count} classes; export it again")

    @property
    def draft(self) -> int | None:
        """As read_image takes it: twice the model's size, so that the final resize and the bars see real detail."""
        return 2 * self.preprocessing["size"] if self.preprocessing["draft"] else None

    def read(self, image) -> np.ndarray:
        """Path, bytes, PIL image or RGB uint8 array -> RGB uint8 [H, W, 3]. Raises UserError if unreadable."""
        return read_image(image, draft=self.draft)

    def load(self, image) -> np.ndarray:
        """Path, bytes, PIL image or RGB uint8 array -> model input uint8 [S, S, 3]. Raises UserError if unreadable."""
        return preprocess(self.read(image), self.preprocessing)

    def identify(self, image, top: int = 3) -> Answer:
        """Answer for a frame: path, bytes, PIL image or RGB uint8 [H, W, 3]; or one for a list of frames of a film.

        Flat frames, such as black ones and credits, are left out; where no other is left the answer is unknown, with
        a reason. Screenshots whose film is unknown are cropped to the still inside and tried again. Raises UserError if
        one is unreadable.
        """
        start = time.perf_counter()
        pictures = [self.read(one) for one in (image if isinstance(image, list) else [image])]
        looks = [look_inside(rgb) for rgb in pictures]
        looks = [(whole, still) for whole, still in looks if whole is not None]
        answer = self.name_film([whole for whole, _ in looks], top)
        if answer.kind == "unknown" and any(still is not None for _, still in looks):
            stills = [whole if still is None else still for whole, still in looks]
            answer = replace(self.name_film(stills, top), look="still")
        return replace(answer, ms=milliseconds_since(start))

    def look(self, pictures: list[np.ndarray], top: int = 3) -> Answer:
        """One answer for pictures uint8 [H, W, 3] of one film, as they are, but for flat ones."""
        start = time.perf_counter()
        answer = self.name_film([rgb for rgb in pictures if not is_flat(rgb)], top)
        return replace(answer, ms=milliseconds_since(start))

    def name_film(self, pictures: list[np.ndarray], top: int) -> Answer:
        """What look answers for pictures that are not flat; ms is left at 0."""
        if not pictures:
            return Answer("unknown", [], 0.0, reason=TOO_LITTLE)
        return self.answer_together(self.run_each(pictures), top)

    def run_each(self, pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
        """The outputs of run [N, ...] for pictures uint8 [H, W, 3], one or more."""
        # in turn, so that memory stays as it is
        rows = [self.run(preprocess(rgb, self.preprocessing)[None]) for rgb in pictures]
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def answer_together(
        self, outputs: dict[str, np.ndarray], top: int, *, time_ms: np.ndarray | None = None, length_ms: int = 0
    ) -> Answer:
        """One answer for the outputs of run [N, ...] for frames of one film; ms is left at 0.

        Of a clip: time_ms [N], of each frame since the clip's start, and length_ms of the clip. frames tells how many
        there were, where it is more than one.
        """
        count = len(outputs["embedding"])
        if count == 1 and time_ms is None:
            (answer,) = self.make_answers(outputs, top)
            return answer
        classified = self.classify({name: values.mean(0, keepdims=True) for name, values in outputs.items()}, top)
        if not self.index:
            return replace(classified[0], frames=count)
        indexed = self.index.answer_together(outputs["embedding"], top, time_ms=time_ms, length_ms=length_ms)
        (answer,) = join_answers([indexed], classified, self.index.films)
        return replace(answer, frames=count)

    def answers(self, batch: np.ndarray, top: int = 3) -> list[Answer]:
        """Answers for preprocessed frames uint8 [N, S, S, 3]; ms is the share of the batch."""
        if not len(batch):
            return []
        start = time.perf_counter()
        answers = self.make_answers(self.run(batch), top)
        share = milliseconds_since(start) / len(answers)
        return [replace(answer, ms=share) for answer in answers]

    def make_answers(self, outputs: dict[str, np.ndarray], top: int) -> list[Answer]:
        """An answer a row of the outputs of run, from the index, the classifier, or both; ms is left at 0."""
        classified = self.classify(outputs, top)
        if not self.index:
            return classified
        indexed = self.index.answers(outputs["embedding"], top)
        return join_answers(indexed, classified, self.index.films)  # films after answers, which may read a newer index

    def classify(self, outputs: dict[str, np.ndarray], top: int) -> list[Answer]:
        """An answer a row of the outputs of run, from the classifier alone; none where there is none, but an index."""
        if self.classes:
            return self.name_classes(outputs, top)
        if not self.index:
            raise UserError(
                f"--model {self.path}: an embedder knows no films; name an --index, or export a trained run"
            )
        return []

    def name_classes(self, outputs: dict[str, np.ndarray], top: int) -> list[Answer]:
        """What the classifier alone answers, by its probabilities and thresholds."""
        decision = self.contract.decision
        answers = []
        for row, known in zip(outputs["probabilities"], outputs["known"], strict=True):
            best = np.argsort(-row, kind="stable")[:top]
            candidates = [Candidate(self.classes[film], float(row[film])) for film in best]
            kind = answer_kind(known, movie=decision["movie"], shortlist=decision["shortlist"])
            answers.append(Answer(kind, candidates, 0.0))
        return answers


def look_inside(rgb: np.ndarray) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(the whole picture, None where it or the still inside is flat; the still inside, None where it is no screenshot).

    All are RGB uint8 [H, W, 3].
    """
    if is_flat(rgb):
        return None, None
    still = cut_still(rgb)
    if is_flat_inside(rgb, still):
        return None, None
    return rgb, still if still.size < rgb.size else None


def is_flat_inside(rgb: np.ndarray, still: np.ndarray) -> bool:
    """Whether rgb is a screenshot with a flat still; in a picture wider than tall a small still may be a false find."""
    taller = rgb.shape[0] > rgb.shape[1]
    return still.size < rgb.size and (taller or still.size >= 0.3 * rgb.size) and is_flat(still)


def milliseconds_since(start: float) -> float:
    """start: of time.perf_counter()."""
    return (time.perf_counter() - start) * 1000


# ------------------------------------------------------------------------------------------------ the self-test


@dataclass(frozen=True)
class SelfTest:
    """How one file of a model does on this CPU."""

    variant: str  # runtime and format
    ms: float  # median time a frame, milliseconds
    relative_error: float  # against what torch computed at export
    agrees: bool  # whether this CPU computes what torch did


def reference_frames(size: int = 224, count: int = 6) -> np.ndarray:
    """uint8 [count, size, size, 3] drawn from numbers alone, the same on every machine."""
    random = np.random.RandomState(13)  # its stream is frozen, unlike default_rng's
    frames = np.zeros((count, size, size, 3), np.int32)
    for cells, strength in ((2, 90), (7, 60), (28, 40), (112, 20)):
        coarse = random.randint(-strength, strength + 1, (count, cells, cells, 3))
        place = np.arange(size) * cells // size
        frames += coarse[:, place][:, :, place]
    return (128 + frames).clip(0, 255).astype(np.uint8)


def relative_error(values: np.ndarray, wanted: np.ndarray) -> float:
    """Distance of values [N, C] from the wanted ones, both centred by rows, as a share of the wanted ones' length."""
    values, wanted = (rows.astype(np.float64) - rows.mean(axis=1, keepdims=True) for rows in (values, wanted))
    return float(np.linalg.norm(values - wanted) / max(np.linalg.norm(wanted), 1e-12))


def self_test(model: Identifier) -> SelfTest:
    """Time a frame, and compare what this CPU computes with what torch did.

    They agree up to a quarter more than the error that this file had at export: where 8-bit sums saturate, for want of
    VNNI, it is half as much again and more.
    """
    promised = model.contract.self_test
    frames = reference_frames(model.preprocessing["size"])
    wanted = np.array(promised["values"], np.float32)
    error = relative_error(model.run(frames)[promised["output"]], wanted)
    times = []
    for frame in frames:
        start = time.perf_counter()
        model.run(frame[None])
        times.append(milliseconds_since(start))
    return SelfTest(
        variant=f"{model.runtime} {model.format}",
        ms=round(float(np.median(times)), 2),
        relative_error=round(error, 4),
        agrees=error <= max(0.03, 1.25 * promised["relative_error"] + 0.005),
    )
