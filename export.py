"""Export a model to ONNX and OpenVINO, in float and int8, with classes, rule and accuracy inside.

python export.py runs/deit_base_patch16_224-processed/best.pt --data data/processed
python identify.py frame.jpg --model export
python export.py model.pt --arch deit_base_patch16_224 --classes classes.txt     # the original project's own weights
python export.py runs --best --max-ms 30            # of all runs the most accurate that answers within 30 ms
python export.py --arch vit_small_patch14_dinov2 --init hub --frames ~/films     # an embedder, which knows no films
"""

import argparse
import base64
import contextlib
import functools
import logging
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Subset

from answering.calibration import MIN_UNKNOWN_FILMS, TARGETS, UNKNOWN_SHARE
from answering.clip import read_video
from answering.console import UserError, one_line, one_line_errors
from answering.contract import Contract
from answering.model import Identifier, reference_frames, relative_error
from answering.pictures import PREPROCESSING, preprocess, read_image
from answering.projection import MIN_FILMS
from answering.reading import ReadingPool
from answering.shelf import find_shelf
from answering.stills import expand, is_junk, list_stills, walk_images
from answering.strangers import FILE as STRANGERS_FILE
from answering.strangers import embed_strangers, list_strangers, write_strangers
from answering.titles import normalise_title, split_title
from models import Checkpoint, build_model, convert_original, is_transformer, preprocessing_for
from training.comparison import Row, build_tables, read_runs, write_comparison, write_export
from training.dataset import SPLITS, UNKNOWN_SPLITS, choose_rows, label_rows, read_manifest, split_fingerprint
from training.device import keep_memory, limit_threads
from training.export_report import ExportReport, draw_calibration, write_card, write_report
from training.formats import WEB, measure_formats, run_batches
from training.frames import FrameStore, default_cache, load_frames, normalise
from training.metrics import measure
from training.portable import make_portable
from training.quantise import write_int8, write_web
from training.rule import (
    ORIGINAL_RULE,
    Rule,
    RuleCheck,
    ScoreFigures,
    UnknownFrames,
    check_rule,
    fit_rule,
    join_unknown,
    leave_films_out,
)

FILES = {
    "model.onnx",
    "model.int8.onnx",
    WEB,
    "openvino",
    "model.json",
    STRANGERS_FILE,
    "report.md",
    "README.md",
    "calibration.png",
}
ENOUGH_UNKNOWN_FILMS = 10  # of a dataset's own: then the films that come with the product need not help to refuse
KEPT = {"titles.csv"}  # in an export that is written anew: the bot's container reads it there
CALIBRATION_FRAMES = 100
OPSET = 18
MAX_DROP = 0.5  # points of balanced accuracy
MAX_FP32_ERROR = 1e-3  # relative, of the float file against torch
REPORTED_SHARES = (0.1, 0.3, 0.6)  # of unknown films, for which report.md tells how the rule answers
DATA = Path("data/processed")
ORIGINAL_ARCH = "deit_base_patch16_224"


# ------------------------------------------------------------------------------------- the graph, and its file


class Exported(nn.Module):
    """The contract: image uint8 [N, S, S, 3] RGB -> logits, probabilities, known, embedding, or embedding alone."""

    def __init__(self, model: nn.Module, spec: dict, rule: Rule | None):
        super().__init__()
        self.model = model
        self.spec = spec  # preprocessing
        self.rule = rule  # None: an embedder

    @property
    def outputs(self) -> list[str]:
        if self.rule is None:
            return ["embedding"]
        return ["logits", "probabilities", "known", "embedding"]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, embedding = self.model(normalise(image, self.spec))
        if self.rule is None:
            return (embedding.float(),)
        outputs = (logits, self.rule.probabilities(logits), self.rule.known(logits), embedding)
        return tuple(value.float() for value in outputs)

    @torch.no_grad()
    def run(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, computed by torch."""
        values = [value.numpy() for value in self(torch.from_numpy(frames))]
        return dict(zip(self.outputs, values, strict=True))


def write_onnx(module: Exported, path: Path) -> None:
    """ONNX fp32 with a dynamic batch."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    size = module.spec["size"]
    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module.eval(),
            (example,),
            None,
            input_names=["image"],
            output_names=module.outputs,
            dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1, max=4096)}},
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    graph = program.model.graph  # an nn.Embedding (CLIP has one) names its own value or constant "embedding" too
    values = [*graph.initializers.values()]
    for node in graph:
        values += node.outputs
    for value in values:
        if value.name in module.outputs and not value.is_graph_output():
            value.name += "_inner"
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


