# make demo: train on drawn scenes and show the result.  make test: every test.  Nothing but Python and make is needed.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test install lint clean

demo: install
	rm -rf runs/demo
	$(RUN) -m emanet train drawn --out runs/demo
	$(RUN) -m emanet data draw runs/demo/scenes --train 1 --val 6
	$(RUN) -m emanet predict runs/demo runs/demo/scenes/val/images --out runs/demo/predictions
	@echo
	@echo "runs/demo holds curves.png, confusion.png, evaluation.json (the IoU table) and predictions/*_overlay.jpg"

test: install
	$(RUN) -m pytest -q

lint: install
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
