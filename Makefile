# make demo    render films, filter, train, export, identify: the whole pipeline, offline
# make test    the tests, in two processes (JOBS=N for more): 12 to 20 minutes on two cores
# make lint    style: ruff, check and format
# make web     the page that answers in a browser (needs npm once): web-site/ is written and served on http://127.0.0.1:8000/
# make .venv   only the environment, which demo, test and lint make first
PYTHON ?= python3
JOBS ?= 2
MODEL ?= export
INDEX ?= index.sqlite

.PHONY: demo test lint web .venv

demo: .venv
	.venv/bin/python demo/demo.py

test: .venv
	.venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv: .venv/installed

# of this folder no file but those of the page can be asked for: neither .env nor .git nor the index itself
web: web/vendor
	$(or $(wildcard .venv/bin/python),$(PYTHON)) index.py publish web-site --model $(MODEL) --index $(INDEX)
	@echo "http://127.0.0.1:8000/ (Ctrl-C stops it)"
	$(PYTHON) -m http.server 8000 --bind 127.0.0.1 --directory web-site

# ONNX Runtime takes 148 MB; these three files are what one thread of WebAssembly needs, the large one packed: 4 MB of 14
web/vendor: web/package-lock.json Makefile
	cd web && npm ci --ignore-scripts --no-audit --no-fund --silent
	rm -rf $@ && mkdir -p $@
	cd web/node_modules/onnxruntime-web/dist && cp ort.wasm.min.mjs ort-wasm-simd-threaded.mjs ort-wasm-simd-threaded.wasm ../../../vendor
	gzip -9 -n web/vendor/ort-wasm-simd-threaded.wasm
	rm -r web/node_modules
	touch $@

# servers without a desktop lack the libraries of opencv-python, which ultralytics asks for: take the headless build there
.venv/installed: requirements.txt requirements-shelf.txt requirements-bot.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv/bin/python -c 'import cv2' 2>/dev/null || \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	touch $@
