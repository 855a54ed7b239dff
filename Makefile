# The only list of commands, for people, hooks and CI.
# Set TORCH_INDEX to the address of a package index with CPU builds of torch to spare a few gigabytes of CUDA libraries.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3.11)
VENV ?= .venv
PORT ?= 5000
MINUTES ?= 5
CASES ?=
# folder of published traces: puffin, webglm, gpt-oss-20b, each a folder or a .tar.xz
TRACES ?= ../shared/traces
TORCH_INDEX ?=
# a shell reads these, and names of folders, from its environment: as text of a command, a `;` in one would end the command.
# They are taken as they were given: make would read `$$(...)` in one as its own
LITERAL := PYTHON TRACES TORCH_INDEX REMOTE BASE SET
$(foreach name,$(LITERAL),$(if $(filter command environment,$(firstword $(origin $(name)))),$(eval override $(name) := $$(value $(name)))))
export $(LITERAL)
# read from the lock file, so that the version has one home
TORCH := $(shell grep -E '^torch==' requirements.lock)
# programs of an environment name the place where it was made: after a move, and in a copy, it is made anew
MADE_HERE := $(shell cd $(VENV) 2>/dev/null && test -x bin/python && pwd -P | cmp -s - made-at && echo yes)
OLDEST := build/oldest-runtime

export PATH := $(abspath $(VENV))/bin:$(PATH)
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help repro published deepseek gpt-oss larger test test-slow test-oldest fuzz smoke lint format docs bench golden ui servers servers-stop retrain rollback lock audit release clean
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

# in clones of the last commit under build/, so that they stand beside the default
published: deepseek gpt-oss  ## The same pipeline on published traces of real models, in TRACES

deepseek: $(VENV)/.ok  ## ... DeepSeek-V2-Lite: the paper's traces, puffin to train and webglm to test
	python scripts/other_model.py deepseek --traces "$$TRACES"

gpt-oss: $(VENV)/.ok  ## ... gpt-oss-20b: decode traces, divided by prompt
	python scripts/other_model.py gpt-oss --traces "$$TRACES"

# trains a model of 26 MoE layers first: about an hour on two cores
larger: $(VENV)/.ok  ## The same pipeline on a second model of our own, as deep as DeepSeek-V2-Lite
	python scripts/other_model.py larger

# the same examples in the same order each time
test: $(VENV)/.ok  ## Fast tests
	pytest -m "not slow" --randomly-seed=20250823

test-slow: $(VENV)/.ok  ## Every test, the end-to-end ones too; examples and their order are drawn anew
	HYPOTHESIS_PROFILE=new pytest -m "not slow"
	pytest -p no:randomly -m slow

# numpy below 2, and nothing else of the project's environment
test-oldest: $(VENV)/.ok  ## The exported predictor in the oldest onnxruntime that it promises to run in
	python -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install -q --disable-pip-version-check pydantic 'numpy<2' \
		"onnxruntime==$$(sed -n 's/^LEAST_ONNXRUNTIME = "\(.*\)"/\1/p' src/moe_beyond/predictor/graph_file.py).*"
	OLDEST_PYTHON="$$PWD/$(OLDEST)/bin/python" pytest tests/predictor/test_oldest_runtime.py

# by hand before a release: CASES=2000, which takes as long as it takes, or MINUTES=60
fuzz: $(VENV)/.ok  ## Damaged inputs of every format for MINUTES, or CASES of each: a traceback, another result, 30 s or 2 GiB fail
	python -W ignore -m tests.fuzz.run $(if $(CASES),--cases $(CASES),--minutes $(MINUTES)) --seed $$(date +%s)

smoke: $(VENV)/.ok  ## The whole pipeline with tiny parameters, in a temporary clone of the last commit
	pytest -p no:randomly -m slow tests/test_end_to_end.py

lint: $(VENV)/.ok  ## Style, types, import contracts
	ruff check .
	ruff format --check .
	mypy
	lint-imports

format: $(VENV)/.ok  ## Fix what can be fixed automatically
	ruff check --fix .
	ruff format .

docs: $(VENV)/.ok  ## Write the figures of the last run into the README, and docs/parameters.md
	python -m docs.generate

bench: $(VENV)/.ok  ## Every promised ratio, measured side by side: NAME VALUE TARGET, and reports/benchmarks.json
	python benchmarks/run.py

