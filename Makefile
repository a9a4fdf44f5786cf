# Everything a person or CI runs. `make build` and `make test` install what they
# need from Debian; nothing else is assumed but Rust and, for the suites, Go.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := build

CARGO ?= cargo
RELEASE := target/release
# The monitor and the launcher are static and not position independent: they
# start in a fifth of the time and share their pages. The flags reach only the
# last crate, so procedural macros stay loadable.
STATIC := -Ctarget-feature=+crt-static -Crelocation-model=static
LIBDIR := /usr/lib/$(shell gcc -print-multiarch 2>/dev/null || echo x86_64-linux-gnu)
export LIBSECCOMP_LINK_TYPE := static
export LIBSECCOMP_LIB_PATH := $(LIBDIR)
export SLIPWAY_MONITOR_DIR := $(CURDIR)/$(RELEASE)

.PHONY: build demo test check bench bench-peers bench-short guard tools test-tools plugins fmt clippy doc arrows licences unit suite suite-built guest guest-short critest clean

build: tools
	$(CARGO) build --locked --release -p engine -p conformance
	$(CARGO) rustc --locked --release -p monitor --bin slipway-monitor -- $(STATIC)
	$(CARGO) rustc --locked --release -p libcontainer-launcher --bin slipway-libcontainer -- $(STATIC)
	@for static in slipway-monitor slipway-libcontainer; do
		if readelf -d $(RELEASE)/$$static 2>/dev/null | grep NEEDED; then
			echo "$$static must not need a shared library" >&2; exit 1
		fi
	done
	echo "built: $(RELEASE)/slipway $(RELEASE)/slipway-monitor $(RELEASE)/slipway-libcontainer"

tools:
	@conformance/scripts/install build

test-tools: tools
	@conformance/scripts/install test

# The CNI plugins that the built-in ones are compared with; needs Go.
plugins:
	@conformance/cni/prepare

demo: build
	@conformance/scripts/install demo
	$(RELEASE)/slipway-demo --slipway $(RELEASE)/slipway $(ARGS)

# Unit, property and launcher tests; then the own CRI suite; then the field's;
# then a glance at the times and a look at the counts.
test: build test-tools unit suite guest-short critest bench-short guard

unit: plugins
	SLIPWAY_TEST_H2_PULLS=100 $(CARGO) test --locked -p proto -p image-store -p runtime -p monitor -p libcontainer-launcher -p cni -p streaming -p engine --features engine/otel

suite: suite-built
	conformance/critest/prepare crictl
	$(CARGO) test --locked -p conformance

suite-built: build
	$(CARGO) build --locked -p engine --features failpoints
	cp $(RELEASE)/slipway-monitor $(RELEASE)/slipway-libcontainer target/debug/
	$(CARGO) test --locked -p conformance --no-run
	gcc -static -O2 -o target/debug/attacker conformance/tests/attack/attacker.c

# The demo, the own CRI suite, the attacks and critest, with both cgroup drivers, in a guest
# with systemd and cgroup v2 alone: hours where its machine is emulated. guest-short is
# what tells in minutes whether pods live and are limited there, with both drivers.
guest: suite-built test-tools
	conformance/critest/prepare
	SLIPWAY_GUEST_LIMIT=$${SLIPWAY_GUEST_LIMIT:-21600} conformance/guest/run

guest-short: suite-built
	conformance/guest/run bash -c 'SUITE=demo conformance/guest/suites cgroupfs &&
		PROFILE=release SUITE="demo cri" FILTER="cgroups pods::" conformance/guest/suites systemd'

critest:
	conformance/scripts/crictl-walk
	conformance/scripts/critest

check: fmt clippy doc arrows licences
	$(MAKE) test

fmt:
	$(CARGO) fmt --all --check

clippy: tools
	$(CARGO) clippy --locked --workspace --all-targets --features engine/failpoints,engine/otel -- -D warnings

doc: tools
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps --document-private-items

arrows:
	@conformance/scripts/arrows

licences:
	@conformance/scripts/licences

bench: build
	@conformance/scripts/install demo
	$(RELEASE)/slipway bench $(ARGS)

# Slipway beside Debian's containerd and runc, in one run.
bench-peers: build
	@conformance/scripts/install demo
	conformance/scripts/peers $(RELEASE)/slipway-bench $(ARGS)

# A short form of it, of which only that it works counts: no time is asserted.
bench-short: build
	@conformance/scripts/install demo
	conformance/scripts/peers $(RELEASE)/slipway-bench --mode latency --pods 5

# What a pod's life costs, in counts, against recorded bounds. GUARD_BASE=COMMIT
# compares with that commit as well; ARGS=--record records.
guard: build
	@conformance/scripts/install test
	conformance/scripts/guard $(ARGS)

clean:
	$(CARGO) clean
