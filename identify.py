"""Name the film that a frame or a clip comes from, with an exported model: numpy, Pillow and one runtime, no torch.

python identify.py frame.jpg                                  # one frame, with the model in export/
python identify.py unknown.mkv                                # a video or an animation gets one answer: pip install av
python identify.py frames/ more.png --json > answers.jsonl    # one object per line
python identify.py --together a.jpg b.jpg                     # one answer for several frames of one film
cat frame.jpg | python identify.py - --model export/openvino/model.xml
python identify.py --self-test                                # which files this CPU computes correctly, and how fast
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from answering.clip import Question, describe_clip, identify_clip, read_question
from answering.collection import attach_index, describe_no_promise
from answering.console import UserError, one_line, one_line_errors
from answering.model import Answer, Identifier, SelfTest, format_answer, self_test
from answering.pictures import MAX_BYTES
from answering.reading import ReadingPool
from answering.sheet import draw_evidence, say_missing
from answering.stills import describe_passed_over, expand, shape_before

MAX_WIDTH = 48  # characters of the column of file names


@dataclass(frozen=True)
class Result:
    """What came of one file."""

    file: str  # "-" for stdin
    answer: Answer | UserError
    question: Question | None = None  # None where it could not be read


def identify_files(identifier: Identifier, reader: ReadingPool, paths: list[str], *, top: int = 3) -> Iterator[Result]:
    """Yield a Result a file, in order; "-" is read from stdin."""
    for file in expand(paths):
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else file
        try:
            question = reader.read(data, identifier.draft)
            answer = identify_question(identifier, question, top)
        except UserError as error:
            names_file = file == "-" or file in str(error)
            yield Result(file, error if names_file else UserError(f"{file}: {error}"))
        else:
            yield Result(file, replace(answer, ms=answer.ms + question.ms), question)


def identify_together(identifier: Identifier, reader: ReadingPool, paths: list[str], *, top: int = 3) -> Result:
    """One Result for frames of one film, or for the first file that can't be read. Raises UserError for a clip."""
    pictures = []
    ms = 0.0
    for file in expand(paths):
        data = sys.stdin.buffer.read(MAX_BYTES + 1) if file == "-" else file
        try:
            question = reader.read(data, identifier.draft)
        except UserError as error:
            names_file = file == "-" or file in str(error)
            return Result(file, error if names_file else UserError(f"{file}: {error}"))
        if question.clip:
            raise UserError(f"{file}: is a clip, which is answered from its own frames; name it without --together", 2)
        pictures.append(question.picture)
        ms += question.ms
    answer = identifier.identify(pictures, top)
    return Result(", ".join(paths), replace(answer, ms=answer.ms + ms), Question(pictures[0], None, ms))


def identify_question(identifier: Identifier, question: Question, top: int = 3) -> Answer:
    """The answer to a picture or a clip."""
    if question.clip:
        return identify_clip(identifier, question.clip, top)
    return identifier.identify(question.picture, top)


def print_answer(file: str, answer: Answer | UserError, *, width: int, as_json: bool, guess: bool) -> None:
    """One line: a JSON object, or for people, with errors on stderr. width: of the column of file names."""
    if as_json:
        row = {"error": str(answer)} if isinstance(answer, UserError) else answer.as_dict()
        print(json.dumps({"file": file, **row}, ensure_ascii=False), flush=True)
    elif isinstance(answer, UserError):
        print(f"identify.py: error: {one_line(answer)}", file=sys.stderr)
    else:
        words = format_answer(answer, guess) + describe_clip(answer)
        print(f"{one_line(file):{width}}  {answer.ms:6.1f} ms  {words}", flush=True)


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
    parser = argparse.ArgumentParser(description="Name the film that each frame or clip comes from.")
    text = "images, animations and videos, folders of images (videos in them must be named), or - for stdin"
    parser.add_argument("frames", nargs="*", metavar="FRAME", help=text)
    text = "one answer for all these frames, which are of one film"
    parser.add_argument("--together", action="store_true", help=text)
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
    group.add_argument(
        "--evidence", type=Path, help="draw the frame, or one of a clip, and its proof from the index into this file"
    )
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
        parser.error("name images, videos or folders of images, or - for stdin")


def run(parser: argparse.ArgumentParser, args: argparse.Namespace, reader: ReadingPool) -> int:
    """Answer every file; returns 1 if one could not be read."""
    identifier = Identifier(
        args.model, runtime=args.runtime, format=args.format, threads=args.threads, precision=args.precision
    )
    if problem := attach_index(identifier, args.index):
        print(f"identify.py: {problem}", file=sys.stderr)
    is_one = args.together or len(expand(args.frames)) == 1
    if args.evidence and (not identifier.index or args.frames == ["-"] or not is_one):
        parser.error("--evidence draws one frame's proof: name one image or video file, and an --index")
    if line := describe_no_promise(identifier):
        print(f"identify.py: {line}", file=sys.stderr)
    if args.verbose:
        print(f"identify.py: {identifier.reason}", file=sys.stderr)
    if line := describe_passed_over(args.frames):
        print(f"identify.py: {line}", file=sys.stderr)
    width = min(MAX_WIDTH, max(len(path) for path in args.frames) + 12)
    failed = False
    if args.together:
        results = [identify_together(identifier, reader, args.frames, top=args.top)]
    else:
        results = identify_files(identifier, reader, args.frames, top=args.top)
    for result in results:
        if isinstance(result.answer, UserError):
            failed = True
        elif args.evidence:
            shown = result.question.shown(result.answer)
            missing = draw_evidence(shown, result.answer, args.evidence, shape_before(result.file))
            say_missing("identify.py", args.evidence, missing)
        print_answer(result.file, result.answer, width=width, as_json=args.json, guess=args.guess)
    return 1 if failed else 0


@one_line_errors
def main(argv: list[str] | None = None) -> int:
    parser = get_parser()
    args = parser.parse_args(argv)
    check_usage(parser, args)
    if args.self_test:
        return print_self_tests(run_self_tests(args), args.json)
    with ReadingPool(read_question) as reader:  # its process starts while the model is loaded
        return run(parser, args, reader)


if __name__ == "__main__":
    sys.exit(main())
