# make demo   the main job on a real model: calibrate, export, verify, generate
# make test   the tests
# make results  the tables and the picture of docs/results.md; WIKITEXT=FILE, TASK_DATA=DIR and
#                CALIBRATION=FILE add what is not shipped
# make lint   what CI checks besides: ruff, mypy, C++ warnings as errors
PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
PIP     = $(BIN)/python -m pip install --disable-pip-version-check --quiet
DEMO    = output/smollm2-135m-8of16

SOURCES = pyproject.toml constraints.txt README.md $(shell find nm_export -type f -not -name '*.pyc')

.PHONY: demo test results lint sanitize clean

demo: $(VENV)/.demo
	$(BIN)/nm-export recipes/smollm2_8of16.yaml --output-dir $(DEMO) --overwrite
	$(BIN)/nm-export generate $(DEMO) "What is the capital of France?" --backend onnx
	$(BIN)/nm-export generate $(DEMO) "What is the capital of France?" --backend genai

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 tests

# Hours on a small machine. Interrupted, it goes on where it was.
results: $(VENV)/.dev
	$(BIN)/python -m nm_export.results $(if $(WIKITEXT),--wikitext $(WIKITEXT)) $(if $(TASK_DATA),--task-data $(TASK_DATA)) \
		$(if $(CALIBRATION),--calibration $(CALIBRATION))

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cmake -S nm_export/kernels -B build/warnings -DNM_EXPORT_WERROR=ON -DNM_EXPORT_BUILD_TESTS=ON
	cmake --build build/warnings --parallel 2

sanitize: $(VENV)/.dev
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

clean:
	rm -rf $(VENV) build output
