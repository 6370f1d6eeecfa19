# Every target sets up what it needs; a second call finds it there. `make help` lists the targets.
# PYTHON=/path/to/python3.12 names the Python to use; ARGS="..." goes to the target's command.

READY := .venv/.ready
BIN := .venv/bin
PYTHON ?=
ARGS ?=

export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help demo setup test check format cluster-test bench docs faults crds

##@ Use
# All demo runs share one registry, so that the second one has the first one's champion to beat.
demo: export MLFLOW_TRACKING_URI := $(or $(MLFLOW_TRACKING_URI),sqlite:///$(CURDIR)/runs/mlflow/mlflow.db)
demo: $(READY) ## pretrain on handwritten digits, evaluate and promote: 2 cores, some minutes
	@$(BIN)/scholarch pretrain --recipe demo/digits $(ARGS)
	@$(BIN)/scholarch promote demo-digits --policy demo/digits
	@echo "to go on here: export MLFLOW_TRACKING_URI=$(MLFLOW_TRACKING_URI)"

setup: $(READY) ## only install: uv in .tools/, all else in .venv/
	@:

##@ Work on it
test: $(READY) ## all tests but those that need a cluster
	@.ci/bring_minio
	@$(BIN)/pytest -n 2 --dist worksteal -m "not cluster" $(ARGS)

check: $(READY) ## lint, format, types, layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(READY) ## write what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

crds: $(READY) ## write what the charts have from the operator's models: CRDs, values of a run
	@$(BIN)/python -m scholarch_operator.crd charts/scholarch/templates/crds
	@$(BIN)/python -m scholarch_operator.values charts/scholarch-run/values.schema.json

docs: $(READY) ## check links and commands of the documentation
	@$(BIN)/pytest tests/test_docs.py $(ARGS)

##@ Need more
faults: $(READY) ## 50 seeded schedules of faults against elastic runs in MinIO: an hour or two
	@.ci/bring_minio
	@cd tests && OMP_NUM_THREADS=1 ../$(BIN)/python -m faults --write ../docs/faults.md $(ARGS)

cluster-test: $(READY) ## tests on the Kubernetes of KUBECONFIG (.ci/cluster); ARGS="-m long": those of minutes
	@$(BIN)/pytest -m "cluster and not long" --timeout 1200 $(ARGS)

bench: $(READY) ## benchmarks, side by side
	@ran=; for file in benchmarks/*.py; do \
	if [ -e "$$file" ]; then ran=yes; $(BIN)/python "$$file" $(ARGS) || exit; fi; done; \
	if [ -z "$$ran" ]; then echo "There are no benchmarks yet."; fi

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
	/^[a-z-]+:.*## / {printf "  make %-14s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml uv.lock .ci/setup .ci/bring_uv.py
	@PYTHON="$(PYTHON)" .ci/setup
	@touch $@
