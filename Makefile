# `make demo` and `make test` need only Python 3.10 or 3.11: everything else is
# installed into .venv from the pinned files, again whenever those change.
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DEMO := runs/demo

# What lies on the machine must not reach the runs; TensorFlow's start-up
# messages about missing accelerators say nothing here.
unexport PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export TF_CPP_MIN_LOG_LEVEL ?= 3

# make PYTHON=/path/to/python3.11 ... names the interpreter; else the first of
# these that runs, is 3.10 or 3.11 and can make a virtual environment (a pyenv
# shim is on PATH for versions that are not there; Debian splits venv off).
CANDIDATES := $(or $(PYTHON),python3.11 python3.10 python3)
USABLE := import ensurepip, ssl, sys, venv; \
  sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))

.PHONY: help demo imagenette test test-all test-ci lint clean

help:
	@echo "make demo      train ConAdv on digits, evaluate, export ($(DEMO))"
	@echo "make imagenette DATA=folder   ResNet-18 on photographs, 2 epochs"
	@echo "make test      the tests, without the slow ones"
	@echo "make test-all  all tests"
	@echo "make test-ci   those of .ci/run: of the slow ones, several processes'"
	@echo "make lint      ruff, and the BUILD files against the imports"
	@echo "make clean     remove .venv, caches and $(DEMO)"

$(INSTALLED): requirements.txt requirements-dev.txt constraints.txt \
    pyproject.toml
	@for python in $(CANDIDATES); do \
	  "$$python" -c '$(USABLE)' >/dev/null 2>&1 && break; \
	  python=; \
	done; \
	if [ -z "$$python" ]; then \
	  echo 'No working Python 3.10 or 3.11 with venv: install one, for' \
	    'instance with uv (uv python install 3.11), then run:' \
	    'make PYTHON="$$(uv python find 3.11)" $(MAKECMDGOALS)' >&2; \
	  exit 2; \
	fi; \
	echo "Installing the pinned packages into $(VENV) with $$python" \
	  "(some minutes)"; \
	"$$python" -m venv --clear $(VENV)
# The build tools first, so that no build fetches an unpinned one.
	@$(PY) -m pip install -q -c constraints.txt \
	  pip setuptools setuptools-scm wheel
	@$(PY) -m pip install -q --no-build-isolation -c constraints.txt \
	  -r requirements.txt -r requirements-dev.txt
	@PYTHONWARNINGS=ignore $(PY) -m pip install -q --no-build-isolation \
	  --no-deps -e .
	@touch $@

demo: $(INSTALLED)
	$(PY) -m conadv_tf.train --config_file=configs/digits/conadv.yaml \
	  --model_dir=$(DEMO)
	$(PY) -m conadv_tf.evaluate --model_dir=$(DEMO) --attacks=pgd20 \
	  --output=$(DEMO)/evaluation.json
	$(PY) -m conadv_tf.export --model_dir=$(DEMO) --output_dir=$(DEMO)/export
	@echo "Results: $(DEMO)/results.json (training)," \
	  "$(DEMO)/evaluation.json (under attack)," \
	  "$(DEMO)/export (the model); curves: $(VENV)/bin/tensorboard" \
	  "--logdir=$(DEMO)"

# DATA holds train/<class>/*.JPEG and val/<class>/*.JPEG.
imagenette: $(INSTALLED)
	$(PY) -m conadv_tf.train \
	  --config_file=configs/imagenette/resnet18_64px.yaml \
	  --params_override=data.path=$(DATA) --model_dir=runs/imagenette
	$(PY) -m conadv_tf.evaluate --model_dir=runs/imagenette
	$(PY) -m conadv_tf.export --model_dir=runs/imagenette \
	  --output_dir=runs/imagenette/export

# Tests mostly trace graphs, in one thread: two processes for two cores.
test: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile

test-ci: $(INSTALLED)
	$(PY) -m pytest -n 2 --dist loadfile -m "not slow or processes"

lint: $(INSTALLED)
	$(PY) -m ruff check .
	$(PY) -m tools.build_files --check

clean:
	rm -rf $(VENV) $(DEMO) .pytest_cache .ruff_cache *.egg-info
	find conadv_tf tests tools -name __pycache__ -type d -prune \
	  -exec rm -rf {} +
