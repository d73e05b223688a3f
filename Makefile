# make demo   sets everything up and runs the main job on drawn scenes
# make test   sets everything up and passes the tests
# make check  style, types, and the links of the documentation
# make faults every fault of the file system at every call of every job, some minutes
# make fuzz   searches for bytes that Firn does not expect, ten minutes for each of six targets (FUZZ_ARGS="--seconds 60 decode")
# make rounds exactness, resume and kill tests, ROUNDS times in a row (10)
# make dist   dist/firn-<version>.zip, all of Firn's own code, for spark-submit --py-files; and the same as a wheel
# make site   the documentation as a site, in build/site
.PHONY: setup demo test check faults fuzz rounds dist site clean
PYTEST_ARGS ?=
ROUNDS ?= 10
export TF_CPP_MIN_LOG_LEVEL ?= 2

setup:
	@scripts/setup.sh

demo: setup
	@scripts/demo.sh

test: setup
	.venv/bin/python -m pytest -n 2 $(PYTEST_ARGS)

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	@$(MAKE) --no-print-directory site

faults: setup
	FIRN_ALL_FAULTS=1 .venv/bin/python -m pytest -n 2 -q -m faults $(PYTEST_ARGS)

fuzz: setup
	.tools/bin/uv pip install --quiet --python .venv/bin/python --constraints constraints.txt atheris
	.venv/bin/python tests/fuzz/search.py $(FUZZ_ARGS)

rounds: setup
	@for round in $$(seq $(ROUNDS)); do \
	    echo "round $$round of $(ROUNDS)"; \
	    .venv/bin/python -m pytest -n 3 -q -k "horovod or shared_memory or liveness" $(PYTEST_ARGS) || exit 1; \
	done

dist: setup
	@rm -rf build  # what is left there would go into the wheel
	@.venv/bin/python scripts/dist.py
	@.venv/bin/python -m build --wheel --no-isolation --outdir dist . >/dev/null
	@ls dist/*.whl

site: setup
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet

clean:
	rm -rf .venv .tools build dist demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
