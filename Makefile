# make demo: everything on the bundled model, into demo/    make test: all tests
PYTHON ?= python3
MODEL = ../examples/prose-8m-f16.gguf
IMATRIX = ../examples/prose-8m-sums.imatrix.gguf
PLANNER = ../.venv/bin/planner

# Some systems ship Python without ensurepip; then the pip outside installs into the venv
INSTALL = $$(test -x .venv/bin/pip && echo .venv/bin/python -m pip || echo $(PYTHON) -m pip --python .venv) \
	install --quiet --disable-pip-version-check

# Tests of pages drive a browser: one that is there, or playwright's, or the system's
BROWSER = { command -v chromium || command -v chromium-browser || command -v google-chrome \
	|| command -v google-chrome-stable \
	|| .venv/bin/python -m playwright install $$(test "$$(id -u)" = 0 && echo --with-deps) chromium \
	|| { test "$$(id -u)" = 0 && apt-get install --quiet --yes chromium; }; } >/dev/null \
	|| echo "Install chromium: tests of pages need a browser"

.PHONY: demo test check clean

demo: .venv/base
	rm -rf demo && mkdir demo
	cd demo && $(PLANNER) measure $(MODEL) --imatrix $(IMATRIX)
	cd demo && $(PLANNER) solve --budget 4.5MB
	cd demo && $(PLANNER) quantize $(MODEL) recipe.json prose-8m-4.5MB.gguf
	cd demo && $(PLANNER) export recipe.json --to llama-quantize
	ls -l demo

test: .venv/dev
	.venv/bin/python -m pytest -n 2

check: .venv/dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

.venv/base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Setting up .venv"
	@$(PYTHON) -m venv --clear .venv >/dev/null 2>&1 || $(PYTHON) -m venv --clear --without-pip .venv
	@$(INSTALL) -e .
	@touch $@

.venv/dev: .venv/base
	@echo "Installing what tests need; llama-cpp-python compiles llama.cpp (about ten minutes, once)"
	@CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(INSTALL) -e '.[dev,llama]'
	@$(BROWSER)
	@touch $@

clean:
	rm -rf .venv demo build dist *.egg-info
