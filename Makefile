# Commands for users and developers. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# tools/install.py installs the locked packages, with uv from a separate environment.
TOOLS   := .venv-uv/bin/python
INSTALL  = $(TOOLS) tools/install.py $(VENV) --python $(PYTHON) --all-packages
LOCKED  := $(TOOLS) tools/install.py $(wildcard uv.lock */*/uv.lock */pyproject.toml */*/pyproject.toml)
RUNTIME := $(VENV)/.runtime
DEV     := $(VENV)/.dev

# The trainer's environment: Python 3.12, torch, Isaac Lab.
TRAIN_VENV  ?= .venv-train
TRAIN_BIN   := $(TRAIN_VENV)/bin
TRAIN_SETUP := $(TRAIN_VENV)/.train
TRAIN_TEST   = $(TRAIN_BIN)/python -m pytest -c services/trainer/pyproject.toml services/trainer/tests
# make train: overrides of the defaults, for example ARGS="size=small run.name=first".
ARGS        ?=

# make sim: DURATION in seconds, 0 = until Ctrl-C. COURSE, POLICY and ROBOT default to those of `krabby up`.
DURATION   ?= 60
COURSE     ?=
DIFFICULTY ?= 0.5
SEED       ?= 0
POLICY     ?=
ROBOT      ?=
RECORD     ?=
SPEED      ?= 1
# mujoco, or isaaclab: physics of training, in the environment of make train-setup.
BACKEND    ?= mujoco

# make fuzz: inputs in all, and minutes in all, 0 = no limit.
INPUTS     ?= 10000000
MINUTES    ?= 0
UP_ARGS    ?=

JETSON     := docker compose -f compose.jetson.yaml

.PHONY: help setup setup-film setup-tracing sim up down images images-robot robot emulated robot-down doctor test test-fast test-slow test-compose test-tensorrt test-cuda faults faults-containers soak fuzz test-browser test-py312 gate-coverage check check-fast format bench assets dashboards cockpit-js docs wheels lock check-arm64 sbom audit clean \
  train-setup train train-demo test-train test-train-slow check-train

help: ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 17

SUPPORTED = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else \
  "this project runs on Python 3.11 and 3.12, and $(PYTHON) is %d.%d: name another one, for example: make setup PYTHON=python3.12" \
  "; Ubuntu 22.04, so JetPack 6, has one: sudo apt-get install python3.11-venv, then make setup PYTHON=python3.11" % v)'

$(TOOLS):
	@$(SUPPORTED)
	@echo "creating .venv-uv, for the installer" >&2
	@$(PYTHON) -c 'import signal, venv; signal.signal(signal.SIGINT, signal.SIG_DFL); venv.main([".venv-uv"])' || { rm -rf .venv-uv; exit 1; }

# Keeps the development tools where they are installed: installing the lock removes packages it does not name.
$(RUNTIME): $(LOCKED)
	@$(SUPPORTED)
	@$(INSTALL) $(if $(wildcard $(DEV)),,--no-dev)
	@touch $@ $(wildcard $(DEV))

$(DEV): $(LOCKED)
	@$(SUPPORTED)
	@$(INSTALL)
	@touch $(RUNTIME) $@

setup: $(RUNTIME) ## virtual environment for `make sim`, and the command ./krabby
	@echo "ready: make sim, ./krabby --help; or  . $(BIN)/activate  and krabby without a path" >&2

setup-film: $(RUNTIME) ## PyAV for krabby film run.mp4, 34 MB; its wheels bundle FFmpeg with x264, which is under the GPL
	@$(INSTALL) $(if $(wildcard $(DEV)),,--no-dev) --extra film

setup-tracing: $(RUNTIME) ## OpenTelemetry, to send traces of single ticks: OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318 make sim
	@$(INSTALL) $(if $(wildcard $(DEV)),,--no-dev) --extra tracing

sim: $(RUNTIME) ## run the simulation stack: DURATION=s COURSE=name DIFFICULTY=d SEED=n POLICY=name ROBOT=name RECORD=file SPEED=0|1 BACKEND=mujoco|isaaclab
	@$(BIN)/krabby up --duration "$(DURATION)" $(if $(COURSE),--course "$(COURSE)") --difficulty "$(DIFFICULTY)" --seed "$(SEED)" \
	  $(if $(POLICY),--policy "$(POLICY)") $(if $(ROBOT),--robot "$(ROBOT)") --speed "$(SPEED)" --backend "$(BACKEND)" $(if $(RECORD),--record "$(RECORD)") $(UP_ARGS)

up: ## run the stack in containers with Grafana on http://localhost:3000
	@tools/preflight
	@docker compose build
	@tools/preflight  # again: an image allows more checks
	@tools/up
	@echo "Grafana http://localhost:$${KRABBY_GRAFANA_PORT:-3000}  Prometheus http://localhost:$${KRABBY_PROMETHEUS_PORT:-9090}  stop: make down" >&2

down: ## stop the containers, keep the measurements
	@docker compose down

images: ## build all images except the trainer's (9 GB; docker compose --profile train build trainer)
	@docker compose --profile teleop --profile record build
	@$(JETSON) --profile emulated build

images-robot: ## on the robot: build its images on NVIDIA's base with CUDA and TensorRT
	@$(JETSON) --profile robot --profile teleop --profile record --profile drives build

robot: ## on the robot: build and start everything; then arm it with krabby arm
	@tools/preflight robot
	@$(JETSON) --profile robot build
	@tools/up -f compose.jetson.yaml --profile robot

emulated: ## the robot's containers with an emulated robot, on any machine; stop: make robot-down
	@tools/preflight emulated
	@$(JETSON) --profile emulated build
	@tools/up -f compose.jetson.yaml --profile emulated

robot-down: ## sit the robot (or emulated robot) down and stop its containers
	@$(JETSON) --profile robot --profile emulated down

doctor: $(RUNTIME) ## check this machine for running the robot, with remedies: ARGS="--robot --json"
	@$(BIN)/krabby doctor $(ARGS)

$(TRAIN_SETUP): $(LOCKED)
	@python312=$$(tools/find-python312) && $(TOOLS) tools/install.py $(TRAIN_VENV) --python "$$python312" --project services/trainer
	@touch $@

train-setup: $(TRAIN_SETUP) ## install the trainer's environment: Python 3.12, about 8 GB, some minutes

train: $(TRAIN_SETUP) ## train a policy (needs a GPU to be useful): ARGS="run.name=first env.num_envs=4096"
	@$(TRAIN_BIN)/python -m krabby_trainer train $(ARGS)

train-demo: $(TRAIN_SETUP) ## a teacher from scratch to MXD 0.95 on the published suite; prints the minutes (one large GPU)
	@$(TRAIN_BIN)/python -m krabby_trainer demo $(ARGS)

test: $(DEV) ## the default tests, under ten minutes on two cores
	@PYTHONPATH=tools $(BIN)/python -m pytest -p quick_tests $(ARGS)

test-fast: $(DEV) ## default tests that were quick in the last run, under a minute: ARGS="-x libs/krabby"
	@PYTHONPATH=tools $(BIN)/python -m pytest -q -p quick_tests --quick $(ARGS)

test-slow: $(DEV) ## the slow suites: real processes, stalls, a million fuzzed frames
	@tools/last-words $(BIN)/python -m pytest -v --capture=sys -m 'slow and not compose'

fuzz: $(DEV) ## fuzz every parser, guided by coverage (x86-64): INPUTS=n MINUTES=m ARGS="messages manifests"
	@$(INSTALL) --group fuzz
	@PYTHONPATH=tools $(BIN)/python -m krabby_fuzz $(if $(filter x86_64,$(shell uname -m)),--guided) --inputs $(INPUTS) --minutes $(MINUTES) $(ARGS)

test-compose: $(DEV) ## build the images, run the stack, kill its services; needs a Docker engine
	@$(BIN)/python -m pytest -m compose tests/compose

test-browser: $(DEV) ## drive a simulated robot through the cockpit in Chromium; installs that where it can (apt, as root)
	@tools/browser >/dev/null
	@$(INSTALL) --group browser
	@$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

test-tensorrt: $(DEV) ## build TensorRT engines; installs TensorRT for RTX (340 MB), needs no GPU
	@$(INSTALL) --group tensorrt
	@$(BIN)/python -m pytest -m tensorrt libs/krabby

test-cuda: $(DEV) ## this machine's GPU by cuda-bindings and pycuda, which is compiled: needs a driver, and nvcc in the PATH (not a link to it)
	@$(INSTALL) --extra pycuda
	@$(BIN)/python -m pytest -rs libs/krabby/tests/policy/tensorrt/test_cuda.py

test-train: $(TRAIN_SETUP) ## the trainer's fast tests, without a simulator
	@$(TRAIN_TEST)

test-train-slow: $(TRAIN_SETUP) $(RUNTIME) ## the trainer in Isaac Lab on the CPU: train, kill, resume, evaluate
	@$(TRAIN_TEST) -m 'slow or isaac'

# Root measures in a separate network namespace, and only root has a link between two.
NETNS := $(if $(filter 0,$(shell id -u)),unshare -n -m sh -c 'ip link set lo up; ip link set lo multicast on; ip route add 239.0.0.0/8 dev lo; exec "$$@"' sh)
MINUTES ?= 30

faults: $(DEV) ## break everything on the running stack and measure, 20 minutes; writes docs/faults.md and .json: ARGS="--robot emulated --only gameloop"
	@PYTHONPATH=tools $(NETNS) $(BIN)/python -m krabby_faults --write $(ARGS)
	@$(BIN)/python -m pytest -q -m slow tests/test_faults_of_drives.py --write-faults

faults-containers: $(DEV) ## the same in containers, where services are killed, frozen, restarted or cut off; needs a Docker engine
	@for stack in simulation emulated_robot without_priority; do $(BIN)/python -m pytest -q -m compose tests/compose/fault_table.py -k $$stack --write-faults || exit; done

soak: $(DEV) ## random faults for a long time, memory and stale commands: MINUTES=30
	@PYTHONPATH=tools $(NETNS) $(BIN)/python -m krabby_faults --write --soak $(MINUTES) $(ARGS)

gate-coverage: $(DEV) ## check that the safety gate's tests reach every branch of it
	@COVERAGE_FILE=.coverage.gate $(BIN)/python -m coverage run --branch --source=krabby.safety -m pytest -q libs/krabby/tests/safety/test_gate*.py
	@COVERAGE_FILE=.coverage.gate $(BIN)/python -m coverage report --include='*/gate.py,*/limits.py,*/measured.py,*/target.py,*/effort.py' --show-missing --fail-under=100

test-py312: ## the default tests on Python 3.12
	@python312=$$(tools/find-python312) && \
	  $(MAKE) --no-print-directory test VENV=.venv-3.12 PYTHON="$$python312"

check-fast: $(DEV) ## the checks that take seconds: format, lint, import rules, locks
	@$(BIN)/ruff format --check --quiet . || { echo "run: make format" >&2; exit 1; }
	@$(BIN)/ruff check --quiet .
	@PYTHONPATH=services/trainer/src:tools $(BIN)/lint-imports
	@$(TOOLS) tools/lock.py --check

check: check-fast ## check-fast, types, generated files
	@$(BIN)/pyright
	@PYTHONPATH=tools $(BIN)/python -m krabby_assets.generate --check
	@PYTHONPATH=tools $(BIN)/python -m krabby_assets.gait_bundle --check
	@$(BIN)/python monitoring/dashboards.py --check
	@$(BIN)/python tools/fill_docs.py --check
	@$(BIN)/python tools/cockpit_js/make.py --check

docs: $(DEV) ## build the documentation as a site in build/docs; broken links are errors
	@$(INSTALL) --group docs
	@$(BIN)/sphinx-build -W --keep-going -q -n -c docs . build/docs
	@echo "open build/docs/docs/index.html"

check-train: $(DEV) $(TRAIN_SETUP) ## type check of the trainer (needs torch)
	@$(BIN)/pyright --project services/trainer --pythonpath $(TRAIN_BIN)/python

format: $(DEV) ## format and sort in place
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(DEV) ## measure the runtime beside a floor of the same run: DURATION=s COURSE=name POLICY=name
	@$(BIN)/python bench/runtime.py --duration $(DURATION) $(if $(COURSE),--course $(COURSE)) $(if $(POLICY),--policy $(POLICY))

dashboards: $(DEV) ## write monitoring/grafana/dashboards from monitoring/dashboards.py
	@$(BIN)/python monitoring/dashboards.py

assets: $(DEV) ## regenerate everything under assets/ from its sources
	@PYTHONPATH=tools $(BIN)/python -m krabby_assets.generate
	@PYTHONPATH=tools $(BIN)/python -m krabby_assets.gait_bundle

cockpit-js: $(DEV) ## make the JavaScript of the cockpit's page again from tools/cockpit_js/package-lock.json; needs npm's registry
	@$(BIN)/python tools/cockpit_js/make.py

DIST ?= dist
# What setuptools leaves behind; it would put modules that have been removed into the next wheel.
BUILT = proto/build libs/*/build services/*/build cli/build

wheels: $(TOOLS) ## build the packages, robots and policies included, into dist: pip install dist/*.whl && krabby sim
	@rm -rf "$(DIST)" $(BUILT)
	@$(TOOLS) -m uv export --quiet --frozen --no-header --no-annotate --only-group build --output-file .venv-uv/build.txt
	@$(TOOLS) -m uv build --quiet --wheel --all-packages --build-constraints .venv-uv/build.txt --out-dir "$(DIST)"
	@rm -rf $(BUILT)
	@ls "$(DIST)"/*.whl >&2

lock: $(TOOLS) ## renew the package locks after a manifest changed: ARGS="--upgrade-package numpy"
	@$(TOOLS) tools/lock.py $(ARGS)

sbom: $(TOOLS) ## bills of material of the package locks, CycloneDX, in build/
	@mkdir -p build
	@$(TOOLS) -m uv export --quiet --frozen --all-packages --no-dev --preview-features sbom-export --format cyclonedx1.5 --output-file build/sbom-runtime.cdx.json >/dev/null
	@$(TOOLS) -m uv export --quiet --frozen --project services/trainer --no-dev --preview-features sbom-export --format cyclonedx1.5 --output-file build/sbom-trainer.cdx.json >/dev/null
	@wc -c build/sbom-*.cdx.json

audit: $(TOOLS) ## compare the package locks with the OSV database of known vulnerabilities; needs api.osv.dev
	@$(TOOLS) -m uv audit --frozen --preview-features audit-command
	@$(TOOLS) -m uv audit --frozen --preview-features audit-command --project services/trainer

check-arm64: $(TOOLS) ## check that all locked packages of the robot's images have arm64 wheels; needs the package index
	@tools/check-arm64

clean: ## remove virtual environments, caches and run logs
	rm -rf .venv .venv-* .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage runs build
	find . -name __pycache__ -prune -exec rm -rf {} +
