# Everything a newcomer needs. Plain `make` prints this help.
# On a fresh Debian of one of the releases in RELEASES, as root: `make run`, then `make test`.

PREFIX ?= /opt/kata
BIN ?= /usr/local/bin
# Where man pages and shell completion are linked.
SHARE ?= /usr/local/share
# Beneath PREFIX/share and SHARE: what tools.manual writes.
MANUAL := man bash-completion zsh fish
# What is linked in BIN.
COMMANDS := kata kata-runtime containerd-shim-kata-v2 kata-agent-ctl kata-log-parser \
  kata-collect-data kata-monitor kata-trace-forwarder kata-osbuilder
PYTHON ?= /usr/bin/python3
VENV := .venv
# Options of `make bench`, e.g. BENCH='--only start'.
BENCH ?=
# Options of `make test`, e.g. TEST='-n 0 -k template': one process, chosen tests.
TEST ?=
# Options of `make fuzz`, e.g. FUZZ='--inputs 100000 oci_spec'.
FUZZ ?=
# Set to go on with a host that no test is run on.
ANYWAY ?=

RELEASES := src/kata/osbuilder/releases.txt
# "-" or the packages that only this host's release needs; nothing if it is not supported.
HOST_PACKAGES := $(shell . /etc/os-release && [ "$$ID" = debian ] && \
  awk -v id="$$VERSION_ID" '$$1 == id && $$3 ~ /host/ { gsub(",", " ", $$4); print $$4 }' $(RELEASES))
SUPPORTED := $(shell awk '/^[0-9]/ && $$3 ~ /host/ { print "Debian " $$1 }' $(RELEASES) | paste -sd, | sed 's/,/ and /')

# mmdebstrap makes a clean root, and the image of `make bench` for real work.
APT_HOSTS := mmdebstrap e2fsprogs
APT_RUN := python3 python3-venv qemu-system-x86 util-linux erofs-utils containerd runc ca-certificates \
  $(filter-out -,$(HOST_PACKAGES))
# gcc makes the program that drives a device in tests/nested.
# Chromium, in which kata-monitor's page is tested, is 125 MB to download and 410 MB installed: about a minute.
# zsh and fish complete command lines in a test.
APT_TEST := protobuf-compiler curl iproute2 containernetworking-plugins iptables gcc libc6-dev e2fsprogs xfsprogs \
  btrfs-progs chromium cryptsetup-bin groff-base patch xz-utils zsh fish

# What emulates an arm64 guest, which is built for these tests.
APT_LONG := qemu-system-arm

# Debian's judge of packages; what makes them, dpkg-deb, is there.
APT_DIST := lintian

# Draws docs/drawings; what it has drawn is checked in.
APT_DOCS := graphviz

# What building a kernel needs.
APT_KERNEL := bc binutils bison ccache flex gcc libc6-dev libelf-dev make patch perl xz-utils

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-nested test-hosts coverage fuzz soak check bench image kernel install uninstall protos \
  docs supported packages test-packages dist lock release-check

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/ready image ## Install what is missing, build the guest, run a container in a virtual machine
	$(VENV)/bin/python -m tools.demo

test: $(VENV)/docs $(VENV)/charts test-packages image ## Run all checks and tests
	$(MAKE) check
	$(VENV)/bin/pytest --durations 10 -n 4 --dist loadgroup $(TEST)

test-long: $(VENV)/ready test-packages image ## Repeat what can go wrong at any moment, KATA_FAULT_ROUNDS times (20)
	$(call install_packages,$(APT_LONG))
	$(VENV)/bin/kata image build --arch arm64
	$(VENV)/bin/pytest -m long

fuzz: $(VENV)/ready ## Fuzz what reads others' input, and go on where that was stopped: FUZZ='--inputs 10000000'
	$(VENV)/bin/python -m tests.fuzz $(FUZZ)

check: $(VENV)/ready ## Format, lint, types, layers
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

coverage: $(VENV)/ready test-packages image ## Say how much of the program the unit tests run
	$(VENV)/bin/pytest -q -n 2 --cov --cov-report=term:skip-covered tests/unit

test-nested: $(VENV)/ready test-packages image ## Test under KVM, and VFIO and vsock, on an emulated host (about 3 minutes)
	$(VENV)/bin/pytest -rA tests/nested

soak: $(VENV)/ready test-packages image ## Let pods live and be killed for KATA_SOAK_MINUTES (60), and write results/soak
	$(VENV)/bin/python -m tools.soak

test-hosts: $(VENV)/ready ## Test in a clean root of the other Debian release (about 9 minutes)
	$(call install_packages,$(APT_HOSTS))
	$(VENV)/bin/python -m tools.test_hosts

bench: $(VENV)/ready test-packages image ## Measure against runc and bare QEMU, side by side
	$(call install_packages,$(APT_HOSTS))
	$(VENV)/bin/python -m benchmarks $(BENCH)

image: $(VENV)/ready ## Build the guest image if its inputs have changed
	$(VENV)/bin/kata image build

