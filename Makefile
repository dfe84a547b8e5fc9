# Each target does its own set-up. `make demo` and `make test` are all that a newcomer needs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DATA ?= data/grid
RUN ?= runs/grid-s1
# Waiting threads spin briefly, then sleep: far faster wherever another program is busy too.
export GOMP_SPINCOUNT ?= 5000

.PHONY: demo test lint test-slow weights train evaluate bench benchmark-load browser bench-objective clean

demo: $(VENV)/.installed  ## transcribe real clips at every compression rate
	@echo "Three clips of GRID, at every compression rate of one model (scale, LLM tokens, time, text):"
	@$(BIN)/mtsk transcribe --scale all -- examples/*.mp4

test: $(VENV)/.installed-dev weights  ## what CI runs: lint, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

test-slow: $(VENV)/.installed-dev weights  ## everything, the comparisons with heavy references too
	$(BIN)/pytest -m ""

weights: $(VENV)/.installed  ## fetch the base weights into the cache
	@$(BIN)/python -m mtsk.checkpoints.sources

train: $(VENV)/.installed weights  ## train the default model again: GRID=... NOISE=...
	$(BIN)/mtsk prepare grid $(GRID) $(DATA)
	$(BIN)/mtsk prepare noise $(NOISE) $(DATA)
	$(BIN)/mtsk train grid-s1 --data $(DATA) -o $(RUN) --resume

evaluate: $(VENV)/.installed weights  ## measure it: DATA=... RUN=...
	$(BIN)/mtsk evaluate --data $(DATA) --model $(RUN)/model --snr clean,5,0,-5 -o $(RUN)/evaluation

bench: $(VENV)/.installed-bench weights  ## speed and memory beside faster-whisper and openai-whisper; on an idle machine
	$(BIN)/python -m benchmarks.speed -o docs/results/speed

benchmark-load: $(VENV)/.installed-dev weights  ## `mtsk serve` under up to ten times what it can take; on an idle machine
	$(BIN)/python -m benchmarks.load -o docs/results/serving

browser: $(VENV)/.installed-browser weights  ## the page in Chromium, with a camera and a microphone that play a clip
	$(BIN)/python -m benchmarks.browser -o runs/browser

bench-objective: $(VENV)/.installed weights  ## memory and time of one backward per scale, against the summed loss
	$(BIN)/python benchmarks/objective.py --json objective.json

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mtsk needs Python 3.11 or newer; make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps openai-whisper
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