golden: $(VENV)/.ok  ## Every figure published beside the TRACES, recomputed: NAME VALUE EXPECTED, and reports/golden.json
	python -m benchmarks.golden "$$TRACES"

ui: $(VENV)/.ok  ## MLflow's pages on this machine's runs
	-@moe-beyond resend
	@echo 'http://127.0.0.1:$(PORT)/#/experiments/1/runs?workflowType=machine_learning'
	mlflow server --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

retrain: $(VENV)/.ok  ## Fetch, run what changed, evaluate against the champion, push, report: docs/retraining.md. SET="train.epochs=30" REMOTE= BASE=
	.ci/retrain

rollback: $(VENV)/.ok  ## The champion before this one becomes the champion again
	moe-beyond rollback

servers: $(VENV)/.ok  ## PostgreSQL and MLflow on loopback, as a team has them; then: . build/servers/environment
	python scripts/servers.py start --mlflow-port $(PORT)

servers-stop: $(VENV)/.ok  ## ... stop them; their data stays in build/servers
	python scripts/servers.py stop --mlflow-port $(PORT)

lock: $(VENV)/.ok  ## Resolve pyproject.toml anew into requirements.lock
	pip-compile -q --extra dev --extra postgresql --extra ray --strip-extras --allow-unsafe --no-emit-find-links --no-emit-index-url \
		--no-emit-trusted-host --no-annotate -o requirements.lock pyproject.toml
	# a CPU build's local version is not on the index
	sed -i 's/^\(torch==[0-9.]*\)+.*/\1/; s|file://[^ ]*||' requirements.lock
	# of every file of that version, so that other machines can install, too; torch without: its CPU builds are other files
	uv pip compile -q --no-deps --generate-hashes --no-annotate --custom-compile-command 'make lock' \
		-o requirements.lock requirements.lock
	sed -i '/^torch==/,/[^\\]$$/{/--hash=/d; s/ \\$$//}' requirements.lock

# by name and version: the auditor refuses a list of which only some have hashes
audit: $(VENV)/.ok  ## Known vulnerabilities of what the lock file names; .ci/known-findings are passed over, each with a reason
	grep -oE '^[a-z0-9.-]+==[^ ]+' requirements.lock | pip-audit --strict --progress-spinner off --disable-pip --no-deps \
		$$(sed -n 's/^\([A-Z][^ ]*\) .*/--ignore-vuln \1/p' .ci/known-findings) -r /dev/stdin

release: $(VENV)/.ok  ## Wheel, sdist, their bill of materials (CycloneDX) and sha256 sums, of the last commit, in build/release
	python -m scripts.release

clean:  ## Remove the environment and interrupted work; data, models, reports and runs stay
	rm -rf $(VENV) .scratch build

# by their interpreter: a program that pip writes has the folder's name in it, unquoted for the shell that starts it
PIP := $(VENV)/bin/python -m pip install -q --disable-pip-version-check
UV := $(VENV)/bin/uv pip install -q --python $(VENV)/bin/python
# torch first and alone, by pip: without a choice of index, uv's resolver would look at every package's index. The rest by
# uv, which checks every hash that the lock file has, its own before it runs, and those of what sources are built with.
ifeq ($(MADE_HERE),)
.PHONY: $(VENV)/.ok
endif
$(VENV)/.ok: requirements.lock pyproject.toml
	@"$$PYTHON" -c 'import sys; sys.exit("error: Python 3.11 is needed, found " + sys.version.split()[0] + "; install it, or name it: make PYTHON=/path/to/python3.11") if sys.version_info[:2] != (3, 11) else None'
	@"$$PYTHON" -c 'import os, sys; sys.exit("error: the name of this folder, or of one above it, holds a colon or a line break, which PATH and Python cannot take; move the checkout") if set(":\n") & set(os.getcwd()) else None'
	$(if $(MADE_HERE),,"$$PYTHON" -m venv --clear $(VENV) && (cd $(VENV) && pwd -P > made-at))
	$(PIP) $(if $(TORCH_INDEX),--index-url "$$TORCH_INDEX") --no-deps $(TORCH)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.lock | $(PIP) --require-hashes -r /dev/stdin
	$(UV) -r requirements.lock --build-constraints requirements.lock
	$(UV) --no-deps --no-build-isolation -e .
	touch $@
