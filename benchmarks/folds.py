"""`python bench.py robust --cache FOLDER`: index, classifier and both together over five folds, a row a method.

Embeddings are computed once and kept in FOLDER, so that another run takes minutes. The classifier is a linear probe
on the model's embedding, as `train.py --epochs 0` fits it.
"""

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from answering.calibration import UNKNOWN_SHARE, named_right
from answering.collection import Index, fingerprint
from answering.console import UserError
from answering.editing import finish, open_to_add, store_film
from answering.embedding import DEGRADED_COPIES, EmbeddedPicture, join_pictures
from answering.model import Answer, Identifier
from answering.state import Film
from answering.stills import Still
from answering.store import Collection
from answering.strangers import find_strangers
from benchmarks.embedded import COPY, Embedded, Looks, spread_rows
from benchmarks.harness import show
from training.dataset import UNKNOWN_SPLITS, ManifestRow, assign_folds, choose_rows, read_manifest

FOLDS = 5
LAST_FOLD = 4  # it stands apart: choices are made on the others
SHRINKAGE = 0.3  # of the probe, and
COPY_WEIGHT = 0.03  # what a degraded copy counts: as train.py has them
TOGETHER = 4  # frames of a film that are asked together
DRAWS = 500  # of films, for intervals (Efron 1979)
METHODS = ("index", "classifier", "both")


@dataclass
class Asked:
    """Answers to test frames of one fold."""

    known: list[Answer]
    films: list[str]  # the title of each
    unknown: list[Answer]
    unknown_films: list[str]


def bench_folds(data: Path, model: Path, cache: Path, *, frames: int, ways: list[str]) -> None:
    """Print two tables, of folds 0 to 3 and of fold 4: a row a method and a way; frames: a film, at most."""
    identifier = Identifier(model)
    if identifier.classes:
        raise UserError(f"{model}: --cache takes an embedder, which it fits a classifier on for every fold", 2)
    embedded = Embedded(identifier, cache)
    rows = read_manifest(data)
    asked: dict[str, list[Asked]] = {}
    for fold in range(FOLDS):
        chosen, classes = choose_rows(rows, fold=fold)
        for method, answering in zip(METHODS, fit_fold(identifier, embedded, chosen, classes), strict=True):
            for name in ways:
                given = ask_fold(answering, embedded, chosen, name, frames)
                asked.setdefault(f"{method}, {name}", []).append(given)
            given = ask_together(answering, embedded, chosen)
            asked.setdefault(f"{method}, {TOGETHER} frames together", []).append(given)
    about = f"{model}, {len(classes)} films, at most {frames} frames a film; 95% intervals by films"
    for title, part in (("folds 0 to 3", slice(0, LAST_FOLD)), ("fold 4", slice(LAST_FOLD, None))):
        show(f"{title}, {about}", {row: measure(folds[part]) for row, folds in asked.items()})


# -------------------------------------------------------------------------------------------- what is fitted


def fit_fold(
    identifier: Identifier, embedded: Embedded, chosen: dict[str, list[ManifestRow]], classes: list[str]
) -> Iterator[Identifier]:
    """The identifier with an index of the frames for training, as a classifier of them, and as both."""
    rows = chosen["train"] + chosen["val"]
    clean = embedded.looks(rows, "as it is").whole
    copies = embedded.looks(rows, COPY).whole
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "index.sqlite")
        make_index(identifier, rows, clean, copies, place)
        indexed = copy.copy(identifier)
        indexed.index = Index(str(place), identifier)
        yield indexed
        head = fit_classifier(embedded, chosen, classes, clean, copies)
        yield head.attach(identifier, None)
        yield head.attach(identifier, indexed.index)


