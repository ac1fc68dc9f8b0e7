# What people type. `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help install demo test test-architectures test-integration test-containers test-cluster test-kill check golden bench bench-quality chart images component clean
.DEFAULT_GOAL := help

##@ Start here

help: ## list these targets
	@awk -F':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: .venv/installed ## set up .venv with pinned versions; the other targets do this themselves

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed; name it: make PYTHON=python3.11 ..." >&2; exit 1; }
	@echo "setting up .venv (a few minutes the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,dev]'
	@mkdir -p .venv/typed/qlora_pipelines
	@ln -sfn ../../../components ../../../pipelines .venv/typed/qlora_pipelines/
	@touch $@

MODEL := runs/models/SmolLM2-135M-Instruct

demo: install ## fine-tune a real small model on this machine, end to end
	@$(BIN)/python -m qlora_pipelines.pipelines.demo.fetch_model $(MODEL)
	@$(BIN)/qlora run --config pipelines/demo/demo.yaml

# One worker per core with one thread each: the models are tiny, and threads that wait for one another cost time.
test: install ## the quick tests: every step on a tiny model, and the whole pipeline
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder

##@ Tests

check: install ## lint (Python, Dockerfile), types, imports between packages, generated files, file length
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m qlora_pipelines.pipelines.docgen.reference --check
	@$(BIN)/hadolint images/Dockerfile
	@git ls-files '*.py' | xargs wc -l | awk '$$2 != "total" && $$1 > 300 {print $$2 ": " $$1 " lines, 300 are allowed"; bad = 1} END {exit bad}'

test-integration: install ## against a real S3 and an MLflow server with logins
	@$(BIN)/pytest tests/integration -s

test-containers: install ## build the images and run the whole pipeline in them
	@$(BIN)/pytest tests/containers -s

test-cluster: install ## on the Kubernetes with Kubeflow Pipelines that KUBECONFIG names
	@$(BIN)/pytest tests/cluster -s

test-architectures: install ## every architecture of transformers through the whole path, tiny
	@OMP_NUM_THREADS=1 $(BIN)/pytest tests/architectures/matrix tests/architectures/test_most_used.py -n 2 --dist worksteal

test-kill: install ## kill -9 training at 24 random moments: the adapter must not change by a bit
	@$(BIN)/pytest tests/kill -s

##@ Measure

bench: install ## speed and memory against peers; writes dist/bench.json (20 minutes)
	@$(BIN)/python -m tests.benchmarks

bench-quality: install ## the loss after equal tokens against TRL, three seeds (20 minutes)
	@$(BIN)/python -m qlora_pipelines.pipelines.demo.fetch_model $(MODEL)
	@$(BIN)/python -m tests.benchmarks.quality_vs_trl

##@ Build

images: install ## build the images cpu and cuda with docker buildx or podman
	@images/build.sh

chart: install ## lint, test and package the Helm chart
	@$(BIN)/python -c 'import helm_python' 2>/dev/null || { echo "error: Helm's library has no wheel for this platform; there are helm lint and helm package" >&2; exit 1; }
	@$(BIN)/pytest tests/charts
	@mkdir -p dist
	@$(BIN)/python -c 'import helm_python; print(helm_python.package("charts/qlora-pipelines", destination="dist"))'

golden: install ## write the compiled pipeline and the generated docs again
	@$(BIN)/python -m qlora_pipelines.pipelines.docgen.reference

component: install ## start a new step: make component NAME=verb_noun
	@$(BIN)/python -m qlora_pipelines.pipelines.scaffold "$(NAME)"

clean: ## remove what was built; runs/ stays
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
