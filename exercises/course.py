"""The exercises, in the order of a course. Each file of checks/ holds those of one subject."""
import functools
import importlib
from dataclasses import dataclass

LESSONS = {  # file in checks/: what it is about
    "kernels": "attention and cross-entropy",
    "finetuning": "step 1: SFT",
    "rewards": "step 2: the reward model",
    "sampling": "sampling",
    "policy": "step 3: PPO",
    "training": "many processes",
    "measuring": "who is preferred",
    "gpu": "a kernel of your own",
}


@dataclass(frozen=True, eq=False)
class Exercise:
    """A hole in a real function, and what is true of a right function.

    run(module, case) -> {name: value}: calls the function of a module; in the student's process.
    oracle(case) -> the same, from loops over lists. Names that begin with _ are not compared: they
    help to tell one mistake from another. properties: {sentence: [case]}, cases are dicts.
    facts(values) -> what is true of them, if that is what is compared: where no student's code has
    run, from values that are packed (worker.packed) and may be anything else that packs.
    """
    name: str
    file: str
    function: str
    run: object
    oracle: object
    properties: dict
    hints: tuple  # three, each says more
    lines: int  # of a usual answer
    shows: tuple = ()  # the inputs that are worth drawing, in order
    part: str = ""  # of a long function only this statement is cut
    whole: tuple = ()  # inputs of which more than the row beside a result counts: written in full
    needs: str = ""  # a package without which it cannot be checked
    tolerance: float = 1e-5
    lesson: str = ""
    facts: object = None

    @property
    def size(self):
        """How long a usual answer is, in words."""
        return "about 1 line" if self.lines == 1 else f"about {self.lines} lines"

    def cases(self):
        """[(sentence, case)] of all properties."""
        return [(sentence, case) for sentence, own in self.properties.items() for case in own]


@functools.cache
def load():
    """{name: Exercise}, in order."""
    out = {}
    for lesson in LESSONS:
        for exercise in importlib.import_module(f"exercises.checks.{lesson}").EXERCISES:
            object.__setattr__(exercise, "lesson", lesson)
            out[exercise.name] = exercise
    return out
