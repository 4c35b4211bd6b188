# Each target does all of its own set-up, in .venv; ARGS="…" is passed on.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --editable
.PHONY: demo test check bench wasm clean

demo: .venv/ready            ## the main job: three engines, the router, a WebAssembly policy
	$(BIN)/sgl-router demo $(ARGS)

test: .venv/ready-test       ## the test suite; what is about plugins by both ways to call them
	$(BIN)/python -m pytest $(if $(ARGS),$(ARGS),--numprocesses 2 --dist loadfile --no-loadscope-reorder)
	$(if $(ARGS),,$(BIN)/python -m pytest tests/wasm tests/hostile tests/examples --wasm-calls public \
	  --numprocesses 2 --dist loadfile)

check: .venv/ready-test      ## lint, formatting, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready           ## what a decision takes, and what a request costs beside nginx
	$(BIN)/python benchmarks/decision.py
	$(BIN)/python benchmarks/overhead.py

wasm:                        ## rebuild the plugins that ship with the package (needs Rust)
	scripts/build_wasm_plugins.sh build --out src/sgl_router/policies/plugins

clean:
	rm -rf .venv dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache plugins

.venv/ready: pyproject.toml
	$(PYTHON) -m venv --clear .venv
	$(PIP) .
	touch $@

.venv/ready-test: .venv/ready
	$(PIP) '.[test,kit]'
	LLAMA_CPP_BUILD_JOBS=$$(nproc) CMAKE_ARGS='-DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF' \
	  $(PIP) '.[test,kit,engine]' || echo 'No llama.cpp (needs a C++ compiler): leaving its tests out.'
	touch $@
