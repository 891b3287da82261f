"""python -m pytest tests/test_reuse.py"""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from identify import Identifier, find_bars, preprocess, read_image

PACKAGES = ("onnxruntime-node@1.30.0", "sharp@0.35.5")  # 114 and 9 MB to download; from npm's own cache next time
MINUTES = 5

# what strangers write who have the file and its metadata, and nothing of this project
PYTHON = """
import json, sys
import numpy, onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
metadata = session.get_modelmeta().custom_metadata_map
classes, spec = json.loads(metadata["classes"]), json.loads(metadata["preprocessing"])
size, interpolation = (spec["size"], spec["size"]), Image.Resampling[spec["interpolation"].upper()]
for file in sys.argv[2:]:  # spec["crop_bars"]: black bars must be cut off first; these frames have none
    pixels = numpy.asarray(Image.open(file).convert("RGB").resize(size, interpolation))
    (logits,) = session.run(["logits"], {"image": pixels[None]})
    print(classes[logits[0].argmax()])
"""

# onnxruntime-node tells names, types and shapes, but has no call for metadata_props: model.json says the same
NODE = """
import { readFileSync } from "node:fs";
import ort from "onnxruntime-node";
import sharp from "sharp";

const [folder, ...files] = process.argv.slice(2);
const { classes, preprocessing: { size } } = JSON.parse(readFileSync(`${folder}/model.json`));
const session = await ort.InferenceSession.create(`${folder}/model.int8.onnx`);
const squash = { fit: "fill", kernel: "linear" };  // bilinear, in sharp's words
for (const file of files) {  // preprocessing.crop_bars: black bars must be cut off first; these frames have none
  const pixels = await sharp(file).removeAlpha().resize(size, size, squash).raw().toBuffer();
  const { logits } = await session.run({ image: new ort.Tensor("uint8", pixels, [1, size, size, 3]) }, ["logits"]);
  console.log(classes[logits.data.indexOf(Math.max(...logits.data))]);
}
"""


@pytest.fixture(scope="module")
def wanted(exported, raw) -> dict:
    """Frames without black bars, and the title that identify.py gives each."""
    identifier = Identifier(exported / "model.int8.onnx", runtime="onnxruntime")
    titles = {}
    for file in sorted(raw.glob("Film [012] */0[012]_0.jpg")):
        height, width, _ = read_image(file).shape
        assert find_bars(read_image(file)) == (0, 0, width, height)
        titles[file] = identifier.identify(file).candidates[0].title
    assert len(titles) == 9 and len(set(titles.values())) > 1  # one title alone would prove nothing
    return titles


@pytest.fixture(scope="module")
def npm(tmp_path_factory):
    """A folder with PACKAGES, away from the repository; removed afterwards, as it takes 310 MB."""
    if "REUSE_IN_NODE" not in os.environ:
        pytest.skip("downloads 122 MB from npm: set REUSE_IN_NODE=1 for it")
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("needs node and npm")
    folder = tmp_path_factory.mktemp("npm")
    # no scripts: onnxruntime-node's would download CUDA. no retries: without a network we want to know at once
    options = ["--ignore-scripts", "--prefer-offline", "--fetch-retries=0", "--no-audit", "--no-fund"]
    install = [shutil.which("npm"), "install", "--prefix", str(folder), *options, *PACKAGES]
    load = [shutil.which("node"), "-e", "require('onnxruntime-node'), require('sharp')"]
    try:
        for command in (install, load):  # what is installed does not load in an old Node or on a rare platform
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True, timeout=60 * MINUTES)
        yield folder
    except subprocess.TimeoutExpired:
        pytest.skip(f"npm did not install {' and '.join(PACKAGES)} in {MINUTES} minutes")
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if "rror" in line] or [f"exit code {error.returncode}"]
        pytest.skip(f"needs {' and '.join(PACKAGES)} from npm: {lines[0].strip()}")
    finally:
        shutil.rmtree(folder)


def test_bare_python(exported, wanted, tmp_path):
    shutil.copy(exported / "model.int8.onnx", tmp_path)  # this file alone
    after = "print(logits[0].tolist())\nassert not {'identify', 'models', 'torch'} & set(sys.modules)"
    command = [sys.executable, "-I", "-c", PYTHON + after, "model.int8.onnx", *wanted]
    *titles, last = subprocess.check_output(command, cwd=tmp_path, text=True).splitlines()
    assert titles == list(wanted.values())
    # these titles survive channels in the wrong order or a coarse resize; the logits do not
    identifier = Identifier(exported / "model.int8.onnx", runtime="onnxruntime")
    logits, _ = identifier.logits(identifier.load(list(wanted)[-1])[None])
    assert json.loads(last) == pytest.approx(logits[0].tolist(), abs=1e-4)


def test_node(npm, exported, wanted, tmp_path):
    squashed = [tmp_path / f"{number}.png" for number in range(len(wanted))]
    for file, png in zip(wanted, squashed, strict=True):
        Image.fromarray(preprocess(read_image(file))).save(png)
    for name in ("model.int8.onnx", "model.json"):
        shutil.copy(exported / name, tmp_path)
    (npm / "name.mjs").write_text(NODE)
    # the PNGs need no squashing, so they try the model alone; the JPEGs try sharp's way of doing it too
    command = [shutil.which("node"), "name.mjs", tmp_path, *squashed, *wanted]
    assert subprocess.check_output(command, cwd=npm, text=True).splitlines() == 2 * list(wanted.values())
