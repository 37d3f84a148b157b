# Copyright (c) 2026, bastion.mux contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# `make` alone says what there is. Everything runs from a clean clone: environments are made on
# first use, under .venv and .venvs. Outside the checkout only ~/.ansible is written and, as root
# on Debian, system packages that are missing.
# Recipes are single commands on purpose: macOS ships a make without .ONESHELL.

VENV := $(CURDIR)/.venv
PYTHONS := 3.13 3.12 3.11 3.14
# The demo needs three packages, not the whole workshop: it takes what is there.
RUNTIME := $(if $(wildcard $(VENV)/.installed),$(VENV),$(CURDIR)/.venvs/runtime)
TREE := $(CURDIR)/.tree
COLLECTION := $(TREE)/ansible_collections/bastion/mux
SCENARIO :=
# Tests wait a fifth of their time: one more than there are cores.
WORKERS = $(shell python3 -c 'import os; print(os.cpu_count() + 1)')
ARGS :=
# There is a unix socket in it, so its name must be short.
BASTION := $(CURDIR)/.cache/bastion

export PATH := $(VENV)/bin:$(PATH)
export ANSIBLE_COLLECTIONS_PATH := $(TREE)
export PYTHONPATH := $(TREE)

.PHONY: help
help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-22s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tree setup runtime lock
tree:
	@mkdir -p $(dir $(COLLECTION))
	@test -L $(COLLECTION) || ln -s ../../.. $(COLLECTION)

setup: tree ## make the development environment (the others do it when they need it)
	@dev/venv $(VENV) dev/requirements.txt $(PYTHONS)

runtime: tree
	@dev/venv $(RUNTIME) $(if $(filter $(VENV),$(RUNTIME)),dev/requirements.txt,dev/runtime.txt) $(PYTHONS)

lock: setup ## pin dev/*.txt anew
	@dev/lock $(ARGS)

.PHONY: demo
demo: runtime ## show it all on loopback, with a bastion of its own
	@dev/need ssh
	@PATH="$(RUNTIME)/bin:$$PATH" ansible-playbook bastion.mux.demo $(ARGS)

.PHONY: bastion bastion-stop
bastion: runtime ## start the bastion of the demo for a first try, and say how to use it
	@dev/need ssh
	@$(RUNTIME)/bin/python dev/bastion.py $(BASTION)

bastion-stop: runtime ## end it
	@$(RUNTIME)/bin/python dev/bastion.py $(BASTION) stop

LINTERS := lint-ruff lint-mypy lint-shell lint-ansible lint-licences lint-changelog
.PHONY: lint $(LINTERS)
lint: $(LINTERS) ## ruff, mypy, shellcheck, ansible-lint, licences, changelog

lint-ruff: setup
	@echo "--- ruff"
	@ruff check .
	@ruff format --check .

lint-mypy: setup
	@echo "--- mypy --strict"
	@cd $(TREE) && mypy --config-file $(CURDIR)/pyproject.toml $$(cd $(CURDIR) && dev/sources python ansible_collections/bastion/mux/)

lint-shell: setup
	@echo "--- shellcheck"
	@shellcheck $$(dev/sources shell)

lint-ansible: setup
	@echo "--- ansible-lint"
	@ansible-lint --offline --profile production

lint-licences: setup
	@echo "--- licences"
	@reuse lint --quiet || reuse lint

lint-changelog: setup
	@echo "--- changelog"
	@antsibull-changelog lint

.PHONY: units test-fast
units: setup ## the unit tests
	@dev/need ssh
	@pytest -n $(WORKERS) tests/unit $(ARGS)

test-fast: lint units ## what to run before a commit

.PHONY: sanity compat
sanity: setup ## ansible-test sanity, with every Python of this machine
	@dev/need git
	@dev/ansible-test sanity --local $(ARGS)

compat: setup ## the units on the oldest Python of managed hosts, on the oldest and the newest core
	@dev/compat $(ARGS)

.PHONY: docs
docs: setup ## check the documentation and build docs/html
	@dev/docs

.PHONY: build
build: setup ## build the collection, install it elsewhere and read it there
	@dev/need git ssh
	@pytest tests/package $(ARGS)

.PHONY: integration molecule execution-environment test-long test-matrix
integration: setup ## tests against a real sshd on loopback
	@dev/need ssh sshd rsync -- initdb
	@python dev/others.py
	@pytest -n $(WORKERS) --dist worksteal -m "not long" tests/integration $(ARGS)

test-long: setup ## rare ways that take long; before a release
	@dev/need ssh sshd rsync
	@pytest -n $(WORKERS) --dist worksteal -m long tests/integration $(ARGS)
	@$(MAKE) --no-print-directory execution-environment

molecule: setup ## scenarios in containers (SCENARIO=name for one)
	@dev/molecule $(SCENARIO)

execution-environment: setup ## build one, and run jobs in it as AWX does
	@dev/molecule execution_environment

test-matrix: setup ## OpenSSH 8.4, 9.2, 10.0 and the newest, each as client and as server of each
	@BASTION_MUX_MATRIX=full dev/molecule matrix

.PHONY: bench
bench: setup ## measure, and write the results page
	@dev/need ssh sshd
	@python -m tests.benchmark.run $(ARGS)

.PHONY: test
test: ## everything
	@python3 dev/steps.py setup lint+units molecule+sanity,compat,docs,build,integration
