# Every target sets up what it needs: `make run` on a fresh checkout is enough.
PYTHON ?= python3
BIN := .venv/bin
# $(call PROTOC,folder,name of the descriptor set,sources)
PROTOC = $(BIN)/python -m grpc_tools.protoc -Iproto --include_imports \
	--descriptor_set_out=$(1)/$(2).binpb --pyi_out=$(1) $(3)
WIRE_PROTOS = inference.proto penstock.proto

.DEFAULT_GOAL := help
.PHONY: help setup run test fast check proto proto-check docs docs-check fmt bench bench-quick

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## install everything into .venv (a second run takes no time)
	@$(PYTHON) bootstrap.py setup

run: ## serve SmolLM2 on this machine; ARGS="..." go to `penstock serve smollm2`
	@$(PYTHON) bootstrap.py run $(ARGS)

test: ## run every test, those with the real vLLM engine too; ARGS="..." go to pytest
	@$(PYTHON) bootstrap.py test $(ARGS)

fast: setup ## run the tests that need no real engine
	$(BIN)/python -m pytest -m "not vllm" $(ARGS)

check: setup proto-check docs-check ## lint, formatting, types, import order, generated files, unit tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q -m "not vllm" tests/unit

proto: setup ## compile proto/ into wire/ and runtime/
	$(call PROTOC,wire,wire,$(WIRE_PROTOS))
	$(call PROTOC,runtime,etcd,etcd.proto)

proto-check: setup
	@made=$$(mktemp -d) && trap 'rm -rf "$$made"' EXIT && mkdir "$$made/wire" "$$made/runtime" && \
	$(call PROTOC,"$$made/wire",wire,$(WIRE_PROTOS)) && \
	$(call PROTOC,"$$made/runtime",etcd,etcd.proto) && \
	(cd "$$made" && find . -type f) | while read -r file; do \
	cmp "$$made/$$file" "$$file" || exit 1; done

docs: setup ## write docs/configuration.md from the code
	$(BIN)/python -m cli.config_reference docs/configuration.md

docs-check: setup
	@$(BIN)/python -m cli.config_reference | cmp - docs/configuration.md || \
	{ echo "docs/configuration.md is not what the code says: run make docs"; exit 1; }

fmt: setup ## format, and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure everything, 10 minutes; ARGS="..." go to the benchmarks: ARGS=--help
	$(BIN)/python -m benchmarks $(ARGS)

bench-quick: setup ## measure the most important, 2 minutes
	$(BIN)/python -m benchmarks suite --quick $(ARGS)
