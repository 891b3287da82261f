"""Name the film that a frame comes from, with an exported model: numpy, Pillow and one runtime, no torch.

python identify.py frame.jpg                                  # one frame, with the model in export/
python identify.py frames/ more.png --json > answers.jsonl    # one object per line
cat frame.jpg | python identify.py - --model export/openvino/model.xml
python identify.py --self-test                                # which files this CPU computes correctly, and how fast
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from answering.collection import attach_index, draw_evidence
from answering.console import UserError, one_line_errors
from answering.model import Answer, Identifier, SelfTest, format_answer, self_test
from answering.pictures import MAX_BYTES
from answering.stills import describe_passed_over, expand

MAX_SECONDS = 10.0  # for one image
MAX_WIDTH = 48  # characters of the column of file names


def identify_files(
    identifier: Identifier, paths: list[str], *, top: int = 3
) -> Iterator[tuple[str, Answer | UserError]]:
    """Yield (file, Answer or UserError) in order; "-" is read from stdin."""
    for file in expand(paths):
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else file
        pool = ThreadPoolExecutor(1)  # a decoder can't be interrupted, but left behind
        try:
            yield file, pool.submit(identifier.identify, data, top).result(MAX_SECONDS)
        except UserError as error:
            names_file = file == "-" or file in str(error)
            yield file, error if names_file else UserError(f"{file}: {error}")
        except TimeoutError:
            yield file, UserError(f"{file}: took over {MAX_SECONDS:g} seconds to read")
        finally:
            pool.shutdown(wait=False)


def print_answer(file: str, answer: Answer | UserError, *, width: int, as_json: bool, guess: bool) -> None:
    """One line: a JSON object, or for people, with errors on stderr. width: of the column of file names."""
    if as_json:
        row = {"error": str(answer)} if isinstance(answer, UserError) else answer.as_dict()
        print(json.dumps({"file": file, **row}, ensure_ascii=False), flush=True)
    elif isinstance(answer, UserError):
        print(f"identify.py: error: {' '.join(str(answer).split())}", file=sys.stderr)
    else:
        print(f"{file:{width}}  {answer.ms:6.1f} ms  {format_answer(answer, guess)}", flush=True)


def run_self_tests(args: argparse.Namespace) -> list[SelfTest]:
    """A result for each file and runtime that the options allow. Raises UserError where none can be loaded."""
    runtimes = [args.runtime] if args.runtime else ["openvino", "onnxruntime"]
    formats = [args.format] if args.format else ["int8", "fp32"]
    settings = {"threads": args.threads, "precision": args.precision}
    results = []
    for runtime, format in itertools.product(runtimes, formats):
        try:
            results.append(self_test(Identifier(args.model, runtime=runtime, format=format, **settings)))
        except UserError as error:
            problem = error  # the folder has no such file, or it can't be loaded
    if not results:
        raise problem
    return results


def print_self_tests(results: list[SelfTest], as_json: bool) -> int:
    """A line a result; returns 1 when none of them agrees."""
    for result in results:
        verdict = "agrees" if result.agrees else "DISAGREES: this CPU computes it wrong, don't use it here"
        text = f"{result.variant:20}  {result.ms:7.1f} ms  off by {result.relative_error:6.2%}  {verdict}"
        print(json.dumps(asdict(result)) if as_json else text)
    return 0 if any(result.agrees for result in results) else 1


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Name the film that each frame comes from.")
    parser.add_argument("frames", nargs="*", metavar="FRAME", help="image files, folders of images, or - for stdin")
    group = parser.add_argument_group("model")
    group.add_argument("--model", default="export", help="folder from export.py, .onnx or .xml (default: %(default)s)")
    picked = "(default: what is fastest on this kind of CPU)"
    group.add_argument("--runtime", choices=["openvino", "onnxruntime"], help=picked)
    group.add_argument("--format", choices=["int8", "fp32"], help=picked)
    text = "for OpenVINO (default: what is fastest on this CPU)"
    group.add_argument("--precision", choices=["f32", "bf16"], help=text)
    group.add_argument("--threads", type=int, default=0, help="CPU threads, 0 for all cores (default: %(default)s)")
    text = "the index that index.py made (default: index beside the model, if there is one)"
    group.add_argument("--index", help=text)
    text = "check which model files this CPU computes correctly, and how fast"
    group.add_argument("--self-test", action="store_true", help=text)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object per frame")
    group.add_argument("--evidence", type=Path, help="draw the frame and its proof from the index into this file")
    group.add_argument("--top", type=int, default=3, help="candidates per frame (default: %(default)s)")
    group.add_argument("--guess", action="store_true", help="show the best guess for an unknown film too")
    group.add_argument("--verbose", action="store_true", help="say which runtime and format were picked, and why")
    return parser


def check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Stop with a usage error where options don't fit each other."""
    if args.top < 1 or args.threads < 0:
        parser.error("--top must be 1 or more, --threads 0 or more")
    if args.precision and args.runtime == "onnxruntime":
        parser.error("--precision is for OpenVINO; ONNX Runtime heeds none")
    if not args.self_test and not args.frames:
        parser.error("name image files or folders, or - for stdin")


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)
    if args.self_test:
        return print_self_tests(run_self_tests(args), args.json)
    identifier = Identifier(
        args.model, runtime=args.runtime, format=args.format, threads=args.threads, precision=args.precision
    )
    if problem := attach_index(identifier, args.index):
        print(f"identify.py: {problem}", file=sys.stderr)
    if args.evidence and (not identifier.index or args.frames == ["-"] or len(expand(args.frames)) != 1):
        parser.error("--evidence draws one frame's proof: name one image file, and an --index")
    if args.verbose:
        print(f"identify.py: {identifier.reason}", file=sys.stderr)
    if line := describe_passed_over(args.frames):
        print(f"identify.py: {line}", file=sys.stderr)
    width = min(MAX_WIDTH, max(len(path) for path in args.frames) + 12)
    failed = False
    for file, answer in identify_files(identifier, args.frames, top=args.top):
        if isinstance(answer, UserError):
            failed = True
        elif args.evidence:
            draw_evidence(file, answer, args.evidence)
        print_answer(file, answer, width=width, as_json=args.json, guess=args.guess)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
