# make demo   the whole of InstructGPT in minutes    make test   all fast tests
# make bench  our kernels, sampler and PPO against the peers, in an environment of their own
PYTHON ?= python3
PY := .venv/bin/python
DEMO := out/demo

BENCH ?= --threads=1

.PHONY: demo test bench check clean install install-dev

# $(call step,file that shows it is done,what it is,command)
define step
	@if [ -e $(1) ]; then echo "$(2): $(1) is already there"; else echo "$(2): $(3)"; $(3); fi
endef

demo: install
	$(call step,out/toy/world.json,toy world,$(PY) -m data.world)
	$(call step,out/base/checkpoint.json,pretraining,$(PY) sft.py --preset=base)
	$(call step,out/sft/checkpoint.json,step 1: SFT,$(PY) sft.py)
	$(call step,out/init/checkpoint.json,RL initialisation,$(PY) sft.py --preset=init)
	$(call step,out/toy/completions_train.jsonl,samples to rank,$(PY) sample.py --prompts=4000)
	$(call step,out/toy/completions_valid.jsonl,samples held out,$(PY) sample.py --split=valid)
	$(call step,out/toy/rankings_train.jsonl,labels,$(PY) -m data.labelers)
	$(call step,out/toy/rankings_valid.jsonl,labels held out,$(PY) -m data.labelers --split=valid)
	$(call step,out/rm/checkpoint.json,step 2: reward model,$(PY) reward.py)
	$(call step,out/ppo/checkpoint.json,step 3: PPO,$(PY) ppo.py --preset=ppo)
	$(call step,out/ppo-ptx/checkpoint.json,step 3: PPO-ptx,$(PY) ppo.py)
	$(call step,$(DEMO)/results.json,evaluation,$(PY) evaluate.py > $(DEMO).txt)
	@cat $(DEMO).txt

test: install-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q

bench: .venv-bench/installed  # e.g. make bench BENCH='--rows=ce,step --repeats=9'
	.venv-bench/bin/python tests/bench/bench.py $(BENCH)

check:  # the demo's promises, read from its own results
	$(PY) tests/check_demo.py $(DEMO)/results.json

install: .venv/installed
install-dev: .venv/installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.venv/installed-dev: requirements-dev.txt requirements.txt | .venv/bin/python
	$(PY) -m pip install --quiet -r requirements-dev.txt
	@touch $@ .venv/installed

.venv-bench/installed: tests/bench/requirements.txt requirements.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -r requirements.txt
	.venv-bench/bin/python -m pip install --quiet -r tests/bench/requirements.txt
	@touch $@

clean:  # what the demo made; the environment stays
	rm -rf out