def make_index(
    identifier: Identifier, rows: list[ManifestRow], clean: np.ndarray, copies: np.ndarray, place: Path
) -> None:
    """An index of these frames [N], from their embeddings and those of a degraded copy of each."""
    films: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        if np.isfinite(clean[number, 0]):
            films.setdefault(row.movie, []).append(number)
    collection = Collection(str(place))
    seen = fingerprint(identifier)
    with open_to_add(collection, identifier.contract.architecture, seen) as state:
        for title, numbers in sorted(films.items()):
            numbers.sort(key=lambda number: rows[number].place)
            copied = set(numbers[:: max(1, len(numbers) // DEGRADED_COPIES)])
            pictures = []
            for number in numbers:
                degraded = None
                if number in copied and np.isfinite(copies[number, 0]):
                    degraded = copies[number].astype(np.float16)
                still = Still(file=Path(rows[number].path).name, picture=None)
                pictures.append(EmbeddedPicture(still, clean[number].astype(np.float16), b"-", degraded))
            store_film(collection, state, Film(id=0, title=title, stills=len(pictures)), join_pictures(pictures))
        strangers = find_strangers(identifier.place, seen)
        finish(collection, state, unknown_share=None, force=True, strangers=strangers)


@dataclass
class Head:
    """A linear classifier on standardised embeddings, and its rule."""

    classes: list[str]
    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    weight: np.ndarray  # [C, D]
    bias: np.ndarray  # [C]
    rule: object  # training.rule.Rule

    def attach(self, identifier: Identifier, index: Index | None) -> Identifier:
        """An identifier that answers as an exported file of this head, with or without an index."""
        answering = copy.copy(identifier)
        answering.classes = self.classes
        answering.index = index
        decision = {"movie": self.rule.movie, "shortlist": self.rule.shortlist}
        answering.contract = replace(identifier.contract, classes=self.classes, decision=decision)
        answering.head = self
        return answering

    def logits(self, embedding: np.ndarray) -> np.ndarray:
        """float32 [N, C] of embeddings [N, D]."""
        return (((embedding - self.mean) / self.scale) @ self.weight.T + self.bias).astype(np.float32)

    def outputs(self, embedding: np.ndarray) -> dict[str, np.ndarray]:
        """What an exported file gives for embeddings [N, D]."""
        import torch

        logits = torch.from_numpy(self.logits(embedding))
        return {"probabilities": self.rule.probabilities(logits).numpy(), "known": self.rule.known(logits).numpy()}


def fit_classifier(
    embedded: Embedded,
    chosen: dict[str, list[ManifestRow]],
    classes: list[str],
    clean: np.ndarray,
    copies: np.ndarray,
) -> Head:
    """The probe of the frames for training, clean [N, D] and copies [N, D], with a rule from frames left out of it."""
    import torch

    from training.probe import Features, cross_fit, fit_head

    rows = chosen["train"] + chosen["val"]
    labels = np.array([classes.index(row.movie) for row in rows])
    shown = np.isfinite(clean[:, 0])
    copied = shown & np.isfinite(copies[:, 0])
    mean = clean[shown].mean(0)
    scale = np.maximum(clean[shown].std(0), 1e-6)
    embedding = (np.concatenate([clean[shown], copies[copied]]) - mean) / scale
    weights = np.r_[np.ones(shown.sum()), np.full(copied.sum(), COPY_WEIGHT)].astype(np.float32)
    features = Features(embedding.astype(np.float32), np.r_[labels[shown], labels[copied]], weights)
    folds = assign_folds(rows)
    count = int(shown.sum())
    logits = cross_fit(features, np.r_[folds[shown], folds[copied]], SHRINKAGE, torch.device("cpu"))[:count]
    left_out = folds[shown] >= 0
    columns = [torch.from_numpy(column) for column in features]
    weight, bias = fit_head(columns[0], columns[1], SHRINKAGE, columns[2])
    head = Head(classes, mean, scale, weight.numpy(), bias.numpy(), None)
    head.rule = fit_head_rule(head, embedded, chosen, logits[left_out], labels[shown][left_out])
    return head


def fit_head_rule(
    head: Head, embedded: Embedded, chosen: dict[str, list[ManifestRow]], logits: np.ndarray, labels: np.ndarray
):
    """A rule from logits [N, C] with labels [N], and from the unknown films for validation, as export.py fits it."""
    from training.rule import UnknownFrames, fit_rule

    unknown = embedded.looks(chosen["unknown_val"], "as it is").whole
    shown = np.isfinite(unknown[:, 0])
    films = np.unique([row.movie for row in chosen["unknown_val"]], return_inverse=True)[1]
    return fit_rule(logits, labels, UnknownFrames(head.logits(unknown[shown]), films[shown]), UNKNOWN_SHARE)[0]


# -------------------------------------------------------------------------------------------- what is asked


def ask_fold(
    answering: Identifier, embedded: Embedded, chosen: dict[str, list[ManifestRow]], name: str, frames: int
) -> Asked:
    """Answers to the test frames of a fold, changed in this way.

    The unknown ones are those for the test alone where there is a classifier, whose rule has seen the others.
    """
    known = spread_rows(chosen["test"], frames)
    unknown = unknown_rows(answering, chosen)
    return Asked(
        known=answer_looks(answering, embedded.looks(known, name)),
        films=[row.movie for row in known],
        unknown=answer_looks(answering, embedded.looks(unknown, name)),
        unknown_films=[row.movie for row in unknown],
    )


def unknown_rows(answering: Identifier, chosen: dict[str, list[ManifestRow]]) -> list[ManifestRow]:
    """Frames of unknown films that no rule of this identifier has seen."""
    splits = ["unknown_test"] if answering.classes else UNKNOWN_SPLITS
    return [row for split in splits for row in chosen[split]]


def answer_looks(answering: Identifier, looks: Looks) -> list[Answer]:
    """Answers to frames by their embeddings, as Identifier.identify gives them to pictures."""
    answers = []
    for whole, still in zip(looks.whole, looks.still, strict=True):
        answer = answer_embeddings(answering, whole[None])
        if answer.kind == "unknown" and np.isfinite(still[0]):
            answer = answer_embeddings(answering, still[None])
        answers.append(answer)
    return answers


def answer_embeddings(answering: Identifier, embedding: np.ndarray) -> Answer:
    """One answer to frames of a film by their embeddings [N, D]; those that are nan have too little in them."""
    shown = embedding[np.isfinite(embedding[:, 0])]
    if not len(shown):
        return Answer("unknown", [], 0.0)
    outputs = {"embedding": shown}
    if answering.classes:
        outputs |= answering.head.outputs(shown)
    return answering.answer_together(outputs, 3)


def ask_together(answering: Identifier, embedded: Embedded, chosen: dict[str, list[ManifestRow]]) -> Asked:
    """Answers to so many neighbouring test frames of a film at a time, as they are."""

    def ask(rows: list[ManifestRow]) -> tuple[list[Answer], list[str]]:
        answers, films = [], []
        for title in sorted({row.movie for row in rows}):
            own = [row for row in rows if row.movie == title]
            embedding = embedded.looks(own, "as it is").whole
            for start in range(0, len(own) - TOGETHER + 1, TOGETHER):
                answers.append(answer_embeddings(answering, embedding[start : start + TOGETHER]))
                films.append(title)
        return answers, films

    return Asked(*ask(chosen["test"]), *ask(unknown_rows(answering, chosen)))


# ---------------------------------------------------------------------------------------------- what is found


def measure(folds: list[Asked]) -> dict[str, str]:
    """Figures over folds, ready to print, with intervals by draws of films."""
    known = [answer for asked in folds for answer in asked.known]
    titles = np.array([title for asked in folds for title in asked.films])
    unknown = [answer for asked in folds for answer in asked.unknown]
    unknown_titles = np.array([title for asked in folds for title in asked.unknown_films])
    right = np.array([bool(a.candidates) and a.candidates[0].title == t for a, t in zip(known, titles, strict=True)])
    listed = np.array([t in [c.title for c in a.candidates] for a, t in zip(known, titles, strict=True)])
    named, offered = (np.array([answer.kind == kind for answer in known]) for kind in ("movie", "shortlist"))
    stranger_named = np.array([answer.kind == "movie" for answer in unknown])
    stranger_offered = np.array([answer.kind == "shortlist" for answer in unknown])
    columns = np.stack([right, named, named & right, offered, offered & listed], 1).astype(float)
    by_film = np.stack([columns[titles == title].mean(0) for title in np.unique(titles)])
    strange = np.stack([stranger_named, stranger_offered], 1).astype(float)
    strange_by_film = np.stack([strange[unknown_titles == title].mean(0) for title in np.unique(unknown_titles)])
    rng = np.random.default_rng(13)
    drawn = []
    for _ in range(DRAWS):
        ours = by_film[rng.integers(0, len(by_film), len(by_film))].mean(0)
        theirs = strange_by_film[rng.integers(0, len(strange_by_film), len(strange_by_film))].mean(0)
        drawn.append(list(shares(ours, theirs).values()))
    low, high = np.nanquantile(np.array(drawn), (0.025, 0.975), axis=0)
    figures = {}
    values = shares(by_film.mean(0), strange_by_film.mean(0))
    for place, (name, value) in enumerate(values.items()):
        figures[name] = f"{value:.3f} ({low[place]:.2f} to {high[place]:.2f})".replace("nan", "-")
    figures["AUROC"] = f"{np.mean([area(asked) for asked in folds]):.3f}"
    return figures


def shares(known: np.ndarray, unknown: np.ndarray) -> dict[str, float]:
    """Figures, each film alike, of means: known, of right, named, named rightly, offered, offered with it; unknown."""
    right, named, exact, offered, listed = known
    stranger_named, stranger_offered = unknown
    return {
        "balanced": right,
        "named": named,
        "of named right": named_right(named, exact, stranger_named),
        "of shortlists right": named_right(offered, listed, stranger_offered),
        "helpful": exact + listed,
        "unknown not named": 1 - stranger_named,
        "unknown refused": 1 - stranger_named - stranger_offered,
    }


def area(asked: Asked) -> float:
    """AUROC of the confidence in the first candidate, known frames against unknown ones."""
    from training.metrics import auroc_fpr95

    def confidence(answers: list[Answer]) -> np.ndarray:
        return np.array([answer.candidates[0].confidence if answer.candidates else 0.0 for answer in answers])

    return auroc_fpr95(confidence(asked.known), confidence(asked.unknown))[0]
