# The commands of the README. PYTHON=… chooses the interpreter, PORT=… and DATA_DIR=… where the demo runs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PORT ?= 8080
DATA_DIR ?= $(CURDIR)/data/demo
BIN := .venv/bin
export PORT FEED
# What is installed for the tests comes from four registries, which do not wait for each other.
MAKEFLAGS += --jobs=3

.PHONY: demo test bench fmt lint audit install install-dev install-audit system-packages clients

install: .venv/installed
install-dev: .venv/installed-dev
install-audit: .venv-audit/installed

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	touch $@

.venv/installed-dev: requirements-dev.txt | .venv/bin/python
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	touch $@ .venv/installed

# Apart: what these need may be older or newer than what we run. Each package is named, so none brings others along.
.venv-audit/installed: requirements-audit.txt requirements-semgrep.txt
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/pip install --quiet --disable-pip-version-check --no-compile --no-deps --require-hashes \
		-r requirements-audit.txt -r requirements-semgrep.txt
	touch $@

demo: install
	DATA_DIR="$(DATA_DIR)" exec $(BIN)/python manage.py demo

system-packages:
	scripts/system-packages

clients: system-packages
	PYTHON="$(PYTHON)" scripts/clients

test: install-dev install-audit system-packages clients
	scripts/test

bench: install-dev system-packages
	$(BIN)/python benchmarks/run.py

fmt: install-dev
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format --quiet .

lint: install-dev
	scripts/lint

audit: install-audit
	scripts/audit
