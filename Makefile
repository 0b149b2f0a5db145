# What a newcomer types: `make demo` and `make test`. Both create .venv and install first; both may be repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow test-mlserver test-ray soak lint bench install clean

demo: install
	$(BIN)/offramp demo

test: install
	$(BIN)/python -m pytest -n 2

# The full demo and everything else that takes long.
test-slow: install
	$(BIN)/python -m pytest -m slow

# The edge against MLServer, whose pins do not go with ours: it gets an environment of its own.
test-mlserver: install .venv-mlserver/.installed
	$(BIN)/python -m pytest -m slow tests/serving/test_mlserver.py

# 1,000 random fault schedules from a seed; `make soak SOAK="--seed 17 --schedules 1"` runs one again.
soak: install
	$(BIN)/python tests/faults/soak.py $(SOAK)

# Replicas behind Ray Serve. Ray listens on more than loopback, so these tests get a network of their own.
test-ray: install .venv-ray/.installed
	unshare --map-root-user --net sh -c 'ip link set lo up && exec "$$@"' sh \
		$(BIN)/python -m pytest -m slow tests/serving/test_ray.py

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m benchmarks

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "offramp needs Python 3.10 or newer; try: make PYTHON=python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(INSTALLED)

.venv-mlserver/.installed: tests/serving/mlserver/requirements.txt
	test -x .venv-mlserver/bin/python || $(PYTHON) -m venv .venv-mlserver
	.venv-mlserver/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	touch $@

.venv-ray/.installed: pyproject.toml constraints.txt
	test -x .venv-ray/bin/python || $(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[ray]'
	touch $@

clean:
	rm -rf $(VENV) .venv-mlserver .venv-ray offramp-demo benchmarks/results
