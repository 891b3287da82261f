#!/bin/sh
# usage: deploy/embedder.sh [WEIGHTS [LICENCE]]
# Makes dinov2-small.zip, the embedder that index.py needs, and its checksum, in this folder. A release attaches both.
# WEIGHTS: a file, or hub for the official ones (default); LICENCE: theirs, a file or the address of one.
set -eu
weights=${1:-hub}
licence=${2:-https://raw.githubusercontent.com/facebookresearch/dinov2/main/LICENSE}
python=${PYTHON:-.venv/bin/python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" export.py --arch vit_small_patch14_dinov2 --init "$weights" --out "$work/export"
mkdir "$work/zip"
cp "$work/export/model.int8.onnx" "$work/export/model.json" "$work/zip"
if [ -f "$licence" ]; then cp "$licence" "$work/zip/LICENSE"; else curl -fsSL "$licence" -o "$work/zip/LICENSE"; fi
grep -q "Apache License" "$work/zip/LICENSE"
sed 's/^license: other$/license: apache-2.0/' "$work/export/README.md" > "$work/zip/README.md"
cat >> "$work/zip/README.md" <<'CARD'

The weights are those of DINOv2 ViT-S/14 by Meta AI, https://github.com/facebookresearch/dinov2, under the Apache License
2.0, which is in LICENSE. They were changed: written as ONNX with normalisation inside, and products in 8 bits.
CARD
"$python" -m zipfile -c dinov2-small.zip "$work"/zip/*
sha256sum dinov2-small.zip > dinov2-small.zip.sha256
cat dinov2-small.zip.sha256
