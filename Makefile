# make demo    render films, filter, train, export, identify: the whole pipeline, offline
# make test    the tests
# make .venv   only the environment; each of the above makes it first
PYTHON ?= python3

.PHONY: demo test lint .venv

demo: .venv
	.venv/bin/python demo/demo.py

test: .venv
	.venv/bin/python -m pytest

lint: .venv
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

.venv: .venv/installed

# servers without a desktop lack the libraries of opencv-python, which ultralytics asks for: take the headless build there
.venv/installed: requirements.txt requirements-bot.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	.venv/bin/python -c 'import cv2' 2>/dev/null || \
		.venv/bin/python -m pip install --quiet --disable-pip-version-check --force-reinstall --no-deps opencv-python-headless
	touch $@
