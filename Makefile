# make demo    distil the pocket LLM on this computer, evaluate it, write runs/pocket/report.html
# make serve   talk to the pocket ear in a browser: http://127.0.0.1:8000/
# make test    the tests
# make check   what CI runs: format, lint, types, floors, tests
# make bench   the benchmarks that take minutes, each with a line of JSON at its end, and one table of ratios
# make test-vllm  what a vLLM is sent, against vLLM's own code, in an environment of its own: 5 GB, no GPU
#
# Flags: make demo DEMO_ARGS="--minutes 2"    make test TEST_ARGS="-k audio"    make bench BENCH_ARGS="--only loss"
#        make serve SERVE_ARGS="--port 9000"    make check PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
DEMO_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

.PHONY: demo serve test test-vllm check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/ossicle demo $(DEMO_ARGS)

serve: $(VENV)/.installed
	$(BIN)/ossicle serve pocket/ear $(SERVE_ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 $(TEST_ARGS)

# vLLM and what is imported with it warn of things of their own.
test-vllm: $(VLLM_VENV)/.installed
	VLLM_TARGET_DEVICE=cpu $(VLLM_VENV)/bin/python -m pytest -W default --timeout 600 $(TEST_ARGS) tests/serving/with_vllm

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory test

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A stamp says that everything is installed; a change of what is asked for installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed

# uv where there is one, else Python's own venv and pip. uv reads a folder of wheels from another variable than pip.
HAS_UV = uv --version >/dev/null 2>&1

define install
@echo "installing $(1)"; \
if $(HAS_UV); then \
    UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" uv pip install --quiet --python $(BIN)/python --editable '$(1)' --constraints constraints.txt; \
else \
    $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade; \
    $(BIN)/python -m pip install --quiet --editable '$(1)' --constraint constraints.txt; \
fi
endef

$(BIN)/python:
	@if $(HAS_UV); then \
	    uv venv --quiet --allow-existing $(VENV); \
	else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ossicle needs Python 3.11 or newer: make PYTHON=python3.11")' \
	    && $(PYTHON) -m venv $(VENV); \
	fi

# Built for no device, vLLM is its Python code, and calls itself 0.32.0+empty, which pip refuses and uv takes. Nothing that is
# tested needs torchvision and its like, and those that are found may not fit the torch that vLLM wants.
VLLM := torch==2.13.0 vllm==0.32.0 --no-binary vllm
UNFIT := torchvision torchaudio torchcodec

$(VLLM_VENV)/.installed: pyproject.toml
	@echo "installing vLLM"; \
	if $(HAS_UV); then \
	    uv=uv; uv venv --quiet --allow-existing $(VLLM_VENV); \
	else \
	    uv=$(VLLM_VENV)/bin/uv; $(PYTHON) -m venv $(VLLM_VENV) && $(VLLM_VENV)/bin/python -m pip install --quiet uv; \
	fi; \
	export UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" VLLM_TARGET_DEVICE=empty; to="--quiet --python $(VLLM_VENV)/bin/python"; \
	$$uv pip install $$to $(VLLM) \
	&& $$uv pip uninstall $$to $(UNFIT) \
	&& $$uv pip install $$to --editable . beartype hypothesis pytest pytest-timeout
	@touch $@
