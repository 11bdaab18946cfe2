# SPDX-FileCopyrightText: pg_ops.replication contributors
# SPDX-License-Identifier: GPL-3.0-or-later

SHELL := /bin/sh
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHON SEED ROUNDS COUNT BUDGET_SECONDS REPORT KEEP
VENV_PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev local demo demo-clean test test-fast test-long bench chaos clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 22

setup: ## create .venv with what the playbooks need (PYTHON=/path/to/python3 names the interpreter)
	@scripts/setup.sh user

setup-dev: ## the same, with the tools that make test needs
	@scripts/setup.sh dev

local: setup ## prepare inventories/local: directories, ports and, as root, an account; starts nothing
	@$(VENV_PYTHON) scripts/local_clusters.py prepare

demo: setup ## three local clusters through set-up, switchover, crash, failover and rejoin; they stay up
	@$(VENV_PYTHON) scripts/demo.py

demo-clean: ## stop the local clusters and remove them
	@python3 scripts/local_clusters.py clean

test-fast: setup-dev ## lint, sanity, unit tests and most module tests on local servers; no playbooks, no containers
	@$(VENV_PYTHON) scripts/run_checks.py fast

test: setup-dev ## test-fast, the playbooks on local servers, then the molecule scenarios on LXD (as root)
	@$(VENV_PYTHON) scripts/run_checks.py all

test-long: setup-dev ## what make test has no time for: kill matrices in full, eight standbys, rarer modes; an hour at least
	@$(VENV_PYTHON) -m pytest tests/integration/playbooks -m "long or chained" -n 3 --dist loadfile

bench: setup-dev ## measure switchover and failover on LXD (RUNS=5)
	@$(VENV_PYTHON) -m benchmarks.run

chaos: setup-dev ## every fault of tests/chaos on LXD, in random order (SEED, ROUNDS=1, KEEP=1), as root
	@$(VENV_PYTHON) -m tests.chaos.run

clean: ## remove .venv, caches and links; the local clusters stay (make demo-clean)
	@rm -rf .venv .cache .ansible .mypy_cache .pytest_cache .ruff_cache collections playbooks/collections tests/output
