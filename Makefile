# make demo: train on drawn scenes, and label street photos with the model of the package.  make test: every test.
# Nothing but Python and make is needed.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
PIP = $(RUN) -m pip install -q -c constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/for-demo
	rm -rf runs/demo
	$(RUN) -m emanet train drawn --out runs/demo
	$(RUN) -m emanet data draw runs/demo/scenes --train 1 --val 6
	$(RUN) -m emanet predict runs/demo runs/demo/scenes/val/images --out runs/demo/predictions
	$(RUN) -m emanet predict examples/photos --out runs/demo/street
	@echo
	@echo "runs/demo/street/*_overlay.jpg: street photos, labelled by the model that comes with the package"
	@echo "runs/demo holds curves.png, confusion.png, evaluation.json (the IoU table) and predictions/*_overlay.jpg"

# Threads of tests that run side by side would wait for each other, spinning.
test: $(VENV)/for-tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n auto --maxprocesses 8 --dist loadgroup

lint: $(VENV)/for-tests
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# The demo needs the package and its drawings, the tests also a compiler of models, GeoTIFFs and the checkers.
$(VENV)/for-demo: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) -e ".[plots]"
	touch $@

$(VENV)/for-tests: $(VENV)/for-demo
	$(PIP) -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
