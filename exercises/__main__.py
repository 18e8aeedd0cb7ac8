"""The classroom's commands.

    list                          the exercises, and how far you are
    start [NAME...] --into=DIR    a copy to work in, with these holes cut (without names: all)
    start NAME...                 in a copy: cut these holes now, too
    check [NAME...]               the property tests of a function (without a name: of your last)
    watch [NAME...]               check on every save
    hint [NAME]                   the next of three hints
    diff [NAME] [--reference]     your text against the hole, or against the project's own
    reset NAME                    the hole again; your text is kept in exercises/kept
    bug [--seed=N], bug check     plants a defect in your copy; tells whether you have repaired it
    grade DIR...                  students' copies: --json=, --csv=, --junit=FILE, --workers=N
    export --into=FILE.zip        the students' archive, or --notebooks=DIR
"""
import sys
import textwrap
import time

from exercises import ROOT, course, cutting, helpers, judge, student, worker
from settings import stop


def arguments(words, flags):
    """(names, each once; {flag: value}) of a command line; stops at a flag that is not among
    `flags`."""
    names, given = [], {}
    for word in words:
        if not word.startswith("--"):
            names.append(word)
            continue
        flag, _, value = word.partition("=")
        if flag not in flags:
            stop(f"unknown flag {word!r}"
                 + (f": this command has {', '.join(flags)}" if flags else ""))
        if not value and flag != "--reference":
            stop(f"{flag} needs a value: {flag}=..., without a space")
        given[flag[2:]] = value
    return list(dict.fromkeys(names)), given


def last(names, several=False):
    """The exercises that are meant: those named, or the last one."""
    names = names or [student.progress().get("last") or first_open()]
    if not several and len(names) > 1:
        stop("one exercise at a time")
    found = [student.exercise_of(name) for name in names]
    student.remember(last=found[-1].name)
    return found


def first_open():
    """The first exercise that is not done, in the order of the course."""
    known = student.progress()
    for exercise in course.load().values():
        if student.state(exercise, known) in student.OPEN:
            return exercise.name
    stop("all exercises that you started are done: `python -m exercises list`")


# ------------------------------------------------------------------------------- the verbs

def do_list(words):
    arguments(words, ())
    cut, known, lesson = student.ANSWERS.exists(), student.progress(), None
    for exercise in course.load().values():
        if exercise.lesson != lesson:
            lesson = exercise.lesson
            print(f"\n{course.LESSONS[lesson]}")
        mark = student.state(exercise, known) if cut else ""
        print(f"  {mark:<6} {exercise.name:<15} {exercise.file + ': ' + exercise.function:<42} "
              f"{exercise.size}")
    print("\n" + ("python -m exercises check NAME tells what to write, and checks it. Any order "
                  "will do:\nnone needs another, and those of 20 lines may wait."
                  if cut else "python -m exercises start --into=mine makes a copy to work in"))


def do_start(words):
    names, flags = arguments(words, ("--into",))
    for name in names:
        student.exercise_of(name)
    if "into" in flags:
        chosen = names or list(course.load())
        git = student.make(flags["into"], chosen)
        print(f"{flags['into']}: a copy of the project with {len(chosen)} holes"
              + (", and a git repository of its own" if git else ""))
        print(f"\n  cd {flags['into']}\n  python -m exercises list\n"
              f"  python -m exercises check {chosen[0]}")
        return
    student.here()
    for exercise in last(names, True):
        student.text(exercise)
        known = student.state(exercise, student.progress())
        if known == "whole":
            student.put(exercise, student.as_it_began(exercise))
        print(f"{exercise.name}: {known if known != 'whole' else 'cut'}. Write "
              f"`{exercise.function}` in {student.place(exercise)}, {exercise.size}.")
    print(page(exercise))


def page(exercise):
    path = student.HERE / f"{exercise.name}.md"
    return "\n\n" + path.read_text("utf-8").rstrip() if path.exists() else ""


def checked(exercise, root=ROOT):
    """(the verdict on a file in a folder, what it printed)."""
    if exercise.needs:
        try:
            __import__(exercise.needs)
        except ImportError:
            stop(f"{exercise.name} needs {exercise.needs}: pip install {exercise.needs}")
    outcomes, printed, _ = worker.run(exercise, root / exercise.file)
    return judge.judge(exercise, outcomes), printed


