"""OLD_RUNTIMES=1 python -m pytest tests/test_runtimes.py

Exported files in the runtimes of years before. Each is installed by pip into a folder of its own, so the tests ask for
OLD_RUNTIMES=1 and a network: 300 MB in all. OLD_RUNTIMES=FOLDER keeps them there for the next time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from answering.model import Identifier, reference_frames, relative_error
from training.portable import make_portable

ROOT = Path(__file__).parent.parent
ASKED = os.environ.get("OLD_RUNTIMES", "")
OLD = [
    ("onnxruntime", "1.16.3", ("numpy<2",)),  # the first for Python 3.11 that many still have
    ("onnxruntime", "1.19.2", ()),
    ("openvino", "2024.6.0", ()),
]
FILES = {"onnxruntime": ["model.onnx", "model.int8.onnx"], "openvino": ["model.onnx", "openvino/model.xml"]}
ANSWER = """
import json, sys
import numpy as np
from importlib.metadata import version
from answering.model import Identifier, reference_frames, self_test
path, runtime, out = sys.argv[1:]
model = Identifier(path, runtime=runtime, precision="f32" if runtime == "openvino" else None)
frames = reference_frames(model.preprocessing["size"])
np.savez(out, **model.run(frames))
answers = [[answer.kind, answer.candidates[0].title] for answer in model.answers(frames)] if model.classes else []
print(json.dumps([version(runtime), self_test(model).agrees, answers]))
"""


@pytest.fixture(scope="session")
def install(tmp_path_factory):
    """Function from (package, version, others) to a folder with them; skips where none is to be had."""
    if not ASKED:
        pytest.skip("installs wheels of 300 MB: OLD_RUNTIMES=1 python -m pytest tests/test_runtimes.py")
    home = tmp_path_factory.mktemp("runtimes") if ASKED == "1" else Path(ASKED)

    def get(package: str, version: str, others: tuple[str, ...]) -> Path:
        folder = home / f"{package}-{version}"
        if not (folder / package).exists():
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--only-binary=:all:",
                "--target",
                str(folder),
            ]
            ran = subprocess.run([*command, f"{package}=={version}", *others], capture_output=True, text=True)
            if ran.returncode:
                lines = [line for line in ran.stderr.splitlines() if line.startswith("ERROR")]
                pytest.skip(f"{package} {version}: {' '.join(lines)[-200:]}")
        return folder

    return get


def answer_in(folder: Path, path: Path, runtime: str, out: Path) -> tuple[str, bool, list, dict[str, np.ndarray]]:
    """(version, whether its self-test agrees, answers, outputs) of a file in the runtime that lies in a folder."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}
    command = [sys.executable, "-c", ANSWER, str(path), runtime, str(out)]
    ran = subprocess.run(command, env=environment, cwd=out.parent, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]
    version, agrees, answers = json.loads(ran.stdout.splitlines()[-1])
    return version, agrees, answers, dict(np.load(out))


@pytest.mark.parametrize(("runtime", "version", "others"), OLD, ids=lambda value: str(value))
def test_files_answer_the_same_in_a_runtime_of_before(install, exported, tmp_path, runtime, version, others):
    folder = install(runtime, version, others)
    for name in FILES[runtime]:
        path = exported / name
        found, agrees, answers, outputs = answer_in(folder, path, runtime, tmp_path / "outputs.npz")
        assert found.startswith(version) and agrees, name
        model = Identifier(path, runtime=runtime, precision="f32" if runtime == "openvino" else None)
        frames = reference_frames(model.preprocessing["size"])
        if name == "model.onnx":  # kernels of 8 bits round in other places from version to version
            for output in ("logits", "probabilities", "embedding"):
                assert relative_error(outputs[output], model.run(frames)[output]) < 1e-4, output
        wanted = [[answer.kind, answer.candidates[0].title] for answer in model.answers(frames)]
        assert answers == wanted, name


def test_files_ask_for_no_more_than_their_graph_uses(exported):
    for name in ("model.onnx", "model.int8.onnx"):
        model = onnx.load(exported / name)
        versions = {entry.domain: entry.version for entry in model.opset_import}
        assert versions.pop("") == 18 and model.ir_version == 8  # what ONNX Runtime 1.16 reads goes to 19 and 9
        assert set(versions) == {node.domain for node in model.graph.node} - {""}
        text = (exported / name).read_bytes()
        assert b"site-packages" not in text and str(ROOT).encode() not in text and b"stack_trace" not in text


def test_a_file_is_lowered_to_what_it_uses(tmp_path):
    """Newest versions and sets of operations that nobody uses, as the tools write them."""
    node = onnx.helper.make_node("Relu", ["image"], ["embedding"], "relu", doc_string="where it was made")
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/model.py")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in ("image", "embedding")]
    graph = onnx.helper.make_graph([node], "g", values[:1], values[1:])
    domains = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("ai.onnx.ml", 5)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=11)
    onnx.helper.set_model_props(model, {"format": "ours"})
    onnx.save(model, tmp_path / "model.onnx")
    make_portable(tmp_path / "model.onnx")
    lowered = onnx.load(tmp_path / "model.onnx")
    assert lowered.ir_version == 8 and [entry.domain for entry in lowered.opset_import] == [""]
    assert b"somebody" not in lowered.SerializeToString() and b"made" not in lowered.SerializeToString()
    assert [entry.value for entry in lowered.metadata_props] == ["ours"]  # the contract stays


@pytest.mark.parametrize(("side", "ceil"), [(8, True), (8, False), (7, False)])
def test_a_pool_is_written_as_openvino_2024_knows_it(tmp_path, side, ceil):
    import openvino
    import torch

    from training.portable import lower_pools

    pool = torch.nn.AvgPool2d(2, 2, ceil_mode=ceil, count_include_pad=False)
    frames = torch.rand(1, 3, side, side)
    torch.onnx.export(pool, (frames,), tmp_path / "pool.onnx", dynamo=True, verbose=False)
    model = openvino.convert_model(tmp_path / "pool.onnx")
    lower_pools(model)
    versions = {node.get_type_info().version_id for node in model.get_ops() if node.get_type_name() == "AvgPool"}
    assert versions == {"opset1"}
    found = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([frames.numpy()])[0]
    assert np.allclose(found, pool(frames).numpy(), atol=1e-6)
