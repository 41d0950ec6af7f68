# Each target but `test` makes a fresh environment below $(ENVS) by uv (https://docs.astral.sh/uv, `pip install uv`) and runs the tests in it.
#
#   make test-floor                              the oldest releases that setup.cfg allows
#   make test-newest PYTEST="-n 2 -k 'not demo'" what pytest is given
PYTHON ?= 3.11
ENVS ?= build/envs
UV ?= uv
PYTEST ?=

.PHONY: test test-slow test-floor test-floor-extras test-newest test-newest-extras

test:
	python -m pytest $(PYTEST)

test-slow:
	python -m pytest --runslow $(PYTEST)

# lowest-direct: the packages that setup.cfg names at their floors, what these need as new as they take it. Without the extras, one of which
# asks for a newer torch: their tests are skipped here, and run by the second of the two.
test-floor:
	$(UV) venv --clear --python $(PYTHON) $(ENVS)/floor
	$(UV) pip install --python $(ENVS)/floor --resolution lowest-direct -e . "pytest>=8.3" "pytest-xdist>=3.8" "hypothesis>=6.170"
	$(ENVS)/floor/bin/python -m pytest $(PYTEST)

test-floor-extras:
	$(UV) venv --clear --python $(PYTHON) $(ENVS)/floor-extras
	$(UV) pip install --python $(ENVS)/floor-extras --resolution lowest-direct -e ".[test]"
	$(ENVS)/floor-extras/bin/python -m pytest $(PYTEST)

# In two for the same reason: an extra may hold back what the base takes newer, as gradio does Pillow.
test-newest:
	$(UV) venv --clear --python $(PYTHON) $(ENVS)/newest
	$(UV) pip install --python $(ENVS)/newest --upgrade -e . pytest pytest-xdist hypothesis
	$(ENVS)/newest/bin/python -m pytest $(PYTEST)

test-newest-extras:
	$(UV) venv --clear --python $(PYTHON) $(ENVS)/newest-extras
	$(UV) pip install --python $(ENVS)/newest-extras --upgrade -e ".[test]"
	$(ENVS)/newest-extras/bin/python -m pytest $(PYTEST)
