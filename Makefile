# Two commands:  make demo   the whole of InstructGPT in minutes    make test   all fast tests
#
# make label     rank the demo's answers by your own taste, in a browser
# make mine      and train a policy on these rankings: before and after, side by side
# make figures   the paper's experiments in three worlds: about two hours; FIG=tax makes one of them
# make rounds    three rounds of feedback, or N=4    make check-figures   which findings hold
# make seeds     the demo in three worlds, and the mean of their results
# make demo IN=runs/mine SEED=7    in a folder of its own, with other seeds
# make long      every stage killed twenty times; each planted defect turns its tests red and shows
#                in a log; the classroom's exercises, grading and lessons
# make proofs    sixty rankings teach a policy your taste; the scripts' memory; a busy page
# make real      the commands of docs/data.md on real data, and what they promise
# make bench     our kernels, sampler and PPO against the peers, in an environment of their own
PYTHON ?= python3
IN ?= .
define NEWLINE


endef
ifneq ($(findstring $$,$(value IN))$(findstring $(NEWLINE),$(value IN))$(filter ~%,$(firstword $(IN))),)
$(error IN=$(value IN) has a $$, a line end, or a ~ that no shell has replaced: name it in full)
endif
# make clean IN=$FOLDER, where that is not set, would remove /out. "cd -" and "cd runs" (if CDPATH is
# set) can mean other folders than "cd ./runs".
override IN := $(if $(filter . /%,$(firstword $(IN) .)),$(or $(IN),.),./$(IN))
quoted = '$(subst ','\'',$(1))'# a word for the shell, whatever is in it
PLACE := $(call quoted,$(IN))
ROOT := $(call quoted,$(CURDIR))
PY := $(ROOT)/.venv/bin/python
export PYTHONPATH := $(CURDIR)
SEEDED = $(if $(SEED),--seed=$(SEED))
DEMO := out/demo

PROOFS := tests/test_eval_long.py tests/test_page_browser.py tests/test_plan.py

BENCH ?= --threads=1
WORKERS ?= -n auto --maxprocesses=8 --dist=worksteal # of pytest: one a core

.PHONY: demo sft init ranks heldout ppo ppo-ptx label mine figures rounds check-figures \
	seeds test long proofs real bench check clean install install-dev

# $(call step,file that shows it is done,what it is,script or module and its settings)
# Where an interrupted run has left a state, --resume goes on from it.
define step
	@cd $(PLACE) && if [ -e $(1) ]; then echo "$(2): $(1) is already there"; else \
		ls $(dir $(1))state-*.pt > /dev/null 2>&1 && again=--resume || again=; \
		echo "$(2): python $(3) $(SEEDED) $$again"; \
		$(PY) $(if $(filter -m,$(3)),,$(ROOT)/)$(3) $(SEEDED) $$again; fi
endef

# Where two steps need nothing of each other they run together, each on half of the cores: on models
# this small two threads of one process are hardly faster than one. Only one shows its progress.
together = @$(MAKE) --no-print-directory -j2 OMP_NUM_THREADS=$(HALF) $(1)
HALF = $(or $(OMP_NUM_THREADS),$(shell \
	n=$$(nproc 2> /dev/null || getconf _NPROCESSORS_ONLN); echo $$(((n + 1) / 2))))

demo: install
	@mkdir -p $(PLACE)
	$(call step,out/toy/world.json,toy world,-m data.toy.world)
	$(call step,out/base/checkpoint.json,pretraining,sft.py --preset=base)
	$(call together,sft init)
	$(call step,out/toy/completions_train.jsonl,samples to rank,-m labels.sample)
	$(call together,ranks heldout)
	$(call step,out/toy/rankings_valid.jsonl,labels held out,-m labels.simulated --split=valid)
	$(call step,out/rm/checkpoint.json,step 2: reward model,reward.py)
	$(call together,ppo ppo-ptx)
	$(call step,$(DEMO)/results.json,evaluation,evaluate.py > $(DEMO).txt)
	@cat $(PLACE)/$(DEMO).txt

