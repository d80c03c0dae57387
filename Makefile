# Wayleave. `make` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
export PATH := $(CURDIR)/.tools/bin:$(PATH)
export CGO_ENABLED ?= $(if $(shell command -v cc || command -v gcc || command -v clang),1,0)
export CLAUDE_CODE_VERSION
# Not a second of waiting at the end of every program with the race detector in it.
export GORACE ?= atexit_sleep_ms=0
# The toolchain of go.mod, whatever is installed: it has the security fixes that govulncheck asks for.
export GOTOOLCHAIN := $(shell awk '/^toolchain/ { print $$2 }' go.mod)

STATE ?= $(CURDIR)/.demo
GOVULNDB ?= file://$(CURDIR)/.tools/vulndb

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## fetch the pinned Envoy and OpenBao, and the tests' clients and authorization servers, into .tools/
	@nice deploy/tools/fetch.sh binaries clients agents gh promtool browser servers docs

.PHONY: build
build: ## build bin/wayleave
	@go build -o bin/ ./cmd/...

.PHONY: demo
demo: build ## a guided tour: a placeholder leaves a worker, a real token arrives, and thieves get neither (ONCE=1 waits for no key)
	@deploy/tools/fetch.sh binaries sdks
	@bin/demo --state "$(STATE)" $(if $(ONCE),--once)

.PHONY: tour
tour: build ## record make demo into docs/images/tour.cast and tour.svg
	@deploy/tools/fetch.sh binaries sdks
	@state=$$(mktemp -d) && trap 'rm -rf "$$state"' EXIT && go run ./deploy/tools/cast record --shown "$$state=~/wayleave/.demo" --shown "$(CURDIR)=~/wayleave" \
	  --last "stays up until" docs/images/tour.cast bin/demo --state "$$state"
	@go run ./deploy/tools/cast draw docs/images/tour.cast docs/images/tour.svg

.PHONY: test
test: ## everything: lint, vulnerabilities, unit and end-to-end tests on real Envoy and OpenBao
	@deploy/tools/fetch.sh binaries promtool docs # which several of the next want
	@$(MAKE) --no-print-directory -j3 tools lint unit shapes # building tools and waiting for servers go well together
	@$(MAKE) --no-print-directory e2e

.PHONY: lint
lint: ## gofmt, golangci-lint (vet is a part of it), govulncheck, spelling
	@nice deploy/tools/fetch.sh lint docs
	@test -z "$$(gofmt -l $$(git ls-files '*.go') | tee -a /dev/stderr)" || { echo "gofmt: run 'make fmt'" >&2; exit 1; }
	nice golangci-lint run # behind the tests that run beside it, which have deadlines
	nice govulncheck -db "$(GOVULNDB)" ./...
	git ls-files -z | xargs -0 .tools/docs/bin/codespell # .codespellrc has the words that it does not know

# At the end the names of what failed. That is run once more by itself, so that one look says whether it needs a busy machine to fail; a mend it needs
# all the same. A data race always fails.
gotest := gotestsum --hide-summary=skipped,output --rerun-fails=1 --rerun-fails-max-failures=5 --rerun-fails-abort-on-data-race

.PHONY: unit
unit: ## unit tests and fuzz seeds, with the race detector
	@deploy/tools/fetch.sh gotestsum
	$(gotest) --format pkgname-and-test-fails --packages "$$(go list ./... | grep -v '/e2e$$' | xargs)" -- \
	  -race -vet=off -ldflags=-w -timeout 30m -p $$((2 * $$(getconf _NPROCESSORS_ONLN))) # most of them wait; lint vets, and nobody debugs these

.PHONY: shapes
shapes: ## what deploy/ has for Kubernetes, systemd, compose and the rest, by the tools that read it there
	@nice deploy/tools/fetch.sh binaries shapes
	nice go -C deploy/tools/shapes test -count=1 -vet=off -ldflags=-w ./... # vet would read all of Kubernetes. Go caches by the files of the module alone

.PHONY: manual
manual: ## manual pages and completions, as packages have them, into dist-manual/
	@go test -count=1 -run '^TestManual$$' ./cmd/wayleave -manual "$(CURDIR)/dist-manual"

.PHONY: site
site: ## the documentation's site, with its search, into site/ (look at it with: python3 -m http.server -d site)
	@deploy/tools/fetch.sh docs
	NO_MKDOCS_2_WARNING=1 .tools/docs/bin/mkdocs build --quiet --strict

.PHONY: images
images: ## the images wayleave and wayleave-envoy, with docker
	docker build -f deploy/docker/Dockerfile --target gate -t wayleave .
	docker build -f deploy/docker/Dockerfile --target envoy -t wayleave-envoy .

.PHONY: e2e
e2e: tools ## the stories of e2e/, over real Envoy, OpenBao and clients
	@deploy/tools/fetch.sh gotestsum
	$(gotest) --format testname --packages ./e2e -- -race -vet=off -ldflags=-w -timeout 60m

