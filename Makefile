PYTHON ?= python3
VENV := .venv
JOBS ?= 2
RUN := $(VENV)/bin/python

.PHONY: demo demo-sparse demo-privacy test test-browser bench calibrate lint tables clean

demo: $(VENV)/.ready
	$(RUN) scripts/demo.py

demo-sparse: $(VENV)/.ready
	$(RUN) scripts/demo_sparse.py

demo-privacy: $(VENV)/.ready
	$(RUN) scripts/demo_privacy.py

test: $(VENV)/.ready $(VENV)/.optional
	$(VENV)/bin/ruff check .
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q -rs -n $(JOBS) --dist loadfile --ignore tests/browser

# the page of --html in headless Chromium, which has to be there
test-browser: $(VENV)/.ready
	@$(RUN) -c 'import sys; sys.path.insert(0, "tests/browser"); import chromium; sys.exit(0 if chromium.program() else chromium.MISSING)'
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/browser

bench: $(VENV)/.ready
	$(RUN) -m benchmarks --append

# what is fastest on this machine, for later runs to read; on a quiet machine
calibrate: $(VENV)/.ready
	$(RUN) main_calibrate.py

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check .

tables: $(VENV)/.ready
	$(RUN) scripts/tables.py

$(VENV)/.ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 ...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

# what is not needed, but has tests where it is there
$(VENV)/.optional: $(VENV)/.ready requirements-optional.txt
	@$(VENV)/bin/pip install --quiet --disable-pip-version-check -r requirements-optional.txt \
		|| echo "timm is not installed: the tests of --arch timm:NAME are skipped"
	@touch $@

clean:
	rm -rf $(VENV) runs
