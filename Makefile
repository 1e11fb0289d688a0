# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

SHELL := /bin/bash

# The fabric that `make dev` brings up.
TOPOLOGY ?= e2e/lab/topology/two-zones.hcl

# The applications that it deploys: directories of graphs and jobs, separated by commas.
APPS ?= jobs/getaway,jobs/voting

# With VM=1, one service of voting runs as a virtual machine, too.
ifneq ($(VM),)
override APPS := $(APPS),jobs/voting/vm
endif

.DEFAULT_GOAL := help

# Prerequisites are built in the order in which they are listed, also with -j.
.NOTPARALLEL:

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):[^#]*## ?/  make \1\t/' | expand -t 26

.PHONY: setup
setup: ## Install Debian packages; find or build Consul, Vault and Nomad
	@tools/setup.sh

.PHONY: build
build: ## Build sif, sif-cni, sif-demo, and what tests and labs need, into bin/
	@mkdir -p bin
	flags="$$(packaging/ldflags.sh)" && go build -ldflags "$$flags" -o bin/sif . && \
	CGO_ENABLED=0 go build -ldflags "$$flags" -o bin/sif-cni ./cni-plugin
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/sif-demo ./jobs/demo
	go build -o bin/sif-lab ./e2e/cmd/sif-lab
	go build -o bin/sif-machine ./e2e/cmd/sif-machine
	go build -o bin/sif-internet ./e2e/cmd/sif-internet
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/sif-traffic ./e2e/cmd/sif-traffic
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w' -o bin/sif-guest ./e2e/cmd/sif-guest
	go build -o bin/sif-chaos ./e2e/cmd/sif-chaos

.PHONY: packages
packages: ## Build deb, rpm and tar.gz for amd64 and arm64 into dist/ (or ARCHITECTURES=amd64, FORMATS=deb)
	@packaging/build.sh dist

.PHONY: check-packages
check-packages: ## Build the packages twice, compare them, and check what they do (root, after make setup)
	@packaging/check.sh

.PHONY: dev
dev: setup build ## Bring up a fabric with running applications on this machine; VM=1: one service as a VM, too (root)
	@bin/sif-lab up -topology=$(TOPOLOGY) -apps=$(APPS)

.PHONY: dev-mixed
dev-mixed: setup build ## The same with an application of all kinds of workload: container, process, VM, unit, periodic job
	@bin/sif-lab up -topology=$(TOPOLOGY) -apps=jobs/mixed

.PHONY: dev-down
dev-down: ## Remove everything that `make dev` brought up
	@[[ ! -x bin/sif-lab ]] && go build -o bin/sif-lab ./e2e/cmd/sif-lab; bin/sif-lab down

.PHONY: test
test: setup test-units test-laws test-e2e ## Run all tests, end-to-end tests included (root)

# Two thirds of the time of unit tests is waiting: for servers, and for packets that do not come. So more packages
# are tested at a time than two processors would otherwise do. A program with the race detector would sleep for a
# second before it ends.
.PHONY: test-units
test-units: build ## Run the unit tests with the race detector (root, after make setup)
	GORACE=atexit_sleep_ms=100 go test -race -p "$$(($$(nproc) * 3 / 2))" -timeout 30m ./...

.PHONY: test-e2e
test-e2e: build ## Run the end-to-end tests, in two labs side by side (root, after make setup)
	go test -tags e2e -count 1 -p 1 -timeout 15m $$(go list -tags e2e ./e2e/... | grep -v '/e2e$$')
	SIF_E2E_PARTS=2 go test -tags e2e -count 1 -timeout 45m ./e2e

.PHONY: test-e2e-long
test-e2e-long: build ## Run the end-to-end tests that take long and guard what seldom breaks (root, after make setup)
	SIF_E2E_LONG=1 go test -tags e2e -count 1 -timeout 30m -v -run '^Test(Gaps|PathThatLosesLargePackets)$$' ./e2e

.PHONY: test-kinds
test-kinds: build ## Test every kind of job, driver and event on real servers (root, after make setup)
	SIF_E2E_KINDS=all go test -tags e2e -count 1 -timeout 30m -parallel 8 -v -run '^TestKinds' ./e2e
	SIF_E2E_DRAIN=1 go test -tags e2e -count 1 -timeout 15m -v -run '^TestVirtualMachine$$' ./e2e

# How long TestRotation runs. Fifteen minutes are the acceptance of a release.
ROTATION ?= 3m

.PHONY: test-rotation
test-rotation: build ## Rotate certificates of one minute under traffic, for ROTATION=3m (root, after make setup)
	SIF_E2E_ROTATION=$(ROTATION) go test -tags e2e -count 1 -timeout 1h -v -run '^TestRotation$$' ./e2e

.PHONY: test-gone
test-gone: build ## Take away servers and daemons, one by one and in pairs, under traffic (root, after make setup)
	SIF_E2E_GONE=all go test -tags e2e -count 1 -timeout 2h -v -run '^TestGone' ./e2e

# It is not part of all tests: it has failed in some runs on a busy machine. See docs/operations.md.
.PHONY: test-link-keys
test-link-keys: build ## Replace the WireGuard keys of links under traffic, for ROTATION=3m (root, after make setup)
	SIF_LINK_KEYS=1 go test -count 1 -timeout 30m -v -run '^TestKeysAreReplaced' ./internal/node/daemon
	SIF_LINK_KEYS=1 SIF_E2E_ROTATION=$(ROTATION) go test -tags e2e -count 1 -timeout 1h -v -run '^TestRotation$$' ./e2e

.PHONY: test-exits
test-exits: build ## Test that the exits of a zone take over from one another (root, after make setup)
	SIF_E2E_TOPOLOGY=lab/topology/pairs.hcl go test -tags e2e -count 1 -timeout 15m -v -run TestTwoExits ./e2e

.PHONY: test-failover
test-failover: build ## Test that the processors of two zones take over from one another under traffic (root, after make setup)
	SIF_E2E_TOPOLOGY=lab/topology/pairs.hcl go test -tags e2e -count 1 -timeout 15m -v -run TestFailover ./e2e

.PHONY: test-ways
test-ways: build ## Test that packets take the cheapest way that fits, also through a third zone (root, after make setup)
	SIF_E2E_TOPOLOGY=lab/topology/three-zones.hcl go test -tags e2e -count 1 -timeout 15m -v -run TestWays ./e2e

.PHONY: test-controllers
test-controllers: build ## Test that three controllers take over from one another, ten times (root, after make setup)
	SIF_E2E_TOPOLOGY=lab/topology/three-controllers.hcl SIF_E2E_ROUNDS=10 go test -tags e2e -count 1 -timeout 60m -v -run TestControllers ./e2e

# How long `make chaos` lets faults happen, and the seed of their schedule. Without SEED, it is the time.
CHAOS ?= 1h
SEED ?= $(shell date +%s)

.PHONY: chaos
chaos: build ## Let faults happen to a fabric under load, for CHAOS=1h with SEED=n (root, after make setup)
	bin/sif-chaos -for $(CHAOS) -seeds $(SEED) -logs bin/chaos-logs

.PHONY: test-chaos
test-chaos: build ## The same for 90 s with each of the seeds that found something (root, after make setup)
	bin/sif-chaos -for 90s -seeds $$(sed -n 's/^\([0-9]\+\).*/\1/p' e2e/chaos/seeds | paste -sd, -) -logs bin/chaos-logs

.PHONY: chaos-planted
chaos-planted: build ## Plant faults in the product, and see that `make chaos` finds each (root, after make setup)
	e2e/chaos/planted/run.sh

.PHONY: test-laws
test-laws: ## Run the property tests of the policy rule (100,000 cases) and of the desired state (10,000)
	go test ./fabric -count 1 -run TestAllowAgreesWithTheRuleAsWritten -rapid.checks=100000 & rule=$$!; \
	go test ./fabric/desired -count 1 -run AgreesWithTheDesign -rapid.checks=10000; code=$$?; \
	wait $$rule && exit $$code

.PHONY: machine-images
machine-images: ## Build the base images of virtual machines: Debian 12 and 13; cached (root, after make setup)
	e2e/machines/image/build.sh debian12
	e2e/machines/image/build.sh debian13

.PHONY: test-machine-smoke
test-machine-smoke: ## Test the first hour on one virtual machine, from the package (root, after make setup)
	@$(MAKE) --no-print-directory packages ARCHITECTURES=amd64 FORMATS=deb
	@$(MAKE) --no-print-directory build
	go test -tags machines -count 1 -timeout 30m -run '^TestOneMachine$$' ./e2e/machines/...

.PHONY: test-machine-kernel
test-machine-kernel: build ## Test kernel WireGuard and kernel Open vSwitch on a virtual machine (root, after make setup)
	e2e/machines/kernel-tests.sh debian12

.PHONY: test-machines
test-machines: ## Run all tests on virtual machines: an hour on two cores (root, after make setup)
	@$(MAKE) --no-print-directory packages ARCHITECTURES=amd64 FORMATS=deb
	@$(MAKE) --no-print-directory build
	go test -tags machines -count 1 -timeout 3h ./e2e/machines/...

.PHONY: bench
bench: setup build ## Measure the data paths, a fabric and its alternatives, and daemons (root, 12 minutes)
	go test -run '^$$' -bench . ./bpf
	go test -run '^$$' -bench RealGuest -benchtime 10x ./agent
	go test -run '^$$' -bench GuestCost -benchtime 3x ./agent
	go test -run '^$$' -bench . ./engine/ovs ./engine -endpoints=10000
	go test -run '^$$' -bench . ./engine/ovs ./engine -endpoints=100000
	go test -run '^$$' -bench TwoZonesInUserSpace -benchtime 20x ./engine/port
	go build -C e2e/bench/nebula -o $(CURDIR)/bin/ github.com/slackhq/nebula/cmd/nebula github.com/slackhq/nebula/cmd/nebula-cert
	go build -o bin/sif-bench ./e2e/bench
	bin/sif-bench -nebula bin
	bin/sif-bench -only sizes

.PHONY: bench-scale
bench-scale: ## Measure what nodes of a fabric of 100 zones and 1,000 nodes compute, without a network
	go test -run '^$$' -bench Scale ./fabric/desired

.PHONY: bench-gap
bench-gap: build ## Measure what is lost between two zones while a process on the way restarts (root, after make setup)
	SIF_E2E_LONG=1 go test -tags e2e -count 1 -timeout 15m -v -run '^TestGaps$$' ./e2e

# The linters have a go.mod of their own, which keeps their dependencies out of the product's.
LINTER := go tool -modfile=tools/lint/go.mod

# Comments and documents use British spelling, except for words of Go, netlink, Nomad, Vault, X.509, ICMPv6 and tools.
SPELLING := -locale UK -i analyze,artifact,artifacts,behavior,customize,dialing,initialized,marshaling,neighbor,organizational,serialize,serialized,signaled,signaling,unauthorized

.PHONY: lint
lint: ## Check format, static analysis, structure, spelling, known vulnerabilities
	@files=$$(git ls-files '*.go') && unformatted=$$(gofmt -l $$files </dev/null) || exit; [[ -z $$unformatted ]] || { echo "run gofmt -w on: $$unformatted"; exit 1; }
	sources=$$(git ls-files '*.c' '*.h') && clang-format --dry-run -Werror $$sources
	go vet ./...
	go vet -tags e2e ./e2e/...
	go vet -tags machines ./e2e/machines/...
	$(LINTER) staticcheck -tags e2e ./...
	$(LINTER) staticcheck -tags machines ./e2e/machines/...
	$(LINTER) errcheck -ignoretests -tags e2e -exclude tools/lint/errcheck.exclude ./...
	tools/lint/deadcode.sh
	go test .
	scripts=$$(git ls-files '*.sh') && shellcheck $$scripts .ci/run
	files=$$(git ls-files '*.go' '*.[ch]' '*.md' '*.sh' '*.hcl' Makefile .ci | grep -vE '/testdata/|_bpfel') && $(LINTER) misspell -error $(SPELLING) $$files
	@$(MAKE) --no-print-directory vulncheck

# The database of vulnerabilities; GOVULNDB is govulncheck's own variable for another one.
VULNDB := $(or $(GOVULNDB),https://vuln.go.dev)

.PHONY: vulncheck
vulncheck: ## Check for known vulnerabilities, if their database answers
	@if curl -fsSo /dev/null --max-time 10 $(VULNDB)/index/db.json.gz; \
	then $(LINTER) govulncheck -db $(VULNDB) -tags e2e ./...; \
	else echo "vulncheck: LEFT OUT: the database $(VULNDB) does not answer"; fi

.PHONY: generate
generate: ## Generate the eBPF objects and their Go code (clang 14), and the references of graphs and metrics
	@clang --version | grep -q 'clang version 14\.' || { echo "the eBPF programs must be compiled with clang 14 of Debian 12; this is $$(clang --version 2>&1 | head -n 1)"; exit 1; }
	go generate ./...

.PHONY: check-generated
check-generated: generate ## Fail if the committed generated files are stale
	@git rev-parse --git-dir >/dev/null
	@git diff --exit-code --stat -- '*_bpfel.go' '*_bpfel.o' docs/graph-reference.md docs/graph.schema.json docs/metrics.md || { echo "generated files are stale: run \`make generate\` and commit the result"; exit 1; }

.PHONY: clean
clean: ## Remove bin/ and dist/; the cache of Consul, Vault and Nomad stays
	rm -rf bin dist
