# Each target works alone on a fresh machine with Python 3.11–3.13, and may be run twice.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
CORE   := $(VENV)/.installed
DEV    := $(VENV)/.installed-dev
BENCH  := $(VENV)/.installed-bench
DOCS   := $(VENV)/.installed-docs
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test check format docs reference clean \
    bench-loop bench-memory bench-noise bench-monitor bench-per-example bench-max-batch \
    bench-probe bench-sweep bench-tradeoff bench-pruning bench-replicas bench-averaging bench-growing bench-curvature \
    bench-compare bench-devices bench-advice bench-real bench-real-peers bench-claims bench-papers bench-start \
    bench-integrations bench-policy \
    ground-truth ground-truth-real curves-table gpu

# Which batch size, learning rate and number of updates for scikit-learn's handwritten digits: asked, and then trained.
demo: $(CORE)
	$(BIN)/batchscope advise digits --target 0.97 --json demo/advice.json --report demo/advice.html
	$(BIN)/batchscope train digits --plan demo/advice.json --report demo/training.html
	@echo "Open demo/advice.html and demo/training.html in a browser."

test: $(DEV)
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the site, in build/site; fails on a link or an anchor that is not there
docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "Open build/site/index.html, or look at it with search: python3 -m http.server --directory build/site"

# the pages that are made from the code and from saved results
reference: $(CORE)
	for script in records_reference commands_reference python_reference claims_pages; do \
	    $(BIN)/python docs/$$script.py || exit 1; \
	done

# examples/s of our loop over a hand-written one, in alternating runs; Lightning and skorch beside them
bench-loop: $(BENCH)
	$(BIN)/python benchmarks/loop.py

# peak resident memory of a run over a hand-written loop's, each in a process of its own
bench-memory: $(BENCH)
	$(BIN)/python benchmarks/memory.py

# bias and cover of the noise scale's interval, 1,000 repetitions a setting; gns-pytorch beside it
bench-noise: $(BENCH)
	$(BIN)/python benchmarks/noise.py

# what GradientNoise adds to a plain loop's time; gns-pytorch and backpack beside it
bench-monitor: $(BENCH)
	$(BIN)/python benchmarks/monitor.py

# what the noise scale's callback adds to training with Lightning, transformers, accelerate and skorch
bench-integrations: $(BENCH)
	$(BIN)/python benchmarks/integrations.py

# time and memory of per-example statistics over single backward passes; backpack beside it
bench-per-example: $(BENCH)
	$(BIN)/python benchmarks/per_example.py

# the largest batch under 2 GiB: whether it holds, trials and seconds; Lightning and accelerate beside it
bench-max-batch: $(BENCH)
	$(BIN)/python benchmarks/max_batch_size.py

# probing twice: whether the knee and the cost per example come out alike, and how long it takes
bench-probe: $(BENCH)
	$(BIN)/python benchmarks/probe.py

# whether half or twice the rate of a comparison's row is any better
bench-compare: $(DEV)
	$(BIN)/python benchmarks/fair_compare.py

# trials an hour of a sweep on one grid; separate runs, Optuna and Ray Tune beside it
bench-sweep: $(BENCH)
	$(BIN)/python benchmarks/sweep.py

# how often the trade-off law's intervals hold the truth on tables whose law is known, 1,000 each; published curves
bench-tradeoff: $(DEV)
	$(BIN)/python benchmarks/tradeoff.py

# what pruning saves, and whether the same learning rates come out as the best
bench-pruning: $(DEV)
	$(BIN)/python benchmarks/pruning.py

# averaged weights beside cooldowns and linear decays, at horizons that double
bench-averaging: $(DEV)
	$(BIN)/python benchmarks/averaging.py

# whether a batch that grows on the way is there sooner than the best constant one, with averaged weights and without
bench-growing: $(BENCH)
	$(BIN)/python benchmarks/growing.py

# eigenvalues of Hessians; curvlinops and PyHessian beside it, where they are installed (see the file)
bench-curvature: $(BENCH)
	$(BIN)/python benchmarks/curvature.py

# the time of an update on two ranks, worked out from one and the network, beside what it takes
bench-devices: $(DEV)
	$(BIN)/python benchmarks/devices.py

# updates of trials per second as replicas over one after the other, on one core
bench-replicas: $(BENCH)
	$(BIN)/python benchmarks/replicas.py

# the advice on real networks from three references: whether it comes, what it costs, what it saves
bench-real: $(BENCH)
	$(BIN)/python benchmarks/advice_real.py

# the same questions asked of Lightning, Optuna, Prodigy, batch 32 and today's setting; after bench-real, for its seconds
bench-real-peers: $(BENCH)
	$(BIN)/python benchmarks/real_peers.py

# the advice on small tensors from bad references: regret by ground truth and as trained, its cost; others beside
bench-advice: $(BENCH)
	$(BIN)/python benchmarks/advice.py

# the search policy played a thousand times on recorded grids and noisy quadratics; successive halving alone beside it
bench-policy: $(DEV)
	$(BIN)/python benchmarks/policy.py

# the claims on digits, in at most ten minutes; five papers' tables, ten minutes each at most
bench-claims: $(CORE)
	$(BIN)/batchscope claims digits --json benchmarks/results/claims-digits.json

bench-papers: $(CORE)
	for paper in keskar2016 smith2017 mishkin2016 shallue2019 mccandlish2018; do \
	    $(BIN)/batchscope claims --paper $$paper --budget 1800 --json benchmarks/results/$$paper.json || exit 1; \
	done

# what starting takes: imports and the command's help, beside import torch alone
bench-start: $(DEV)
	$(BIN)/python benchmarks/start.py

# the ground truth that bench-advice judges by, anew: hours; goes on where it was stopped
ground-truth: $(DEV)
	$(BIN)/python benchmarks/ground_truth.py

# learning curves of the real networks, the ground truth of bench-real: about six hours on two cores; may be stopped at
# any moment and goes on; what has finished is then in benchmarks/ground_truth/real
ground-truth-real: $(DEV)
	nice -n 5 $(BIN)/python benchmarks/record_curves.py

# seconds to the target of every setting that was recorded
curves-table: $(DEV)
	$(BIN)/python benchmarks/curves_table.py

# the GPU tests, then the GPU benchmarks, in under 8 minutes: from the source tree, on the torch that is there
gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -m gpu tests/training tests/measure
	PYTHONPATH=src $(PYTHON) benchmarks/replicas.py --device cuda --workloads digits,text --rounds 3

# A stamp is written last, so that an interrupted installation is done again.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	@touch $@

$(DEV): $(CORE)
	$(PIP) --editable '.[dev]'
	@touch $@

$(BENCH): $(DEV)
	$(PIP) --editable '.[dev,bench]'
	# backpack asks for torchvision, which would bring a torch of its own; it needs no more than what is here already
	$(PIP) --no-deps 'backpack-for-pytorch>=1.6' einops unfoldNd
	@touch $@

$(DOCS): $(CORE)
	$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) build/site demo .mypy_cache .ruff_cache .pytest_cache
