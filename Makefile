# `make demo` and `make test` set up everything they need in .venv; so does `make lab`.
PYTHON ?= python3
BIN := .venv/bin
# uv of the machine if there is one, else one installed into .venv
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
READY := .venv/.ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Threads that wait for each other sleep instead of taking the cores from whom they wait for.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lab book hooks export clean help
.DEFAULT_GOAL := help

help:
	@echo "make demo    train networks without labels in about four minutes, and write a report"
	@echo "make test    pytest, every notebook, and the check that notebooks and modules are in sync"
	@echo "make lab     open JupyterLab on the notebooks"
	@echo "make book    build a web site of all notebooks and the API"
	@echo "make export  write the modules again from the notebooks, and clean the notebooks"
	@echo "make hooks   install nbdev's git hooks and merge driver"
	@echo "make clean   remove .venv"

demo: $(READY)
	ssl_nb reproduce first_run

# Two workers of one thread each: faster on two cores than one worker of two.
test: export OMP_NUM_THREADS = 1
test: $(READY)
	ruff check .
	codespell
	pytest -q -n 2 --dist loadgroup
	nbdev_test --n_workers 2 --skip_folder_re '^[_.]|^(reproductions|benchmarks|atlas)$$'

lab: $(READY)
	jupyter lab nbs

book: $(READY)
	python book/assemble.py build/book/source
	sphinx-build -q -c book build/book/source build/book/html
	@echo "the book: build/book/html/index.html"

export: $(READY)
	nbdev_export
	python .ci/strip_widgets nbs
	nbdev_clean

hooks: $(READY)
	nbdev_install_hooks

clean:
	rm -rf .venv

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ssl_nb needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x "$(UV)" || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(CURDIR)/.venv "$(UV)" pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@
