"""What the project's own function uses of the project: names that a student would have to look for.

    lines = told(exercise)          a signature, where it is, and what it does, for each
"""
import ast
import textwrap

from exercises import cutting

METHODS = {"world": ("runtime/world.py", "World")}  # what a name stands for in all scripts
CALLED = dict.fromkeys(("policy", "model", "value_model"), ("model.py", "GPT", "forward"))


def used(exercise):
    """The names of what the cut part calls, in order: `rank`, `world.share`."""
    source = cutting.reference(exercise.file)
    node, lines = cutting.node_of(source, exercise.function), cutting.lines_in(source)
    if exercise.part:
        node = next(n for n in ast.walk(node) if isinstance(n, ast.stmt)
                    and lines[n.lineno - 1].strip().startswith(exercise.part))
    calls = [n for n in ast.walk(node) if isinstance(n, ast.Call)]
    return list(dict.fromkeys(ast.unparse(n.func) for n in sorted(
        calls, key=lambda n: (n.lineno, n.col_offset)) if isinstance(n.func, (
            ast.Name, ast.Attribute)) and ast.unparse(n.func).count(".") < 2))


def found(path, source):
    """The definition of (name of a class, name of a method) or (name,) in a source, or None."""
    body, node = ast.parse(source).body, None
    for name in path:
        node = next((n for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))
                     and n.name == name), None)
        body = node.body if node else []
    return node


def place_of(name, file):
    """(file, path of the definition in it) of a name that a file of the project uses."""
    if name in CALLED:
        return CALLED[name][0], CALLED[name][1:]
    owner, _, method = name.partition(".")
    if owner in METHODS:
        return METHODS[owner][0], (METHODS[owner][1], method)
    for node in ast.parse(cutting.reference(file)).body:
        if isinstance(node, ast.ImportFrom) and name in [a.asname or a.name for a in node.names]:
            return f"{node.module.replace('.', '/')}.py", (name,)
    return file, (name,)


def told(exercise):
    """The lines that say what helps; [] where nothing of the project does."""
    out = []
    for name in used(exercise):
        file, path = place_of(name, exercise.file)
        try:
            node = found(path, cutting.reference(file))
        except (OSError, cutting.Gone):
            continue  # a package of others, or of the project's packages as a whole
        if node is None or path == (exercise.function,):
            continue
        init = found((*path, "__init__"), cutting.reference(file)) if isinstance(
            node, ast.ClassDef) else node
        arguments = ast.unparse(init.args).removeprefix("self, ").removeprefix("self")
        out += [f"    {name}({arguments})    {file}",
                textwrap.indent(ast.get_docstring(node) or "", " " * 8)]
    return out
