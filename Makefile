# Every target does the set-up that it needs; a second run finds it done. `make PYTHON=/path/to/python3.12` picks the
# interpreter of the virtual environment.
PYTHON ?= python3
JOBS ?= $(shell nproc)
BIN := .venv/bin
BENCHMARKS := frontend_api counting rest invoke cold overload soak

.PHONY: setup stores run cluster cluster-down test check spec protos lock bench bench-cluster soak clean
.NOTPARALLEL:

setup:
	@$(PYTHON) deploy/set_up.py

# Members of the cluster's stores (etcd, NATS): the first time takes minutes, and nothing but tests needs them here.
stores:
	@$(PYTHON) deploy/set_up.py --stores

run: setup
	@$(BIN)/labda up --deploy examples/hello

# Three AZs in containers: needs a Docker engine and Compose v2, and says how to get them.
cluster: setup
	@$(BIN)/labda cluster up --deploy examples/hello --env

# Containers, networks and volumes; asks before it removes the state directory (ARGS=--yes doesn't).
cluster-down: setup
	@$(BIN)/labda cluster down $(ARGS)

test: setup stores
	@$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy --strict .
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

# The ledger's model, its configurations and its mutants (docs/specs/README.md).
spec: setup
	@$(PYTHON) deploy/set_up.py --spec
	@$(BIN)/python docs/specs/check.py $(ARGS)

protos: setup
	$(BIN)/python -m protos.generate

# Versions change here only. uv resolves; pip installs what was resolved, by hash.
lock: setup
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --custom-compile-command 'make lock' --output-file deploy/requirements.lock
	$(BIN)/uv pip compile pyproject.toml --constraints deploy/requirements.lock --universal --generate-hashes \
		--python-version 3.11 --no-emit-index-url --custom-compile-command 'make lock' \
		--output-file deploy/image-requirements.lock

# Each of them; what one has to say doesn't keep the others from running. The last one loads the cluster for ten minutes.
bench: setup
	@$(BIN)/python -m benchmarks.rig.load
	@failed=; for name in $(BENCHMARKS); do \
		echo "== benchmarks.$$name"; $(BIN)/python -m benchmarks.$$name || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

# The cluster in containers: beside an embedded one, then each fault five times: more than an hour.
bench-cluster: setup
	@$(BIN)/python -m benchmarks.containers
	@$(BIN)/python -m benchmarks.recovery --target compose

# Ten thousand fault plans over simulated regions (three hours on two cores), then an hour of what `make bench` does for
# ten minutes.
soak: setup
	@$(BIN)/python -m simulation run --seeds 1..10000 --jobs $(JOBS) --swarm
	@$(BIN)/python -m benchmarks.soak 3600

# What was made here; the state of a cluster (.labda) stays: `labda down`, then remove it by hand.
clean:
	rm -rf .venv .runtimes .stores .specs build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
