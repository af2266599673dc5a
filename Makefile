# Every target does the set-up that it needs; a second run finds it done. `make PYTHON=/path/to/python3.12` picks the
# interpreter of the virtual environment.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup run test check protos lock bench clean
.NOTPARALLEL:

setup:
	@$(PYTHON) deploy/set_up.py

run: setup
	@$(BIN)/labda up --deploy examples/hello

test: setup
	@$(BIN)/python -m pytest $(ARGS)

check: setup
	$(BIN)/ruff check .
	$(BIN)/mypy --strict .
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

protos: setup
	$(BIN)/python -m protos.generate

# Versions change here only. uv resolves; pip installs what was resolved, by hash.
lock: setup
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --generate-hashes --python-version 3.11 \
		--no-emit-index-url --custom-compile-command 'make lock' --output-file deploy/requirements.lock

bench: setup
	@for file in benchmarks/*.py; do \
		case $$file in */__init__.py) continue;; esac; \
		test -e "$$file" || { echo "no benchmarks yet"; exit 0; }; \
		echo "== $$file"; $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; \
	done

# What was made here; the state of a cluster (.labda) stays: `labda down`, then remove it by hand.
clean:
	rm -rf .venv .runtimes build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