# -------------------------------------------------------------------------------------- the folder and the console


@contextlib.contextmanager
def fresh_folder(out: Path) -> Iterator[Path]:
    """A new folder to write an export to; at the end it takes the place of out, unless something was raised.

    What belongs beside an export, and what systems leave in folders, stays. Raises UserError where out holds other
    things.
    """
    out = out.resolve()
    kept = find_kept(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    old = out.with_name(f".{out.name}.old")
    try:
        yield work
        for path in kept:
            if path.is_dir():
                shutil.copytree(path, work / path.name, symlinks=True)
            elif path.exists():
                shutil.copy2(path, work / path.name)
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.replace(old)
        work.chmod(0o755)
        work.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def find_kept(out: Path) -> list[Path]:
    """What stays of a folder when its export is written anew. Raises UserError, with names, for other things in it."""
    if not out.exists():
        return []
    if not out.is_dir():
        raise UserError(f"--out {out}: is a file; name a folder", 2)
    others = sorted(path for path in out.iterdir() if path.name not in FILES)
    strange = [path.name for path in others if path.name not in KEPT and not is_junk(path.name)]
    if strange:
        listed = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise UserError(f"--out {out}: holds other things than an export ({listed}); name a new folder", 2)
    return others


class Stages:
    """Prints [number/count] what was done, its time and the size of what it left."""

    def __init__(self, count: int):
        self.number = 0
        self.count = count
        self.clock = time.perf_counter()  # when the stage began

    def done(self, text: str, *files: Path) -> None:
        now = time.perf_counter()
        self.number += 1
        facts = [f"{now - self.clock:.1f} s"]
        facts += [f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in files if file.exists()]
        print(f"[{self.number}/{self.count}] {text}  {', '.join(facts)}", flush=True)
        self.clock = now


# ----------------------------------------------------------------------------------- what the data say of a model


def open_dataset(data: Path, checkpoint: Checkpoint) -> tuple[dict[str, Subset], dict[str, np.ndarray]]:
    """({split: frames}, {split: labels}) with the splits of the checkpoint's training, of train a few to calibrate on.

    Raises UserError for other data than those.
    """
    rows = read_manifest(data)
    args = checkpoint.args
    chosen, classes = choose_rows(rows, **{name: args[name] for name in ("split", "fold", "subset", "limit")})
    if classes != checkpoint.classes:
        raise UserError(f"--data {data}: its films are not those of the checkpoint; name the data it was trained on", 2)
    if args["frames"] != split_fingerprint(chosen):
        raise UserError(f"--data {data}: its splits are not those of the checkpoint's training; train again", 2)
    store = FrameStore(rows, checkpoint.preprocessing, default_cache(data))
    chosen["train"] = draw_sample(chosen["train"])
    store.decode([row for split in SPLITS for row in chosen[split]])
    labels = label_rows(chosen, classes)
    for split in UNKNOWN_SPLITS:  # numbers of films, which the rule takes as units
        labels[split] = np.unique([row.movie for row in chosen[split]], return_inverse=True)[1].astype(int)
    return {split: store.take(chosen[split]) for split in SPLITS}, labels


def draw_sample(items: list) -> list:
    """At most CALIBRATION_FRAMES of these, drawn at random, in their order."""
    picks = np.random.default_rng(13).permutation(len(items))[:CALIBRATION_FRAMES]
    return [items[i] for i in np.sort(picks)]


def read_sample(place: Path, spec: dict) -> np.ndarray:
    """At most CALIBRATION_FRAMES frames uint8 [N, S, S, 3] of a folder of stills, or of videos where it has no still.

    Raises UserError where there is neither.
    """
    frames = []
    if place.is_dir() and walk_images(place):
        read = functools.partial(read_image, draft=2 * spec["size"])
        for rgb in read_or_skip(read, draw_sample(expand([str(place)]))):
            frames.append(preprocess(rgb, spec))
    else:
        films = draw_sample([film for film in find_shelf([place]).films if film.parts])
        read = functools.partial(read_video, most=-(-CALIBRATION_FRAMES // max(1, len(films))))
        for clip in read_or_skip(read, [film.parts[0] for film in films]):
            frames += [preprocess(rgb, spec) for rgb in clip.pictures]
    if not frames:
        raise UserError(f"--frames {place}: no still and no video in it that can be read", 2)
    return np.stack(frames[:CALIBRATION_FRAMES])


def read_or_skip(read: Callable, files: list[Path]) -> Iterator:
    """read(file) of those that can be read; a line on stderr for each of the others."""
    with ReadingPool(read) as pool:
        for file, result in zip(files, pool.read_all(files), strict=True):
            if isinstance(result, UserError):
                reason = str(result).removeprefix(f"{file}: ")
                print(f"export.py: skipped: {file}: {one_line(reason)}", file=sys.stderr)
            else:
                yield result


def float_logits(module: Exported, frames: dict[str, Subset], classes: int) -> dict[str, np.ndarray]:
    """Logits [N, C] by torch of the frames of these splits, by split."""
    logits = {split: np.zeros((0, classes)) for split in frames}
    for split in logits:
        if len(frames[split]):
            logits[split] = run_batches(module.run, frames[split])["logits"]
    return logits


def ask_strangers(module: Exported, classes: list[str]) -> UnknownFrames | None:
    """What a model says, by torch, of stills of the films that come with the product, without those of its classes."""
    known = {normalise_title(split_title(title)[0]) for title in classes}
    folders = [folder for folder in list_strangers() if normalise_title(split_title(folder.name)[0]) not in known]
    stills = [still.path for folder in folders for still in list_stills(folder)]
    if not stills:
        return None
    film = np.repeat(np.arange(len(folders)), [len(list_stills(folder)) for folder in folders])
    return UnknownFrames(run_batches(module.run, load_frames(stills, module.spec))["logits"], film)


def calibrate(
    checkpoint: Checkpoint,
    logits: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    unknown_share: float,
    strangers: UnknownFrames | None,
) -> tuple[Rule, list[ScoreFigures], int]:
    """The rule fitted on frames that the head had not seen, the scores it was chosen from, and how many unknown films.

    The dataset's own unknown films teach the rule alone where there are ENOUGH_UNKNOWN_FILMS; else strangers do too,
    and the films themselves, each left out, where the head is a discriminant.
    """
    if checkpoint.held_out:  # the head has seen val; these are answers of heads that had not seen the frame
        left_out = checkpoint.held_out["folds"].numpy() >= 0
        unseen = checkpoint.held_out["logits"].numpy()[left_out]
        truth = checkpoint.held_out["labels"].numpy()[left_out]
    else:
        unseen = logits["val"]
        truth = labels["val"]
    unknown = UnknownFrames(logits["unknown_val"].astype(np.float32), labels["unknown_val"])
    if unknown.films < ENOUGH_UNKNOWN_FILMS:
        others = [] if strangers is None else [strangers]
        if checkpoint.held_out and unseen.shape[1] >= MIN_FILMS:
            others.append(leave_films_out(unseen, truth))
        unknown = join_unknown([unknown, *others])
    return *fit_rule(unseen, truth, unknown, unknown_share), unknown.films


def check_on_test(
    rule: Rule,
    scores: list[ScoreFigures],
    logits: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    unknown_share: float,
) -> ExportReport:
    """How the rule, and the original's, answer test and unknown_test; the formats are measured later."""

    def check(checked: Rule, share: float) -> RuleCheck:
        return check_rule(checked, logits["test"], labels["test"], logits["unknown_test"], share)

    return ExportReport(
        scores=scores,
        calibrated=check(rule, unknown_share),
        original=check(ORIGINAL_RULE, unknown_share),
        by_share={share: check(rule, share) for share in REPORTED_SHARES},
        formats={},
    )


def describe_accuracy(
    checkpoint: Checkpoint, frames: dict[str, Subset], logits: np.ndarray, labels: np.ndarray, check: RuleCheck
) -> dict:
    """The contract's accuracy, of logits [N, C] and labels [N] of test."""
    figures = measure(logits, labels)
    accuracy = {
        "split": checkpoint.args["split"],
        "fold": checkpoint.args["fold"],
        "frames": {split: len(part) for split, part in frames.items()},
        "top1": figures.top1,
        "balanced": figures.balanced,
    }
    return accuracy | asdict(check)


# ---------------------------------------------------------------------------------------------- the whole


def write_formats(module: Exported, work: Path, sample: np.ndarray | None, stages: Stages, web: bool) -> list[Path]:
    """model.onnx, its int8 files and, with web, model.web.onnx; returns those that there are.

    sample: frames uint8 [N, S, S, 3] to calibrate int8 with.
    """
    fp32 = work / "model.onnx"
    int8 = work / "model.int8.onnx"
    openvino = work / "openvino" / "model.xml"
    write_onnx(module, fp32)
    stages.done("ONNX fp32", fp32)
    write_int8(fp32, int8, openvino, sample, is_transformer(module))
    if web:
        write_web(fp32, work / WEB, is_transformer(module))
    source = "what needs no frames to calibrate" if sample is None else f"calibrated on {len(sample)} frames"
    paths = [path for path in (fp32, work / WEB, int8, openvino) if path.exists()]
    for path in paths:
        if path.suffix == ".onnx":
            make_portable(path)
    stages.done(f"int8, {source}", int8, work / WEB, openvino.with_suffix(".bin"))
    return paths


def write_contract(module: Exported, contract: Contract, paths: list[Path]) -> Contract:
    """Put the contract into the files, each with its own self-test; returns that of the last file.

    Raises UserError where the float file computes something else than torch.
    """
    size = contract.preprocessing["size"]
    frames = reference_frames(size)
    output = module.outputs[0]
    wanted = module.run(frames)[output]
    fingerprint = module.run(reference_frames(size, 2))["embedding"]  # as an index takes it of a model
    self_test = {
        "output": output,
        "values": [[float(f"{value:.5g}") for value in row] for row in wanted],
        "fingerprint": base64.b64encode(fingerprint.astype(np.float32)).decode(),
    }
    for path in paths:
        contract = replace(contract, self_test=self_test | {"relative_error": 0.0})
        contract.save(path)  # a model is only loaded with a contract
        model = Identifier(path, precision="f32" if path.suffix == ".xml" else None)
        error = relative_error(model.run(frames)[output], wanted)
        if path.name == "model.onnx" and not error < MAX_FP32_ERROR:
            raise UserError(f"ONNX fp32 differs from torch by {error:.2%}; nothing was exported")
        contract = replace(contract, self_test=self_test | {"relative_error": error})
        contract.save(path)
    return contract


def add_strangers(work: Path) -> None:
    """Put the films that come with the product beside the files, as an index of this model starts from them."""
    strangers = embed_strangers(Identifier(work / "model.onnx"))
    if strangers:
        write_strangers(strangers, work)


def export_plain(
    checkpoint: Checkpoint, out: Path = Path("export"), *, frames: Path | None = None, web: bool = False
) -> None:
    """Export a model without data: an embedder, or the original's weights with the original's rule.

    out appears whole, or stays as it was. frames: stills or videos to calibrate int8 with. Raises UserError.
    """
    stages = Stages(2)
    model = checkpoint.build()
    sample = None
    if frames:
        sample = read_sample(frames, checkpoint.preprocessing)
    rule = ORIGINAL_RULE if checkpoint.classes else None
    contract = make_contract(checkpoint, rule, decision={"targets": None} if rule else {}, accuracy={})
    module = Exported(model, checkpoint.preprocessing, rule)
    with fresh_folder(out) as work:
        paths = write_formats(module, work, sample, stages, web)
        contract = write_contract(module, contract, paths)
        add_strangers(work)
        write_texts(contract, None, bool(checkpoint.held_out), work)


def export_model(
    checkpoint: Checkpoint | Path,
    data: Path,
    out: Path = Path("export"),
    *,
    size: int | None = None,
    max_drop: float = MAX_DROP,
    unknown_share: float = UNKNOWN_SHARE,
    web: bool = False,
    max_ms: float | None = None,
) -> ExportReport:
    """Export a trained model with all that its data say of it. out appears whole, or stays as it was.

    data: what the checkpoint was trained on; the rule is fitted on frames that its head had not seen, and checked on
    test. max_drop: points of balanced accuracy that an int8 file may lose beyond chance. unknown_share: of the frames
    that people send, how many are of other films. web: write model.web.onnx too. size: of the pictures in pixels, by
    default that of the training. max_ms: milliseconds that the fastest int8 file may take for a frame. What was
    measured is kept in the run's folder, if the checkpoint is a path. Raises TooSlow, or UserError.
    """
    folder = None
    if not isinstance(checkpoint, Checkpoint):
        folder = checkpoint.parent
        checkpoint = Checkpoint.load(checkpoint)
    checkpoint = resize_checkpoint(checkpoint, size or checkpoint.preprocessing["size"])
    keep_memory()
    stages = Stages(5)
    model = checkpoint.build()
    frames, labels = open_dataset(data, checkpoint)
    plain = Exported(model, checkpoint.preprocessing, ORIGINAL_RULE)
    # a head that has learnt val says nothing there
    told = [split for split in SPLITS[1:] if split != "val" or not checkpoint.held_out]
    logits = float_logits(plain, {split: frames[split] for split in told}, len(checkpoint.classes))
    count = sum(len(part) for part in frames.values())
    stages.done(f"{checkpoint.arch}, {len(checkpoint.classes)} films, {count} frames")

    strangers = ask_strangers(plain, checkpoint.classes)
    rule, scores, unknown_films = calibrate(checkpoint, logits, labels, unknown_share, strangers)
    report = check_on_test(rule, scores, logits, labels, unknown_share)
    accuracy = describe_accuracy(checkpoint, frames, logits["test"], labels["test"], report.calibrated)
    targets = TARGETS if unknown_films >= MIN_UNKNOWN_FILMS else None  # nothing taught it to refuse
    decision = {"targets": targets, "unknown_films": unknown_films, "unknown_share": unknown_share}
    contract = make_contract(checkpoint, rule, decision, accuracy)
    stages.done(f"rule: score {rule.score}, temperature {rule.temperature:.2f}")

    module = Exported(model, checkpoint.preprocessing, rule)
    with fresh_folder(out) as work:
        paths = write_formats(module, work, frames["train"][:].numpy(), stages, web)
        contract = write_contract(module, contract, paths)
        add_strangers(work)
        unseen = [split for split in told if split in ("val", "test")]
        report.formats = measure_formats(work, frames, labels, splits=unseen, max_drop=max_drop)
        keep_in_run(folder, report)
        ms = min(row.ms for name, row in report.formats.items() if "int8" in name)
        if max_ms is not None and ms > max_ms:
            raise TooSlow(f"{ms:.1f} ms a frame, --max-ms is {max_ms:g}")
        draw_calibration(rule, logits, labels["test"], work / "calibration.png")
        stages.done(f"accuracy of every file on frames of {' and '.join(unseen)}")
        write_texts(contract, report, bool(checkpoint.held_out), work)
    return report


def keep_in_run(folder: Path | None, report: ExportReport) -> None:
    """What was measured, for the table that compares the runs. folder: of a run, or of something else."""
    if folder and (folder / "test.json").exists():
        write_export(folder, report.formats)
        write_comparison(folder.parent)


def make_contract(checkpoint: Checkpoint, rule: Rule | None, decision: dict, accuracy: dict) -> Contract:
    """The contract without its self-test; decision gets what the rule says."""
    if rule:
        decision = decision | {"score": rule.score, "movie": rule.movie, "shortlist": rule.shortlist}
    return Contract(
        architecture=checkpoint.arch,
        commit=checkpoint.commit,
        classes=checkpoint.classes,
        preprocessing=checkpoint.preprocessing,
        decision=decision,
        accuracy=accuracy,
        self_test={},
    )


def write_texts(contract: Contract, report: ExportReport | None, refit: bool, work: Path) -> None:
    """What people read: model.json, report.md, README.md. refit: the head has learnt val too."""
    contract.save(work / "model.json")
    write_report(contract, report, refit, work / "report.md")
    write_card(contract, work / "README.md")


# ------------------------------------------------------------------------------------------ the best of many runs


class TooSlow(UserError):
    """An export takes more milliseconds a frame than it may."""


def rank_rows(runs: Path, data: Path | None) -> tuple[list[Row], Path]:
    """(networks as they were trained, best balanced accuracy first; the data of all of them).

    data: to choose the rows by; None where all runs are of one dataset. Raises UserError without such runs.
    """
    every = read_runs(runs)
    if not every:
        raise UserError(f"{runs}: holds no finished run; train some with: python train.py DATA --arch all", 2)
    places = sorted({run.figures.data for run in every})
    if data is None and len(places) > 1:
        raise UserError(f"{runs}: holds runs on {' and '.join(places)}; name one with --data", 2)
    data = data or Path(places[0])
    of_data = [run for run in every if Path(run.figures.data).resolve() == data.resolve()]
    rows = [row for table in build_tables(of_data).values() for row in table if row.balanced]
    rows = [row for row in rows if row.first.checkpoint.exists()]
    if not rows:
        raise UserError(f"{runs}: no run on a grouped split of {data} with its best.pt", 2)
    return sorted(rows, key=lambda row: row.balanced.mean, reverse=True), data


def export_best(runs: Path, data: Path | None, out: Path, *, max_ms: float | None, **options) -> ExportReport:
    """Export the row of best balanced accuracy that answers within max_ms; print what was left, and why.

    Rows whose ms are not known yet are exported to find out. options: of export_model. Raises UserError where none is
    fast enough.
    """
    rows, data = rank_rows(runs, data)
    left = []
    for place, row in enumerate(rows):
        known = row.mean("ms_int8")
        if max_ms is not None and known is not None and known > max_ms:
            left.append(describe_left(row, f"takes {known:.1f} ms"))
            continue
        print(f"{row.name}: balanced {row.balanced}; exporting {row.first.checkpoint}", flush=True)
        try:
            report = export_model(row.first.checkpoint, data, out, max_ms=max_ms, **options)
        except TooSlow as slow:
            left.append(describe_left(row, f"takes {slow}"))
            continue
        for rest in rows[place + 1 :]:
            alike = rest.first.table == row.first.table and set(rest.alike) & set(row.alike)
            why = "no better, but McNemar's test can't tell them apart" if alike else "no better"
            left.append(describe_left(rest, why))
        print("\n".join([f"taken: {row.name}: balanced {row.balanced}", *left]))
        return report
    print("\n".join(left))
    raise UserError(f"--max-ms {max_ms:g}: none of the {len(rows)} is as fast; raise it, or train a smaller network")


def describe_left(row: Row, why: str) -> str:
    """A line on a row that was not taken."""
    return f"left: {row.name}: balanced {row.balanced}; {why}"


# ------------------------------------------------------------------------------------------- the command line


def read_classes(path: Path) -> list[str]:
    """Titles by index from the original's classes.txt, lines `Title (Year): index`. Raises UserError with the line."""
    found: dict[int, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--classes {path}: can't be read as text ({error})", 2) from None
    for number, line in enumerate(lines, 1):
        title, _, index = line.rpartition(":")
        if not line.strip():
            continue
        if not title.strip() or not index.strip().isdecimal() or int(index) in found:
            raise UserError(f"--classes {path}, line {number}: expected `Title (Year): index`, each index once", 2)
        found[int(index)] = title.strip()
    if sorted(found) != list(range(len(found))) or len(found) < 2:
        raise UserError(f"--classes {path}: the indices must run from 0 without a gap, two at least", 2)
    return [found[i] for i in range(len(found))]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Export a model to ONNX and OpenVINO.")
    parser.add_argument("checkpoint", type=Path, nargs="?", help="best.pt of a run, or with --best a folder of runs")
    parser.add_argument("--data", type=Path, help=f"the dataset that it was trained on (default: {DATA})")
    parser.add_argument("--out", type=Path, default=Path("export"), help="default: %(default)s")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="POINTS",
        help=f"points of balanced accuracy that int8 may lose, beyond chance (default: {MAX_DROP})",
    )
    parser.add_argument(
        "--unknown-share",
        type=float,
        metavar="SHARE",
        help=f"share of the frames people send that are of unknown films (default: {UNKNOWN_SHARE})",
    )
    parser.add_argument(
        "--size",
        type=int,
        metavar="PIXELS",
        help=f"side of the pictures that the model takes (default: {PREPROCESSING['size']}, or that of the training)",
    )
    parser.add_argument("--web", action="store_true", help=f"write {WEB} too, for the browser page in web/")
    text = "of the runs in a folder, take the one of best balanced accuracy (mean over its folds)"
    parser.add_argument("--best", action="store_true", help=text)
    text = "with --best: milliseconds a frame that its fastest int8 file may take here (default: any)"
    parser.add_argument("--max-ms", type=float, metavar="MS", help=text)
    group = parser.add_argument_group("weights of the original project, or an embedder without films")
    group.add_argument("--classes", type=Path, help="the original's classes.txt, lines `Title (Year): index`")
    group.add_argument("--arch", help=f"one of the six or a timm name (default: {ORIGINAL_ARCH})")
    group.add_argument("--init", help="weights of an embedder: a local file, or hub for the official ones")
    group.add_argument("--frames", type=Path, help="stills or videos, to calibrate int8 with (default: none)")
    return parser


def is_own_run(args: argparse.Namespace) -> bool:
    """Whether the checkpoint is one of train.py, which has data, rather than the original's weights or an embedder."""
    return bool(args.checkpoint and not args.classes)


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Ends the program where flags would be ignored, or values make no sense."""
    own = is_own_run(args)
    if args.best and not (own and args.checkpoint.is_dir()):
        parser.error("--best chooses among runs; name the folder that holds them, such as runs")
    if args.max_ms is not None and not (args.best and args.max_ms > 0):
        parser.error("--max-ms goes only with --best, and is more than 0")
    for flag in ("arch", "frames") if own else ("data", "max_drop", "unknown_share"):
        if getattr(args, flag) is not None:
            where = "--classes or --init" if own else "a checkpoint of train.py"
            parser.error(f"--{flag.replace('_', '-')} goes only with {where}")
    if args.size is not None and not 16 <= args.size <= 2048:
        parser.error("--size must be 16 to 2048 pixels")
    if args.unknown_share is not None and not 0 <= args.unknown_share < 1:
        parser.error("--unknown-share must be 0 or more and under 1")
    if bool(args.checkpoint) == bool(args.init):
        parser.error("name a checkpoint, or with --init the weights of an embedder")


def make_embedder(arch: str, init: str, size: int) -> Checkpoint:
    """A pretrained network that was taught no films. init: weights, a file or hub; size: pixels. Raises UserError."""
    weights = None if init == "hub" else init
    model = build_model(arch, [], intermediate=True, pretrained=True, init=weights, size=size)
    settings = {"intermediate": bool(model.intermediate)}
    spec = preprocessing_for(arch) | {"size": size}
    return Checkpoint(arch, [], spec, settings, model.state_dict(), {})


def resize_checkpoint(checkpoint: Checkpoint, size: int) -> Checkpoint:
    """The checkpoint for pictures of another size in pixels. Raises UserError where its rule would not hold there."""
    if size == checkpoint.preprocessing["size"]:
        return checkpoint
    if checkpoint.held_out:
        trained = checkpoint.preprocessing["size"]
        text = f"--size {size}: its head and rule were fitted on pictures of {trained} pixels, and all its frames"
        raise UserError(f"{text} are used up by that; train it at that size: python train.py --size {size}", 2)
    return replace(checkpoint, preprocessing=checkpoint.preprocessing | {"size": size})


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)
    limit_threads()
    data = args.data or DATA
    arch = args.arch or ORIGINAL_ARCH
    if args.checkpoint and not args.checkpoint.exists():
        raise UserError(f"{args.checkpoint}: no such file; train one with: python train.py {data}", 2)
    if args.checkpoint and args.checkpoint.is_dir() and not args.best:
        raise UserError(f"{args.checkpoint}: is a folder; name its best.pt, or choose among its runs with --best", 2)
    if is_own_run(args):
        max_drop = MAX_DROP if args.max_drop is None else args.max_drop
        unknown_share = UNKNOWN_SHARE if args.unknown_share is None else args.unknown_share
        options = {"max_drop": max_drop, "unknown_share": unknown_share, "web": args.web}
        if args.best:
            export_best(args.checkpoint, args.data, args.out, max_ms=args.max_ms, **options)
        else:
            export_model(args.checkpoint, data, args.out, size=args.size, **options)
    else:
        if args.init:
            checkpoint = make_embedder(arch, args.init, args.size or PREPROCESSING["size"])
        else:
            checkpoint = convert_original(arch, args.checkpoint, read_classes(args.classes))
            checkpoint = resize_checkpoint(checkpoint, args.size or PREPROCESSING["size"])
        export_plain(checkpoint, args.out, frames=args.frames, web=args.web)
    print("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    print(f"next: python identify.py FRAME --model {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
