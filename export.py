"""Export a model to ONNX and OpenVINO, in float and int8, with classes, rule and accuracy inside.

python export.py runs/deit_base_patch16_224-processed/best.pt --data data/processed
python identify.py frame.jpg --model export
python export.py model.pt --arch deit_base_patch16_224 --classes classes.txt     # the original project's own weights
python export.py --arch vit_small_patch14_dinov2 --init hub --frames stills/     # an embedder, which knows no films
"""

import argparse
import base64
import contextlib
import logging
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from answering.calibration import TARGETS, UNKNOWN_SHARE
from answering.console import UserError, one_line_errors
from answering.contract import Contract
from answering.model import Identifier, reference_frames, relative_error
from answering.stills import expand
from models import Checkpoint, build_model, convert_original, is_transformer, preprocessing_for
from training.dataset import SPLITS, choose_rows, label_rows, read_manifest, split_fingerprint
from training.frames import FrameStore, load_frames, normalise
from training.metrics import measure, significantly_worse
from training.quantise import write_int8, write_web
from training.report import draw_calibration, write_card, write_report
from training.rule import ORIGINAL_RULE, Rule, check_rule, fit_rule

WEB = "model.web.onnx"
FILES = {"model.onnx", "model.int8.onnx", WEB, "openvino", "model.json", "report.md", "README.md", "calibration.png"}
CALIBRATION_FRAMES = 100
OPSET = 18
MAX_DROP = 0.5  # points of balanced accuracy
DATA, ORIGINAL_ARCH = Path("data/processed"), "deit_base_patch16_224"


