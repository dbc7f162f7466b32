# On a fresh machine, `make train` and `make test` need only Python 3.11 to 3.13, make and git.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/sca_unet_sample
REQUIREMENTS := $(if $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes),requirements-cuda12.txt,requirements.txt)

.PHONY: setup train test newest lock sbom test-all bench-smoke opencv4 onnxruntime lint bench

setup: $(VENV)/installed

# The stamp is written last, so that an interrupted installation is run again, as is one whose
# requirements have changed since.
$(VENV)/installed: pyproject.toml $(filter-out %/lock-restore.txt,$(wildcard requirements*.txt requirements/*.txt))
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo "error: $(PYTHON) is not Python 3.11 to 3.13; try make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UPGRADE) -r $(REQUIREMENTS) --editable '.[dev]'
	@touch $@

train: setup
	$(BIN)/python launch.py --config=configs/sca_unet.py:sample --workdir=$(WORKDIR)

# One worker runs all tests of an xdist_group, as they share fixtures that are slow to set up.
PYTEST := $(BIN)/python -m pytest -n 2

# Distributed by file, since the tests of a file share fixtures; the slow ones by group.
test: setup
	$(PYTEST) --dist=loadfile -m 'not slow and not bench'

# `make test` with the newest release of every package, in a separate environment.
newest:
	rm -f build/newest/installed
	$(MAKE) setup VENV=build/newest UPGRADE='--upgrade --upgrade-strategy=eager'
	build/newest/bin/python -m pip list --disable-pip-version-check
	$(MAKE) test VENV=build/newest

# What `pip install .` installs, by version and digest, for Python 3.11 on Linux x86-64: renewed.
LOCKED := --python-version=3.11 --python-platform=x86_64-manylinux_2_28 --no-config --quiet
lock: setup
	$(BIN)/uv pip compile $(LOCKED) --generate-hashes --upgrade --custom-compile-command='make lock' \
	  --output-file=requirements/lock-restore.txt requirements/restore.txt
	$(MAKE) sbom

# What is shipped, of the locked packages and the models: the SBOM of the wheel, docs/licences.md.
sbom: setup
	rm -rf build/locked
	$(BIN)/uv pip install $(LOCKED) --require-hashes --target=build/locked \
	  --requirement=requirements/lock-restore.txt
	$(BIN)/python -m requirements.inventory build/locked

# The tests that `make test` skips.
test-all: setup
	$(PYTEST) --dist=loadgroup -m 'slow or bench'

# Every script of benchmarks/, each on the smallest workload that runs it to its end.
bench-smoke: setup
	$(PYTEST) --dist=loadgroup -m bench

# The exports in OpenCV 4; `make test-all` uses the newest release, which is later.
opencv4: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target build/opencv4 'opencv-python-headless<5'
	PYTHONPATH=build/opencv4 $(BIN)/python -m pytest tests/inference/test_export.py -k opencv

# What onnxruntime's Python package lacks for C++ and C#, on Linux x86-64: with it, the tests compile
# and run the examples of a pack. Headers; .NET and the assembly for it.
ONNXRUNTIME := build/onnxruntime
FETCHING := $(ONNXRUNTIME).part
onnxruntime: setup
	rm -rf $(ONNXRUNTIME) $(FETCHING)
	mkdir -p $(FETCHING)/include
	cd $(FETCHING) && npm pack --silent com.github.asus4.onnxruntime@0.4.9
	tar --extract --gzip --file=$$(ls $(FETCHING)/*.tgz) --directory=$(FETCHING)/include \
	  --strip-components=7 --wildcards '*/ios-arm64/*/Headers/*.h'
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --python-version=3.8 \
	  --platform=manylinux1_x86_64 --only-binary=:all: --dest=$(FETCHING) \
	  dotnetcore2==3.1.23 nimbusml==1.8.0
	cd $(FETCHING) && unzip -q dotnetcore2-*.whl 'dotnetcore2/bin/*'
	cd $(FETCHING) && unzip -q -j nimbusml-*.whl '*/Microsoft.ML.OnnxRuntime.dll'
	chmod +x $(FETCHING)/dotnetcore2/bin/dotnet
	rm $(FETCHING)/*.tgz $(FETCHING)/*.whl
	mv $(FETCHING) $(ONNXRUNTIME)

bench: setup
	$(BIN)/python -m benchmarks.models --rounds=3
	$(BIN)/python -m benchmarks.train_step --batch=4 --peers=channels_last
	$(BIN)/python -m benchmarks.train_step --model=rcan --size=64 --batch=2 --peers=channels_last
	$(BIN)/python -m benchmarks.infer --batch=1 --peers=channels_last
	$(BIN)/python -m benchmarks.infer --model=rcan --size=128 --batch=1 --peers=channels_last
	$(BIN)/python -m benchmarks.ssim --batch=4
	$(BIN)/python -m benchmarks.pipeline
	$(BIN)/python -m benchmarks.folder
	$(BIN)/python -m benchmarks.start_up
	$(BIN)/python -m benchmarks.growth --sides=128,256,512 --batches=1,4 --images=10 --rounds=2
	$(BIN)/python -m benchmarks.end_to_end --batch=4 --rounds=3

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
