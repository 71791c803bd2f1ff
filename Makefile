# Everything runs in .venv, made here from Python 3.11 or later and the pinned constraints.txt.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test quick lint audits schema bench clean

demo: .venv/avbench
	$(BIN)/avbench demo

test: lint
	$(BIN)/pytest --numprocesses auto --dist worksteal

# All but the tests marked slow.
quick: lint
	$(BIN)/pytest --numprocesses auto --dist worksteal -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/avbench splits verify

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "avbench needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv .venv

.venv/avbench: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@ .venv/avbench

# The pages of docs/audits/; a test compares them with what the command says.
audits: .venv/avbench
	for spec in avbench/manifests/specs/*.toml; do \
	  name=$$(basename $$spec .toml); \
	  $(BIN)/avbench splits audit $$name --out docs/audits/$$name.md || exit 1; \
	done

# The schemas of result.json and of the leaderboards; tests compare them with the code.
schema: .venv/avbench
	mkdir -p docs/schema
	$(BIN)/python -m avbench.evaluation.result > docs/schema/result.json
	$(BIN)/python -m avbench.leaderboard.board > docs/schema/leaderboard.json

# What measures speed; writes a dated page into benchmarks/results/.
bench: .venv/dev
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist
