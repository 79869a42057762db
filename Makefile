# Few words: everything a person or CI does here.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM = false

.PHONY: help setup quickstart test test-vllm test-label-studio test-presidio lint docs bench \
	bench-import bench-train bench-online bench-gateway bench-vectors science clean

help:
	@echo "make quickstart   set up, then turn the loop once on a real model"
	@echo "make test         set up, then run the tests"
	@echo "make test-vllm    the same against a real vLLM server on the CPU (3.5 GB to install)"
	@echo "make test-label-studio  labels out and back with a real Label Studio (1 GB to install)"
	@echo "make test-presidio  names and places scrubbed by the real Presidio (0.4 GB to install)"
	@echo "make lint         ruff and pyright"
	@echo "make docs         write the generated pages again"
	@echo "make bench        measure (slow; results go into LOG.md)"
	@echo "make bench-import measure 'trueup import' beside json.loads and the store alone (a minute)"
	@echo "make bench-train  measure training beside TRL (slow; ARGS='--quick' for a minute)"
	@echo "make bench-online measure drawing, scoring and PPO beside transformers and TRL (the same)"
	@echo "make bench-gateway what the gateway adds to a request, beside LiteLLM (the same)"
	@echo "make bench-vectors measure searches of 100,000 vectors beside numpy"
	@echo "make science      hold claims of alignment against a toy world (slow; ARGS='--seeds 1')"

# torch first and by exact pin: a later package that asks for a range must find it installed
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all,dev]'
	touch $@

setup: $(VENV)/.ready

quickstart: setup
	$(BIN)/trueup quickstart

# a worker a core, each with one thread: tiny models gain nothing from more
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

# A server of its own in an environment of its own: it wants another transformers. torch first, by
# exact pin, so that a CPU build stays; what it pulls in beside it for vision and sound is built for
# CUDA, breaks on import, and nothing here needs it.
VLLM_VENV := .venv-vllm
$(VLLM_VENV)/.ready: tests/vllm_live/requirements.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check $(shell grep '^torch==' tests/vllm_live/requirements.txt)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/vllm_live/requirements.txt
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

# starts a vLLM server on loopback, runs the live tests, writes down its answers, stops it
test-vllm: setup $(VLLM_VENV)/.ready
	OMP_NUM_THREADS=1 TRUEUP_VLLM_PYTHON=$(VLLM_VENV)/bin/python $(BIN)/python -m pytest -s tests/vllm_live/live.py

# a server of its own again: it pins half of the Python world
STUDIO_VENV := .venv-label-studio
$(STUDIO_VENV)/.ready: tests/label_studio_live/requirements.txt
	$(PYTHON) -m venv $(STUDIO_VENV)
	$(STUDIO_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/label_studio_live/requirements.txt
	touch $@

# starts a Label Studio on loopback, runs the live tests, writes down its answers, stops it
test-label-studio: setup $(STUDIO_VENV)/.ready
	OMP_NUM_THREADS=1 TRUEUP_LABEL_STUDIO_PYTHON=$(STUDIO_VENV)/bin/python $(BIN)/python -m pytest -s tests/label_studio_live/live.py

# spaCy pins what others do not want
PRESIDIO_VENV := .venv-presidio
$(PRESIDIO_VENV)/.ready: tests/privacy/presidio-requirements.txt
	$(PYTHON) -m venv $(PRESIDIO_VENV)
	$(PRESIDIO_VENV)/bin/pip install --quiet --disable-pip-version-check --requirement tests/privacy/presidio-requirements.txt
	touch $@

# names and places, by the real library and a small trained model
test-presidio: $(PRESIDIO_VENV)/.ready
	PYTHONPATH=src $(PRESIDIO_VENV)/bin/python -m pytest tests/privacy/test_presidio.py

lint: setup
	$(BIN)/ruff check src tests examples docs benchmarks
	$(BIN)/ruff format --check src tests examples docs benchmarks
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: setup
	$(BIN)/python docs/generate.py

bench: setup
	$(BIN)/trueup quickstart --folder bench --json

bench-import: setup
	$(BIN)/python benchmarks/import.py $(ARGS)

bench-train: setup
	$(BIN)/python benchmarks/train.py $(ARGS)

# TRL's PPO needs an environment of its own, which is made on first use
bench-online: setup
	$(BIN)/python benchmarks/online.py $(ARGS)

# the load is from wrk; LiteLLM gets an environment of its own on first use
bench-gateway: setup
	$(BIN)/python benchmarks/gateway.py $(ARGS)

bench-vectors: setup
	$(BIN)/python benchmarks/vectors.py $(ARGS)

science: setup
	$(BIN)/python benchmarks/science/run.py $(ARGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(STUDIO_VENV) $(PRESIDIO_VENV) .venv-ppo .venv-litellm quickstart build src/*.egg-info
