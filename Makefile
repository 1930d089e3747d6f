# Targets, by `make help`. What `results` and `bench` measure takes hours; interrupted, they go on where they were.
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --quiet
DEMO    = output/smollm2-135m-8of16

SOURCES = pyproject.toml constraints.txt README.md $(shell find nm_export -type f -not -name '*.pyc')

.PHONY: help demo test results bench site lint format sanitize clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## the main job on a real model: calibrate, export, verify, generate
	$(BIN)/nm-export recipes/smollm2_8of16.yaml --output-dir $(DEMO) --overwrite
	$(BIN)/nm-export generate $(DEMO) "What is the capital of France?" --backend onnx
	$(BIN)/nm-export generate $(DEMO) "What is the capital of France?" --backend genai

test: $(VENV)/.dev ## the tests
	$(BIN)/python -m pytest -n 2 tests

# WIKITEXT=FILE, TASK_DATA=DIR and CALIBRATION=FILE add what is not shipped. Hours on a small machine.
results: $(VENV)/.dev ## the tables and the picture of docs/results.md
	$(BIN)/python -m nm_export.results $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(if $(TASK_DATA),--task-data $(TASK_DATA)) \
		$(if $(CALIBRATION),--calibration $(CALIBRATION))

# An hour on two cores that have nothing else to do. Interrupted, it goes on with the file that is missing under build/bench.
BENCH    = build/bench
MEASURE  = @mkdir -p $(BENCH) && set -x && $(BIN)/nm-export bench
SMOLLM2  = output/smollm2-all
MEASURED = $(BENCH)/mistral.json $(BENCH)/mistral-patterns.json $(BENCH)/mistral-unpruned.json $(BENCH)/smollm2.json \
           $(BENCH)/decoder-fp32.json $(BENCH)/decoder-int4.json $(BENCH)/model-fp32.json $(BENCH)/model-int4.json

.PRECIOUS: $(SMOLLM2)-fp32 $(SMOLLM2)-int4
bench: $(MEASURED) ## docs/benchmarks.md and its picture
	$(BIN)/nm-export bench page docs/benchmarks.md $(MEASURED)

$(MEASURED): | $(VENV)/.dev
$(BENCH)/mistral.json:
	$(MEASURE) ops --architecture mistral-7b --json $@
$(BENCH)/mistral-patterns.json:
	$(MEASURE) ops --architecture mistral-7b --tokens 1 --pattern 2:4 --pattern 16:32 --weights fp32 --json $@
# what a call costs that a recipe's phase exempts
$(BENCH)/mistral-unpruned.json:
	$(MEASURE) ops --architecture mistral-7b --tokens 16 --tokens 128 --tokens 512 --pattern 16:16 --weights fp32 --json $@
$(BENCH)/smollm2.json:
	$(MEASURE) ops --architecture smollm2 --weights fp32 --weights int4 --json $@
$(BENCH)/decoder-%.json:
	$(MEASURE) decoder --architecture mistral-7b --precision $* --prompt 64 --prompt 512 --json $@
$(BENCH)/model-%.json: | $(SMOLLM2)-%
	$(MEASURE) $(SMOLLM2)-$* --prompt 64 --prompt 512 --prompt 1536 --json $@
# every linear at 8:16 is fast, and worse than the recipes for users
$(SMOLLM2)-%: | $(VENV)/.dev
	$(BIN)/nm-export recipes/paper/magnitude_8of16.yaml --set calibration.dataset=builtin:python-docs \
	  --set onnx.precision=$* --output-dir $@

lint: $(VENV)/.dev ## ruff, mypy, C++ warnings as errors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cmake -S nm_export/kernels -B build/warnings -DNM_EXPORT_WERROR=ON -DNM_EXPORT_BUILD_TESTS=ON
	cmake --build build/warnings --parallel 2

format: $(VENV)/.dev ## let ruff format the code and mend what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

site: $(VENV)/.dev ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

sanitize: $(VENV)/.dev ## the kernels under AddressSanitizer and UndefinedBehaviorSanitizer
	tests/kernels/sanitize.sh $(BIN)/python

# The stamps are made last: an installation that was interrupted is simply done again.
$(VENV)/.demo: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt '.[genai]'
	touch $@

$(VENV)/.dev: $(SOURCES)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt '.[dev]'
	touch $@ $(VENV)/.demo

clean: ## remove the virtual environment, build/ and output/
	rm -rf $(VENV) build output
