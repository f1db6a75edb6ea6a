# Every verb does all its own set-up. `make` alone lists them.
#   ARGS="…"   is passed on: make serve ARGS="--port 9000", make test ARGS="tests/engine -k slots"
#   PYTHON, TORCH_INDEX_URL: see scripts/setup.sh

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev serve demo test test-slow check bench bench-store bench-layers bench-context bench-engine bench-resume bench-capacity bench-kernels bench-gpu bench-vllm setup-vllm test-vllm test-kernels load scale chaos mutants fuzz conformance schemathesis check-containers lock clean

ARGS ?=
BIN := .venv/bin
export PYTHON TORCH_INDEX_URL

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

setup: ## install everything that serving needs into .venv
	@scripts/setup.sh runtime

setup-dev:
	@scripts/setup.sh dev

serve: setup ## start the server on http://127.0.0.1:8000
	@exec $(BIN)/hope serve $(ARGS)

demo: setup ## teach, kill, restart, ask: prints what was remembered
	@exec $(BIN)/python examples/demo.py $(ARGS)

test: setup-dev ## run the tests (all but the slow ones)
	@echo "test: running pytest …"
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m pytest -q -m "not slow" $(ARGS)

test-slow: setup-dev ## run the slow tests: attacks on a server, the SDK's types, long runs (wants a quiet machine)
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m pytest -q -m slow $(ARGS)

check: setup-dev ## format, lint, types, architecture, quick tests
	@echo "check: ruff format …" && $(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --diff .; exit 1; }
	@echo "check: ruff …" && $(BIN)/ruff check --quiet .
	@echo "check: mypy …" && $(BIN)/mypy
	@echo "check: import contracts …" && $(BIN)/lint-imports --no-cache
	@echo "check: quick tests …" && OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not model"

bench: setup-dev ## measure speed and memory, side by side with transformers
	@OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=5000 exec $(BIN)/python bench/run.py $(ARGS)

bench-store: setup-dev ## measure the stores beside plain reads and writes
	@PYTHONPATH=tests/support exec $(BIN)/python bench/store.py $(ARGS)

bench-context: setup-dev ## measure a session that grows, beside peers that read it all again
	@PYTHON= VENV=.venv scripts/vllm.sh && exec $(BIN)/python bench/context.py $(ARGS)

bench-engine: setup-dev ## measure our engine beside vLLM's CPU build
	@PYTHON= VENV=.venv scripts/vllm.sh && exec $(BIN)/python bench/engine.py $(ARGS)

setup-vllm: setup ## make .vllm-plugin: vLLM's CPU build with our plugin, for `hope serve --engine vllm`
	@PYTHON= VENV=.venv scripts/vllm-plugin.sh

test-vllm: setup-dev ## test the plugin for vLLM in the environment of vLLM (its CPU build)
	@PYTHON= VENV=.venv scripts/vllm-plugin.sh && exec scripts/test-vllm.sh $(ARGS)

bench-vllm: setup-dev ## measure vLLM with our plugin beside plain vLLM
	@PYTHON= VENV=.venv scripts/vllm-plugin.sh && exec $(BIN)/python bench/vllm_plugin.py $(ARGS)

bench-resume: setup-dev ## measure sessions that come back from Redis
	@PYTHONPATH=tests/support exec $(BIN)/python bench/resume.py $(ARGS)

bench-capacity: setup-dev ## measure the constants of one server for `hope plan`
	@PYTHONPATH=tests/support exec $(BIN)/python bench/capacity.py $(ARGS)

bench-kernels: setup-dev ## measure the operators on a CPU beside their slower forms and a peer's
	@scripts/peers.sh && exec $(BIN)/python bench/kernels.py $(ARGS)

test-kernels: setup-dev ## check the GPU kernels without a GPU: Triton's interpreter and compilation for sm_80 and sm_90
	@exec scripts/test-kernels.sh $(ARGS)

bench-gpu: ## measure the GPU kernels; needs a CUDA device, torch and Triton, and installs nothing
	@PYTHONPATH=kernels:bench exec $${PYTHON:-python3} bench/gpu.py $(ARGS)

bench-layers: setup-dev ## measure our Titans layer beside other people's
	@scripts/peers.sh && exec $(BIN)/python bench/layers.py $(ARGS)

load: setup-dev ## load a server with many users, then check every session and write a report
	@scripts/load.sh && exec $(BIN)/python -m loadtests.run $(ARGS)

scale: setup-dev ## load three servers behind a router while servers and nodes of their Redis Cluster die
	@scripts/load.sh && scripts/router.sh && exec $(BIN)/python -m loadtests.scale $(ARGS)

chaos: setup-dev ## kill servers, Redis and connections while clients teach; then check every promise
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m tests.chaos.run $(ARGS)

mutants: setup-dev ## plant faults in the commit protocol, the memory operators and studies; every one must be caught
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m tests.mutants.run $(ARGS)

fuzz: setup-dev ## fuzz every parser of stored bytes, ARGS seconds each (60)
	@$(BIN)/python -c 'import atheris' 2>/dev/null || $(BIN)/pip install --quiet --disable-pip-version-check atheris==3.0.0
	@for target in frames schema1 archive keyfile; do $(BIN)/python fuzz/run.py $$target $(or $(ARGS),60) || exit 1; done

conformance: setup-dev ## run other people's clients against a live server on the real model
	@scripts/conformance.sh && exec $(BIN)/python conformance/run.py $(ARGS)

schemathesis: setup-dev ## send 10,000 generated requests to a toy server
	@scripts/conformance.sh && exec $(BIN)/python conformance/schema_fuzz.py $(ARGS)

check-containers: setup ## look for faults in Dockerfile, compose.yaml, Prometheus' and nginx's files; needs no engine
	@exec scripts/containers.sh check

lock: ## rewrite the locked versions from requirements/*.in (needs uv)
	@scripts/lock.sh $(ARGS)

clean: ## remove .venv, caches and build products (sessions and converted models stay)
	rm -rf .venv .load .router .vllm .vllm-plugin .containers .setup.lock .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
	find . -path ./.git -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
