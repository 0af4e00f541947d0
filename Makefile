# make demo  from nothing to a report: environment, model, ingest of corpus/, a first query
# make test  from nothing to green: environment, lint, types, tests

PYTHON ?= python3
VENV   ?= .venv
EXTRAS ?= dev
WORKERS ?= 2
ELW    := $(VENV)/bin/elw
DEMO_DB := demo.duckdb

.PHONY: demo test lint types bench clean

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 …") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	@touch $@

# mypy finds the package through a link, because its folders lie at the repository's root.
.types/energy_lens:
	@mkdir -p .types && ln -sfn .. $@

demo: $(VENV)/installed
	$(ELW) ingest corpus/ --db $(DEMO_DB)
	$(ELW) sql --db $(DEMO_DB) 'SELECT * FROM efas WHERE abs(score) > 0.7'
	$(ELW) sql --db $(DEMO_DB) < sql/queries/top_nll.sql
	$(ELW) report --db $(DEMO_DB) --output report/

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/installed .types/energy_lens
	MYPYPATH=.types $(VENV)/bin/mypy -p energy_lens

test: lint types
	$(VENV)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile

bench: $(VENV)/installed
	$(VENV)/bin/python benchmarks/speed.py

clean:
	rm -rf $(VENV) .types build dist *.egg-info $(DEMO_DB)* report
