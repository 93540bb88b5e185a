# `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export ANSIBLE_CONFIG := $(CURDIR)/ansible.cfg
export ANSIBLE_FORCE_COLOR ?= $(shell [ -t 1 ] && echo 1 || echo 0)
# Scenarios of `make test`, the longest first, and those of `make test-slow`.
SCENARIOS ?= docker_engine nvidia_container_toolkit nvidia_driver gateway local_hub deploy_lock teardown deploy_report host_python vram_plan preflight _nvidia_repository _verdict vllm vllm_check
SLOW_SCENARIOS ?= benchmark bundle engine_image engine_image_wheels model_weights nvidia_driver_dkms nvidia_driver_vm smoke_test stability vllm_service vram_check watchdog
INVENTORY ?= inventories/embedded
# More arguments for ansible-playbook, e.g. ARGS="-e vllm_port=18001".
ARGS ?=

.PHONY: help deploy-deps dev-deps demo demo-down docs test lint sanity test-host test-unit test-roles test-e2e test-slow bench-demo bench-fleet bench-plan bench-proof bench-roles bench-service bench-weights clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

deploy-deps: ## Make .venv with Ansible and what its modules need
	@bin/bootstrap deploy

dev-deps:
	@bin/bootstrap dev

demo: deploy-deps ## Deploy a real vLLM with a tiny model on this machine, and prove it
	ansible-playbook deploy.yml -i $(INVENTORY) $(ARGS)

demo-down: deploy-deps ## Remove all that the demo started
	ansible-playbook playbooks/teardown.yml -i $(INVENTORY) -e teardown_remove_data=true

test: lint sanity test-unit test-e2e test-roles ## Run every test but the slow ones
	ansible-playbook tests/support/clean.yml -i inventories/embedded

docs: dev-deps ## Write the generated pages of docs/ (bin/make-docs)
	python bin/make-docs

lint: dev-deps ## Check style and types (.pre-commit-config.yaml lists the checks)
	pre-commit run --all-files

sanity: dev-deps ## Run ansible-test sanity on the collection as it is packed
	tests/sanity/run

test-host: dev-deps
	ansible-playbook tests/support/prepare.yml -i inventories/embedded

test-unit: test-host ## Run the unit tests
	pytest -n 2 tests/unit

test-e2e: test-host ## Deploy the demo, break it, heal it
	pytest -v --capture=no -m "not slow" tests/e2e

test-slow: test-host ## Run the scenarios that take long
	ansible-playbook tests/support/engine.yml -i inventories/embedded
	tests/roles/run $(SLOW_SCENARIOS)
	pytest -v --capture=no -m slow tests/e2e
	pytest -q tests/cuts

test-roles: test-host ## Run one molecule scenario per role, or those of SCENARIOS="a b"
	tests/roles/run $(SCENARIOS)

bench-plan: dev-deps ## Compare predicted with measured memory, beside other estimators
	python bench/plan.py

bench-proof: test-host ## Time the proof of a ready service
	python bench/proof.py

bench-roles: test-host ## Time the host roles with nothing to do, beside tasks that do nothing
	python bench/roles.py

bench-weights: dev-deps ## Time a verified download, beside a plain copy and huggingface_hub
	python bench/weights.py

bench-service: test-host ## Time the gateway, restarts and deploys of the demo
	python bench/service.py

bench-fleet: dev-deps ## Time deploys of eight hosts beside one, all on this machine (16 cores)
	python bench/service.py --only fleet

bench-demo: dev-deps ## Time the demo, from nothing and again
	python bench/demo.py

clean: ## Remove caches (the next demo builds its image again)
	rm -rf .cache .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis .ansible