kernel: $(VENV)/ready ## Build the tailored kernel from Debian's sources, and the guest image with it (half an hour)
	$(call install_packages,$(APT_KERNEL))
	$(VENV)/bin/kata image build --kernel tailored

# PREFIX may have Kata's own archive, whose files are not ours to replace.
install: packages ## Install under PREFIX (/opt/kata), with links in BIN (/usr/local/bin)
	@[ ! -e $(PREFIX)/bin/containerd-shim-kata-v2 ] || grep -q kata.shim.main $(PREFIX)/bin/containerd-shim-kata-v2 || \
	  { echo "make: $(PREFIX) has another Kata; remove it first, or make install PREFIX=/opt/pykata" >&2; exit 1; }
	@mkdir -p $(PREFIX) && touch $(PREFIX) || { echo "make: $(PREFIX) cannot be written; name another PREFIX" >&2; exit 1; }
	$(PYTHON) -m venv $(PREFIX)
	$(PREFIX)/bin/pip install --quiet --disable-pip-version-check --upgrade .
	$(PREFIX)/bin/python -m kata.shim.launcher $(PREFIX)/bin
	install -d $(BIN)
	ln -sfn $(addprefix $(PREFIX)/bin/,$(COMMANDS)) $(BIN)/
	$(PREFIX)/bin/python -m tools.manual $(PREFIX)/share
	cd $(PREFIX)/share && find $(MANUAL) -type d | while read -r directory; do [ -d $(SHARE)/$$directory ] || { mkdir -p $(SHARE)/$$directory && echo $$directory; }; done >> $(PREFIX)/share/made
	cd $(PREFIX)/share && find $(MANUAL) -type f -exec ln -sfn $(PREFIX)/share/{} $(SHARE)/{} \;
	$(PREFIX)/bin/kata image build

# Engines are told first, by the program that is about to go; what sandboxes use stays until they have ended.
uninstall: ## Remove what `make install` has put there, the guest images included
	-[ ! -x $(PREFIX)/bin/kata ] || $(PREFIX)/bin/kata unset all --yes
	rm -f $(addprefix $(BIN)/,$(COMMANDS))
	[ ! -d $(PREFIX)/share ] || { cd $(PREFIX)/share && find $(MANUAL) -type f -exec rm -f $(SHARE)/{} \; ; }
	[ ! -f $(PREFIX)/share/made ] || { cd $(SHARE) && tac $(PREFIX)/share/made | xargs -r rmdir --ignore-fail-on-non-empty; }
	rm -rf $(PREFIX) /var/cache/kata /var/cache/kata-test
	rm -f /run/kata/start-slot-* /run/kata/accel.json /run/kata/jail-uids /run/kata/libraries-*.json
	[ ! -d /run/kata ] || rmdir --ignore-fail-on-non-empty /run/kata
	@[ ! -d /run/kata ] || \
	  echo "make: sandboxes are running, and go on; remove /run/kata and /var/lib/kata when they have ended" >&2
	[ -d /run/kata ] || rm -rf /var/lib/kata

dist: $(VENV)/ready image ## Make all files of a release in dist/: wheel, Debian packages, archive for /opt/kata
	$(call install_packages,$(APT_DIST))
	$(VENV)/bin/python -m tools.release

lock: $(VENV)/ready ## Choose the versions of other projects that packages and archive carry
	$(VENV)/bin/python -m tools.release.lock

release-check: $(VENV)/ready ## Say what of dist/ cannot be released yet
	$(call install_packages,$(APT_DIST))
	$(VENV)/bin/python -m tools.release.check

docs: $(VENV)/docs ## Write the generated parts of the documentation anew, and build the site (build/site)
	$(call install_packages,$(APT_DOCS))
	$(VENV)/bin/python -m tools.manual
	$(VENV)/bin/python -m tools.reference
	$(VENV)/bin/python -m tools.drawings
	$(VENV)/bin/python -m tools.site

protos: $(VENV)/ready test-packages ## Generate the protocol modules anew
	$(VENV)/bin/python -m tools.generate_protocols

supported:
	@[ -n '$(HOST_PACKAGES)$(ANYWAY)' ] || { . /etc/os-release; \
	  echo "make: $$PRETTY_NAME is not supported, $(SUPPORTED) are; make ANYWAY=1 goes on" >&2; exit 1; }

# dpkg is asked first: a host that has everything needs no network for this.
define install_packages
	@dpkg-query -W -f '$${Status}\n' $(1) 2>/dev/null | grep -c 'ok installed' | grep -qx $(words $(1)) \
	  || { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends $(1); }
endef

packages: supported
	$(call install_packages,$(APT_RUN))

test-packages: supported
	$(call install_packages,$(APT_TEST))

$(VENV)/ready: pyproject.toml | packages
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

$(VENV)/docs: pyproject.toml $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	touch $@

$(VENV)/charts: pyproject.toml $(VENV)/ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[charts]'
	touch $@
