# The only list of commands, for people, hooks and CI.
# Set TORCH_INDEX to the address of a package index with CPU builds of torch to spare a few gigabytes of CUDA libraries.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
PORT ?= 5000
# folder of published traces: puffin, webglm, gpt-oss-20b, each a folder or a .tar.xz
TRACES ?= ../shared/traces
TORCH_INDEX ?=
# read from the lock file, so that the version has one home
TORCH := $(shell grep -E '^torch==' requirements.lock)

export PATH := $(abspath $(VENV))/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help repro published deepseek gpt-oss test test-slow smoke lint format docs bench golden ui servers servers-stop retrain rollback lock clean
.DEFAULT_GOAL := help

help:  ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

repro: $(VENV)/.ok  ## Run the pipeline: what is up to date is not run again
	dvc repro
	@echo
	@echo "The report:        reports/index.html"
	@echo "The predictor:     models/predictor/"
	@echo "The numbers:       dvc metrics show"
	@echo "All runs:          make ui"

# beside the default, not over it: clones of the last commit under build/, with DVC's cache and MLflow's runs in common
published: deepseek gpt-oss  ## The same pipeline on published traces of real models, in TRACES

deepseek: $(VENV)/.ok  ## ... DeepSeek-V2-Lite: the paper's traces, puffin to train and webglm to test
	$(call published,deepseek,moe-beyond-csv,puffin,$(call traces,webglm)) $(LARGE) -S train.epochs=20 -S simulate.prefill=token_by_token

gpt-oss: $(VENV)/.ok  ## ... gpt-oss-20b: decode traces, divided by prompt
	$(call published,gpt-oss,gpt-oss-fingerprint,gpt-oss-20b,null) $(LARGE) -S train.epochs=30

# a real model has more layers and its prompts rarer strings than the embedded one: a larger predictor, held back more,
# in smaller steps (docs/ablation.md)
LARGE = -S train.precision=$(PRECISION) -S train.batch_size=4 -S train.patience=30 -S train.letter_buckets=8192 \
	-S train.reach=10 -S train.layer_width=192 -S train.layer_hidden=384 -S train.dropout=0.25 -S train.token_dropout=0.1 \
	-S train.history_dropout=0.15 -S train.weight_decay=0.03 \
	-S 'tune.space.width=[512]' -S 'tune.space.depth=[1,2]' -S 'tune.space.heads=[8]' -S 'tune.space.train.window=[64]'
# and its test splits have thirty times as many layer steps: fewer sizes, latencies and links are timed
LARGE += -S 'simulate.timed_capacities=[0.05,0.1,0.2]' -S 'simulate.predictor_latencies_ms=[0.5]' \
	-S 'simulate.bandwidths_gb_per_s=[1.0,4.0,16.0,64.0]'
PRECISION = $(if $(shell grep -om1 -e avx512_bf16 -e amx_bf16 /proc/cpuinfo 2>/dev/null),bf16-mixed,32-true)

traces = $(firstword $(wildcard $(abspath $(TRACES))/$(1).tar.xz $(abspath $(TRACES))/$(1)) $(abspath $(TRACES))/$(1))

# name, format, traces to divide, traces of a held-out domain
define published
@test -e $(call traces,$(3)) || { echo "error: TRACES=$(TRACES): holds no $(3); see 'Published traces' in README.md"; exit 1; }
@echo "The report will be build/$(1)/reports/index.html"
test -d build/$(1) || git clone -q . build/$(1)
git -C build/$(1) fetch -q origin HEAD
git -C build/$(1) checkout -qf FETCH_HEAD
cd build/$(1) && dvc cache dir --local -q $(CURDIR)/.dvc/cache && PYTHONPATH=src \
	MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db} \
	dvc exp run -S traces.source=import -S traces.import.format=$(2) \
	-S traces.import.train=$(call traces,$(3)) -S traces.import.held_out=$(4) -S 'assess.others=[$(OTHER_CARDS)]'
endef

# models whose suitability cards stand beside: what is there of these
comma := ,
OTHER_CARDS = $(subst } {,}$(comma){,$(strip \
	$(if $(wildcard $(call traces,puffin)),{format:moe-beyond-csv$(comma)path:$(call traces,puffin)}) \
	$(if $(wildcard $(call traces,gpt-oss-20b)),{format:gpt-oss-fingerprint$(comma)path:$(call traces,gpt-oss-20b)}) \
	$(if $(wildcard $(QWEN)),{format:bigmoe-route$(comma)path:$(QWEN)}) \
	$(if $(wildcard data/traces),{format:parquet$(comma)path:$(CURDIR)/data/traces})))
QWEN = $(abspath $(TRACES))/bigmoe-on-edge/qwen.route.csv.gz

test: $(VENV)/.ok  ## Fast tests
	pytest -m "not slow"

test-slow: $(VENV)/.ok  ## Every test, the end-to-end ones too
	pytest -m "not slow"
	pytest -p no:randomly -m slow

smoke: $(VENV)/.ok  ## The whole pipeline with tiny parameters, in a temporary clone of the last commit
	pytest -p no:randomly -m slow tests/test_end_to_end.py

lint: $(VENV)/.ok  ## Style and types
	ruff check .
	ruff format --check .
	mypy

format: $(VENV)/.ok  ## Mend what can be mended by itself
	ruff check --fix .
	ruff format .

docs: $(VENV)/.ok  ## Write the figures of the last run into the README, and docs/parameters.md
	python docs/generate.py

bench: $(VENV)/.ok  ## Every promised ratio, measured side by side: NAME VALUE TARGET, and reports/benchmarks.json
	python benchmarks/run.py

golden: $(VENV)/.ok  ## Every figure published beside the TRACES, recomputed: NAME VALUE EXPECTED, and reports/golden.json
	python -m benchmarks.golden $(TRACES)

ui: $(VENV)/.ok  ## MLflow's pages on http://127.0.0.1:5000, on this machine's runs
	mlflow server --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

retrain: $(VENV)/.ok  ## Fetch, run what changed, meet the champion, keep, report: docs/retraining.md. SET="train.epochs=30" REMOTE= BASE=
	.ci/retrain

rollback: $(VENV)/.ok  ## The champion before this one becomes the champion again
	moe-beyond rollback

servers: $(VENV)/.ok  ## PostgreSQL and MLflow on loopback, as a team has them; then: . build/servers/environment
	python scripts/servers.py start --mlflow-port $(PORT)

servers-stop: $(VENV)/.ok  ## ... stop them; what they hold stays in build/servers
	python scripts/servers.py stop --mlflow-port $(PORT)

lock: $(VENV)/.ok  ## Resolve pyproject.toml anew into requirements.lock
	pip-compile -q --extra dev --extra postgresql --extra ray --strip-extras --allow-unsafe --no-emit-find-links --no-emit-index-url \
		--no-emit-trusted-host --no-annotate -o requirements.lock pyproject.toml
	# a CPU build's local version is not on the index
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/; s|file://[^ ]*||' requirements.lock

clean:  ## Remove the environment and interrupted work; data, models, reports and runs stay
	rm -rf $(VENV) .scratch build

# torch first and alone: without a choice of index, its resolver would look at every package's index
$(VENV)/.ok: requirements.lock pyproject.toml
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -c 'import sys; sys.exit("Python 3.11 is needed, found " + sys.version) if sys.version_info[:2] != (3, 11) else None'
	$(VENV)/bin/pip install -q --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX) --no-deps) $(TORCH) -c requirements.lock
	$(VENV)/bin/pip install -q --disable-pip-version-check -r requirements.lock
	$(VENV)/bin/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@