def told(exercise):
    """Check an exercise and print what there is to say. Returns whether it holds."""
    text = student.text(exercise)
    verdict, printed = checked(exercise)
    place = student.place(exercise) if verdict.blank else ""
    print("\n".join(judge.explained(exercise, verdict, place)))
    if verdict.blank:
        print(f"\n{textwrap.indent(text, '    ').rstrip()}{page(exercise)}")
        if known := helpers.told(exercise):
            print("\n## What is there\n\nThe project's own calls these; yours need not.\n\n"
                  + "\n".join(known))
    if printed.strip():
        lines = printed.strip().splitlines()
        print("\nIt printed:\n" + "\n".join("  " + line for line in lines[-20:]))
    if verdict.good:
        student.remember(done={exercise.name: text})
        after = [e.name for e in course.load().values()
                 if student.state(e, student.progress()) in student.OPEN]
        if student.ANSWERS.exists():
            print(f"\nThe question of exercises/{exercise.name}.md: {question(exercise)}")
            print(f"\nNext: python -m exercises check {after[0]}" if after else
                  "\nAll of them are done.")
            student.remember(last=after[0] if after else exercise.name)
    return verdict.good


def question(exercise):
    return page(exercise).partition("## A question")[2].strip()


def do_check(words):
    names, _ = arguments(words, ())
    good = [told(exercise) for exercise in last(names, True)]
    raise SystemExit(0 if all(good) else 1)


def do_watch(words):
    names, flags = arguments(words, ("--times",))
    if not flags.get("times", "0").isdecimal():
        stop(f"--times={flags['times']}: expected a whole number")
    exercises, times = last(names, True), int(flags.get("times", 0))
    seen, done = None, 0
    files = ", ".join(dict.fromkeys(e.file for e in exercises))
    print(f"watching {files} (Ctrl-C ends it)", flush=True)
    while not times or done < times:
        now = [(ROOT / e.file).read_bytes() if (ROOT / e.file).exists() else b"" for e in exercises]
        if now != seen:
            seen, done = now, done + 1
            for exercise in exercises:
                print(f"\n{time.strftime('%H:%M:%S')}")
                try:
                    told(exercise)
                except SystemExit as error:  # half a line, saved: the next save is looked at again
                    print(error)
            sys.stdout.flush()
        time.sleep(0.3)


def do_hint(words):
    names, _ = arguments(words, ())
    exercise, = last(names)
    n, hint = student.next_hint(exercise)
    print(f"{exercise.name}, hint {n} of {len(exercise.hints)}: {hint}")


def do_diff(words):
    names, flags = arguments(words, ("--reference",))
    exercise, = last(names)
    if "reference" in flags and student.state(exercise, student.progress()) != "done":
        stop(f"first `python -m exercises check {exercise.name}`: the project's own function is "
             "shown when yours is right")
    print(student.difference(exercise, "reference" in flags) or "no difference", end="")


def do_reset(words):
    names, _ = arguments(words, ())
    student.here()
    if len(names) != 1:
        stop("reset which exercise? Your text of it is kept, but the hole comes back")
    exercise = student.exercise_of(names[0])
    copy = student.put(exercise, student.as_it_began(exercise))
    print(f"{exercise.file}: `{exercise.function}` is a hole again; your file as it was is {copy}")


def do_bug(words):
    from exercises import hunt
    names, flags = arguments(words, ("--seed",))
    student.here()
    if names == ["check"]:
        raise SystemExit(0 if hunt.check() else 1)
    if names:
        stop("bug, or bug check")
    hunt.plant(flags.get("seed", ""))


def do_grade(words):
    from exercises import grading
    folders, flags = arguments(words, ("--json", "--csv", "--junit", "--workers",
                                       "--exercises", "--seconds", "--megabytes"))
    raise SystemExit(grading.main(folders, flags))


def do_export(words):
    from exercises import exporting
    names, flags = arguments(words, ("--into", "--notebooks"))
    exporting.main(names, flags)


VERBS = {name.removeprefix("do_"): function for name, function in list(globals().items())
         if name.startswith("do_")}


def main(argv=None):
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] == "help" or {"-h", "--help"} & set(words):
        print(__doc__.strip())
        raise SystemExit(0 if words else 1)
    if words[0] not in VERBS:
        stop(f"no command {words[0]!r}: one of {', '.join(VERBS)}")
    try:
        VERBS[words[0]](words[1:])
    except cutting.Gone as error:
        stop(f"the exercises do not fit this version of the project: {error}")


if __name__ == "__main__":
    main()
