# Everything a newcomer needs. Plain `make` prints this help.
# On a fresh Debian 12, as root: `make run`, then `make test`.

PREFIX ?= /opt/kata
BIN ?= /usr/local/bin
PYTHON ?= /usr/bin/python3
VENV := .venv
# Options of `make bench`, e.g. BENCH='--only start'.
BENCH ?=

APT_RUN := python3 python3-venv qemu-system-x86 util-linux erofs-utils containerd runc ca-certificates
# gcc makes the program that drives a device in tests/nested.
APT_TEST := protobuf-compiler iproute2 containernetworking-plugins iptables gcc libc6-dev e2fsprogs xfsprogs

.DEFAULT_GOAL := help
.PHONY: help run test test-nested check bench image install uninstall protos docs packages test-packages

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/ready image ## Install what is missing, build the guest, run a container in a virtual machine
	$(VENV)/bin/python -m tools.demo

test: $(VENV)/ready test-packages image ## Run all checks and tests
	$(MAKE) check
	$(VENV)/bin/pytest

check: $(VENV)/ready ## Format, lint, types, layers
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-nested: $(VENV)/ready test-packages image ## Test VFIO and vsock on an emulated host that has them (about 12 minutes)
	$(VENV)/bin/pytest -rA tests/nested

bench: $(VENV)/ready test-packages image ## Measure against runc and bare QEMU, side by side
	$(VENV)/bin/python -m benchmarks $(BENCH)

image: $(VENV)/ready ## Build the guest image if its inputs have changed
	$(VENV)/bin/kata image build

install: packages ## Install under PREFIX (/opt/kata), with links in BIN (/usr/local/bin)
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --upgrade .
	$(PREFIX)/bin/python -m kata.shim.launcher $(PREFIX)/bin
	install -d $(BIN)
	ln -sfn $(PREFIX)/bin/kata $(BIN)/kata
	ln -sfn $(PREFIX)/bin/containerd-shim-kata-v2 $(BIN)/containerd-shim-kata-v2
	$(PREFIX)/bin/kata image build

uninstall: ## Remove what `make install` has put there, the guest images included
	rm -f $(BIN)/kata $(BIN)/containerd-shim-kata-v2
	rm -rf $(PREFIX) /var/lib/kata /var/cache/kata /var/cache/kata-test

protos: $(VENV)/ready test-packages ## Generate the protocol modules anew
	$(VENV)/bin/python -m tools.generate_protocols

# dpkg is asked first: a machine that has everything needs no network for this.
packages:
	@dpkg-query -W -f '$${Status}\n' $(APT_RUN) 2>/dev/null | grep -c 'ok installed' | grep -qx $(words $(APT_RUN)) \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(APT_RUN); }

test-packages:
	@dpkg-query -W -f '$${Status}\n' $(APT_TEST) 2>/dev/null | grep -c 'ok installed' | grep -qx $(words $(APT_TEST)) \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(APT_TEST); }

$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