.PHONY: remote-control
remote-control: tools ## Claude Code's remote control, of the pinned version or CLAUDE_CODE_VERSION=latest (UPDATE=-update records it)
	go test -count=1 -timeout 30m -v -run '^TestRemoteControl(GoesOn)?$$' ./e2e $(UPDATE)
	@env -u CLAUDE_CODE_VERSION deploy/tools/fetch.sh agents # which has the pinned one again

.PHONY: reliability
reliability: tools ## the proof of docs/reliability.md in full size, which takes minutes
	WAYLEAVE_RELIABILITY=full go test -count=1 -timeout 30m -v ./e2e/reliability

.PHONY: soak
soak: tools ## the proof of docs/availability.md: kills every 20 seconds for MINUTES=30, an upgrade, a network that is cut (UPDATE=-update writes what was seen)
	WAYLEAVE_SOAK=$(or $(MINUTES),30) go test -count=1 -timeout 0 -v -run '^Test(Soak|Upgrade|Split)$$' ./e2e $(UPDATE)

.PHONY: screenshots
screenshots: tools ## what every page of the console looks like, light, dark, as on a phone and printed, into screenshots/
	@mkdir -p screenshots
	WAYLEAVE_SCREENSHOTS=$(CURDIR)/screenshots go test -count=1 -run '^TestConsole$$' ./e2e

.PHONY: isolation
isolation: tools ## 100,000 requests of 64 workers, by proxy and redirected, through a real Envoy: none with another worker's credential
	WAYLEAVE_ISOLATION_REQUESTS=100000 go test -count=1 -timeout 30m -v -run '^TestWorkersAreIsolated$$' ./xds

# What the benchmarks take: NAMES, NODES, GRANTS, ROUTES, REQUESTS, LIVE, ROUNDS, and ARGS such as --json. See docs/performance.md.
benchmarks := start sessions nodes grants swap observe compare routes names

.PHONY: bench
bench: ## all benchmarks, an hour or two of them, into bench/results and docs/performance.md
	@for b in $(benchmarks); do $(MAKE) --no-print-directory bench-$$b ARGS="--out bench/results/$$b.json" || exit; done
	@go run ./bench publish

.PHONY: bench-check
bench-check: ## measure again what is in bench/results, and say which ratios have moved (ROUNDS=5 ONLY="swap compare")
	@deploy/tools/fetch.sh binaries mitmproxy
	@go run ./bench check $(if $(ROUNDS),--rounds $(ROUNDS)) $(ONLY)

.PHONY: bench-compare
bench-compare: ## what other ways to have a credential set cost (REQUESTS=2000 ROUNDS=11)
	@deploy/tools/fetch.sh binaries mitmproxy
	@go run ./bench compare $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-routes
bench-routes: ## what a request costs by how many routes there are (ROUTES=1000 REQUESTS=2000 ROUNDS=11)
	@deploy/tools/fetch.sh binaries
	@go run ./bench routes $(if $(ROUTES),--routes $(ROUTES)) $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-grants
bench-grants: ## what it costs to keep many grants, and to refresh all at once (GRANTS=10000 ROUNDS=3)
	@go run ./bench grants $(if $(GRANTS),--grants $(GRANTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-names
bench-names: ## memory and handshakes for many names on a real Envoy (NAMES=10000 ROUNDS=3)
	@deploy/tools/fetch.sh binaries
	@go run ./bench names $(if $(NAMES),--names $(NAMES)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-nodes
bench-nodes: ## how soon a change of the configuration is in many Envoys, simulated (NODES=1000 ROUTES=1000 ROUNDS=5)
	@go run ./bench nodes $(if $(NODES),--nodes $(NODES)) $(if $(ROUTES),--routes $(ROUTES)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-observe
bench-observe: ## what metrics, the audit and traces cost a request (REQUESTS=2000 ROUNDS=21)
	@deploy/tools/fetch.sh binaries
	@go run ./bench observe $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-sessions
bench-sessions: ## what it costs to know whose a request is, with many live sessions (LIVE=10000 REQUESTS=2000 ROUNDS=11)
	@deploy/tools/fetch.sh binaries
	@go run ./bench sessions $(if $(LIVE),--live $(LIVE)) $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-start
bench-start: ## how long it takes from the start of the programs until a worker has an answer (ROUNDS=11)
	@deploy/tools/fetch.sh binaries
	@go run ./bench start $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: bench-swap
bench-swap: ## what each part of the way of a request costs (REQUESTS=2000 ROUNDS=21)
	@deploy/tools/fetch.sh binaries
	@go run ./bench swap $(if $(REQUESTS),--requests $(REQUESTS)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(ARGS)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (default 20s)
	@for p in $$(go list ./...); do for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	  echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-20s} $$p; done; done

.PHONY: fmt
fmt: ## format and tidy
	gofmt -w $$(git ls-files '*.go')
	go mod tidy

.PHONY: clean
clean: ## remove what was built and fetched, and the demo's state
	rm -rf bin dist dist-manual site .tools .demo