sft:
	$(call step,out/sft/checkpoint.json,step 1: SFT,sft.py)
init:
	$(call step,out/init/checkpoint.json,RL initialisation,sft.py --preset=init)
ranks:
	$(call step,out/toy/rankings_train.jsonl,labels,-m labels.simulated)
heldout:
	$(call step,out/toy/completions_valid.jsonl,samples held out,-m labels.sample --split=valid)
ppo:
	$(call step,out/ppo/checkpoint.json,step 3: PPO,ppo.py --preset=ppo)
ppo-ptx:
	$(call step,out/ppo-ptx/checkpoint.json,step 3: PPO-ptx,ppo.py)

init heldout ppo: export TQDM_DISABLE = 1

label: .venv/installed-label
	@cd $(PLACE) && $(PY) -m labels.page --preset=mine

mine: install
	@cd $(PLACE) && $(PY) -m labels.mine

figures: .venv/installed-figures
	@cd $(PLACE) && $(PY) -m figures $(if $(FIG),--fig=$(FIG)) $(if $(SCALE),--scale=$(SCALE))

rounds: .venv/installed-figures
	@cd $(PLACE) && $(PY) -m figures --fig=rounds $(if $(N),--rounds=$(N))

check-figures: install
	@cd $(PLACE) && $(PY) -m figures --check $(if $(SCALE),--scale=$(SCALE))

seeds:
	for seed in 1 2 3; do $(MAKE) demo IN=runs/seed-$$seed SEED=$$seed || exit 1; done
	$(PY) tests/check_demo.py runs/seed-*/$(DEMO)/results.json

test: install-dev
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(WORKERS)

long: install-dev  # every stage killed twenty times; planted defects; the classroom
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(WORKERS) -m "long and not alone" \
		$(addprefix --ignore=,$(PROOFS))

proofs: install-dev demo  # your taste learned, public tasks, memory; then, alone, a busy page
	OMP_NUM_THREADS=1 $(PY) -m pytest -q $(WORKERS) -m "long and not alone" $(PROOFS)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -m alone

real: install
	OMP_NUM_THREADS=1 $(PY) tests/real_input.py

bench: .venv-bench/installed  # e.g. make bench BENCH='--rows=ce,step --repeats=9'
	.venv-bench/bin/python tests/bench/bench.py $(BENCH)

check: install  # the demo's promises, read from its own results
	$(PY) tests/check_demo.py $(PLACE)/$(DEMO)/results.json

install: .venv/installed
install-dev: .venv/installed-dev

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

# Of axe-playwright-python the tests only use the file axe.min.js, which checks pages.
.venv/installed-dev: requirements-dev.txt requirements.txt | .venv/bin/python
	$(PY) -m pip install --quiet -r requirements-dev.txt
	$(PY) -m pip install --quiet --no-deps axe-playwright-python==0.1.8
	@touch $@ .venv/installed

.venv/installed-label: settings.py .venv/installed
	$(PY) -m pip install --quiet $$($(PY) -c 'import settings; print(*settings.EXTRAS["label"])')
	@touch $@

.venv/installed-figures: settings.py .venv/installed
	$(PY) -m pip install --quiet $$($(PY) -c 'import settings; print(*settings.EXTRAS["figures"])')
	@touch $@

.venv-bench/installed: requirements.txt $(wildcard tests/bench/requirements*.txt)
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet -r requirements.txt
	.venv-bench/bin/python -m pip install --quiet -r tests/bench/requirements.txt
	@if command -v nvidia-smi > /dev/null; then \
		.venv-bench/bin/python -m pip install --quiet -r tests/bench/requirements-gpu.txt; fi
	@touch $@

clean:  # what the demo made; the environment stays
	rm -rf $(PLACE)/out