class Exported(nn.Module):
    """The contract: image uint8 [N, S, S, 3] RGB -> logits, probabilities, known, embedding, or embedding alone."""

    def __init__(self, model: nn.Module, spec: dict, rule: Rule | None):
        super().__init__()
        self.model, self.spec, self.rule = model, spec, rule

    @property
    def outputs(self) -> list[str]:
        return [*(["logits", "probabilities", "known"] if self.rule else []), "embedding"]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, embedding = self.model(normalise(image, self.spec))
        head = (logits, self.rule.probabilities(logits), self.rule.known(logits)) if self.rule else ()
        return *(value.float() for value in head), embedding.float()

    @torch.no_grad()
    def run(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs by name, computed by torch."""
        return dict(zip(self.outputs, (value.numpy() for value in self(torch.from_numpy(frames))), strict=True))


def write_onnx(module: Exported, path: Path) -> None:
    """ONNX fp32 with a dynamic batch. Raises UserError where it computes something else than torch."""
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.zeros(2, module.spec["size"], module.spec["size"], 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = {"image": {0: torch.export.Dim("batch", min=1, max=4096)}}
        program = torch.onnx.export(
            module.eval(), (example,), None, input_names=["image"], output_names=module.outputs,
            dynamic_shapes=shapes, opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    graph = program.model.graph  # an nn.Embedding (CLIP has one) names its own value or constant "embedding" too
    for value in [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]:
        if value.name in module.outputs and not value.is_graph_output():
            value.name += "_inner"
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


@contextlib.contextmanager
def fresh_folder(out: Path):
    """A new folder to write an export to; at the end it takes the place of out, unless something was raised.

    Raises UserError where out holds other things than an export.
    """
    out = out.resolve()
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= FILES):
        raise UserError(f"--out {out}: holds other things than an export; name a new folder", 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    work, old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent)), out.with_name(f".{out.name}.old")
    try:
        yield work
        shutil.rmtree(old, ignore_errors=True)
        if out.exists():
            out.replace(old)
        work.chmod(0o755)
        work.replace(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


class Stages:
    """Prints [k/n] what was done, its time and the size of what it left."""

    def __init__(self, count: int):
        self.k, self.count, self.clock = 0, count, time.perf_counter()

    def done(self, text: str, *files: Path) -> None:
        self.k, now = self.k + 1, time.perf_counter()
        sizes = ", ".join(f"{file.name} {file.stat().st_size / 1e6:.1f} MB" for file in files if file.exists())
        print(f"[{self.k}/{self.count}] {text}  {now - self.clock:.1f} s{', ' if sizes else ''}{sizes}", flush=True)
        self.clock = now


# ---------------------------------------------------------------------------------------------- the whole


def run_batches(run, frames, batch: int = 16) -> dict[str, np.ndarray]:
    """Outputs of run (Exported.run, Identifier.run) on frames uint8 [N, S, S, 3], one at least."""
    rows = [run(np.asarray(frames[start : start + batch])) for start in range(0, len(frames), batch)]
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def open_dataset(data: Path, checkpoint: Checkpoint) -> tuple[dict, dict]:
    """({split: frames}, {split: labels}) with the splits of the checkpoint's training. Raises UserError for others."""
    rows, args = read_manifest(data), checkpoint.args
    chosen, classes = choose_rows(rows, **{key: args[key] for key in ("split", "fold", "subset", "limit")})
    if classes != checkpoint.classes:
        raise UserError(f"--data {data}: its films are not those of the checkpoint; name the data it was trained on", 2)
    if args["frames"] != split_fingerprint(chosen):
        raise UserError(f"--data {data}: its splits are not those of the checkpoint's training; train again", 2)
    store = FrameStore(rows, checkpoint.preprocessing, (data if data.is_dir() else data.parent) / ".frames")
    random = np.random.default_rng(13)
    train = chosen["train"]
    chosen["train"] = [train[i] for i in np.sort(random.permutation(len(train))[:CALIBRATION_FRAMES])]
    store.decode([row for split in SPLITS for row in chosen[split]])
    return {split: store.take(chosen[split]) for split in SPLITS}, label_rows(chosen, classes)


def measure_formats(out: Path, frames: dict, labels: dict, gate: tuple[str, ...], max_drop: float) -> dict[str, dict]:
    """Figures of every file on test, and how far it agrees with fp32 on all frames outside train.

    gate: splits that the model has not learnt. Raises UserError for a file that names more frames wrong than fp32 on
    them, by max_drop points of balanced accuracy and beyond chance, or another film on a fifth of all frames.
    """
    found, exact = {}, {}
    ways = {"onnxruntime fp32": None, "onnxruntime int8": None, "openvino int8": None, "openvino int8 in f32": "f32"}
    ways |= {"onnxruntime web": None} if (out / WEB).exists() else {}
    splits = [split for split in SPLITS[1:] if len(frames[split])]
    truth = np.concatenate([labels[split] for split in gate])
    for way, precision in ways.items():
        runtime, kind = way.split()[:2]
        place = {"path": out / WEB} if kind == "web" else {"path": out, "format": kind}
        model = Identifier(**place, runtime=runtime, precision=precision)
        logits = {split: run_batches(model.run, frames[split])["logits"] for split in splits}
        exact = exact or logits
        times = []
        for frame in [frames["test"][0].numpy()] * 21:
            start = time.perf_counter()
            model.run(frame[None])
            times.append((time.perf_counter() - start) * 1000)
        every, wanted = (np.concatenate(list(part.values())) for part in (logits, exact))
        row = measure(logits["test"], labels["test"])
        found[way] = {"top1": row.top1, "balanced": row.balanced}
        found[way] |= {"agreement": float((every.argmax(1) == wanted.argmax(1)).mean())}
        found[way] |= {"relative_error": relative_error(every, wanted), "ms": float(np.median(times[1:]))}
        weights = model.path.with_suffix(".bin") if model.path.suffix == ".xml" else model.path
        found[way]["mb"] = weights.stat().st_size / 1e6
        ours, theirs = (np.concatenate([part[split] for split in gate]) for part in (logits, exact))
        drop = 100 * (measure(theirs, truth).balanced - measure(ours, truth).balanced)
        if drop > max_drop and significantly_worse(theirs.argmax(1) == truth, ours.argmax(1) == truth):
            raise UserError(f"{way} loses {drop:.2f} points of balanced accuracy, --max-drop is {max_drop}")
        if found[way]["agreement"] < 0.8:
            raise UserError(f"{way} names another film than fp32 on {1 - found[way]['agreement']:.0%} of the frames")
    return found


def write_files(module: Exported, contract: Contract, work: Path, sample, stages: Stages, web: bool) -> Contract:
    """All files of an export but those for people; returns the contract with its self-test."""
    fp32, int8, vino = work / "model.onnx", work / "model.int8.onnx", work / "openvino" / "model.xml"
    name, frames = module.outputs[0], reference_frames(contract.preprocessing["size"])
    write_onnx(module, fp32)
    stages.done("ONNX fp32", fp32)
    write_int8(fp32, int8, vino, sample, is_transformer(module))
    how = f"calibrated on {len(sample)} frames" if sample is not None else "what needs no frames to calibrate"
    if web:
        write_web(fp32, work / WEB, is_transformer(module))
    stages.done(f"int8, {how}", int8, work / WEB, vino.with_suffix(".bin"))
    wanted = module.run(frames)[name]
    seen = module.run(reference_frames(contract.preprocessing["size"], 2))["embedding"]  # as index.fingerprint
    test = {"output": name, "values": [[float(f"{x:.5g}") for x in row] for row in wanted]}
    test |= {"fingerprint": base64.b64encode(seen.astype(np.float32)).decode()}
    for path in (path for path in (fp32, work / WEB, int8, vino) if path.exists()):
        contract = replace(contract, self_test=test | {"relative_error": 0.0})
        contract.save(path)
        error = relative_error(Identifier(path, precision="f32" if path == vino else None).run(frames)[name], wanted)
        if path == fp32 and not error < 1e-3:
            raise UserError(f"ONNX fp32 differs from torch by {error:.2%}; nothing was exported")
        contract = replace(contract, self_test=test | {"relative_error": error})
        contract.save(path)
    return contract


def export_model(
    checkpoint: Checkpoint | Path,
    data: Path | None = None,
    out: Path = Path("export"),
    *,
    frames: Path | None = None,
    max_drop: float = MAX_DROP,
    unknown_share: float = UNKNOWN_SHARE,
    web: bool = False,
) -> dict:
    """Export everything and return the report. out appears whole, or stays as it was.

    data: what the checkpoint was trained on; the rule is fitted on frames that its head had not seen, and checked on
    test. Without data (an embedder, the original's weights) frames may name a folder of any frames to calibrate int8
    with. max_drop: points of balanced accuracy that an int8 file may lose beyond chance. unknown_share: of the frames
    that people send, how many are of other films. web: write model.web.onnx too. Raises UserError.
    """
    checkpoint = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(checkpoint)
    stages, model, classes = Stages(5 if data else 2), checkpoint.build(), checkpoint.classes
    contract = Contract(checkpoint.arch, checkpoint.commit, classes, checkpoint.preprocessing, {}, {}, {})
    rule, report, sample = ORIGINAL_RULE if classes else None, {}, None
    if data:
        parts, labels = open_dataset(data, checkpoint)
        sample = parts["train"][:].numpy()
        plain = Exported(model, checkpoint.preprocessing, ORIGINAL_RULE)
        logits = {
            split: run_batches(plain.run, parts[split])["logits"] if len(parts[split]) else np.zeros((0, len(classes)))
            for split in SPLITS[1:]
        }
        stages.done(f"{checkpoint.arch}, {len(classes)} films, {sum(map(len, parts.values()))} frames")
        seen, truth, held_out = logits["val"], labels["val"], checkpoint.held_out
        if held_out:  # the head has seen val; these are answers of heads that had not seen the frame
            folds, seen = held_out["folds"].numpy(), held_out["logits"].numpy()
            truth = held_out["labels"].numpy()[folds >= 0]
            seen = seen[folds >= 0]
        rule, scores = fit_rule(seen, truth, logits["unknown_val"].astype(np.float32), unknown_share)
        shown = {
            str(s): check_rule(rule, logits["test"], labels["test"], logits["unknown_test"], s) for s in (0.1, 0.3, 0.6)
        }
        original = check_rule(ORIGINAL_RULE, logits["test"], labels["test"], logits["unknown_test"], unknown_share)
        check = check_rule(rule, logits["test"], labels["test"], logits["unknown_test"], unknown_share)
        report = {"scores": scores, "checks": {"calibrated": check, "rule of the original": original}, "shares": shown}
        figures = measure(logits["test"], labels["test"])
        contract.accuracy = {
            "split": checkpoint.args["split"],
            "fold": checkpoint.args["fold"],
            "frames": {k: len(v) for k, v in parts.items()},
        }
        contract.accuracy |= {"top1": figures.top1, "balanced": figures.balanced} | check
        contract.decision = {"targets": TARGETS, "unknown_share": unknown_share}
        stages.done(f"rule: score {rule.score}, temperature {rule.temperature:.2f}")
    elif frames:
        files = expand([str(frames)])
        pick = np.random.default_rng(13).permutation(len(files))[:CALIBRATION_FRAMES]
        sample = load_frames([files[i] for i in np.sort(pick)], checkpoint.preprocessing)
    if rule:
        contract.decision |= {"score": rule.score, "movie": rule.movie, "shortlist": rule.shortlist}
    with fresh_folder(out) as work:
        contract = write_files(Exported(model, checkpoint.preprocessing, rule), contract, work, sample, stages, web)
        if data:
            gate = ("test",) if held_out else ("val", "test")
            report["formats"] = measure_formats(work, parts, labels, gate, max_drop)
            draw_calibration(rule, logits, labels["test"], work / "calibration.png")
            stages.done("accuracy of every file on test")
        contract.save(work / "model.json")
        write_report(contract, report, bool(checkpoint.held_out), work / "report.md")
        write_card(contract, report, work / "README.md")
    return report


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
    parser.add_argument("checkpoint", type=Path, nargs="?", help="best.pt of a run (none for an embedder)")
    parser.add_argument("--data", type=Path, help=f"what it was trained on (default: {DATA})")
    parser.add_argument("--out", type=Path, default=Path("export"), help="default: %(default)s")
    text = f"points of balanced accuracy that int8 may lose, beyond chance (default: {MAX_DROP})"
    parser.add_argument("--max-drop", type=float, metavar="POINTS", help=text)
    text = f"share of frames of other films among those that people send (default: {UNKNOWN_SHARE})"
    parser.add_argument("--unknown-share", type=float, metavar="SHARE", help=text)
    parser.add_argument("--web", action="store_true", help=f"write {WEB} too, for the browser page in web/")
    group = parser.add_argument_group("weights of the original project, or an embedder without films")
    group.add_argument("--classes", type=Path, help="the original's classes.txt, lines `Title (Year): index`")
    group.add_argument("--arch", help=f"one of the six or a timm name (default: {ORIGINAL_ARCH})")
    group.add_argument("--init", help="of an embedder: a local file of weights, or hub for the official ones")
    group.add_argument("--frames", type=Path, help="folder of any frames, to calibrate int8 with (default: none)")
    return parser


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    arch = args.arch or ORIGINAL_ARCH
    own = args.checkpoint and not args.classes
    for flag in ("arch", "frames") if own else ("data", "max_drop", "unknown_share"):
        if getattr(args, flag) is not None:
            where = "--classes or --init" if own else "a checkpoint of train.py"
            parser.error(f"--{flag.replace('_', '-')} goes only with {where}")
    if args.unknown_share is not None and not 0 <= args.unknown_share < 1:
        parser.error("--unknown-share must be 0 or more and under 1")
    if bool(args.checkpoint) == bool(args.init):
        parser.error("name a checkpoint, or with --init the weights of an embedder")
    if args.checkpoint and not args.checkpoint.exists():
        raise UserError(f"{args.checkpoint}: no such file; train one with: python train.py {args.data or DATA}", 2)
    if args.init:
        options = {"pretrained": True, "init": None if args.init == "hub" else args.init}
        model = build_model(arch, [], intermediate=True, **options)
        spec, settings = preprocessing_for(arch), {"intermediate": bool(model.intermediate)}
        checkpoint = Checkpoint(arch, [], spec, settings, model.state_dict(), {})
    elif args.classes:
        checkpoint = convert_original(arch, args.checkpoint, read_classes(args.classes))
    else:
        checkpoint = Checkpoint.load(args.checkpoint)
    options = {"frames": args.frames, "max_drop": MAX_DROP if args.max_drop is None else args.max_drop, "web": args.web}
    options["unknown_share"] = UNKNOWN_SHARE if args.unknown_share is None else args.unknown_share
    export_model(checkpoint, (args.data or DATA) if own else None, args.out, **options)
    print("\n" + (args.out / "report.md").read_text(encoding="utf-8"))
    print(f"next: python identify.py FRAME --model {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
