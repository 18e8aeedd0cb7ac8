"""Functions in a source, by name: found, cut to a hole, replaced. The code has no marks.

    source = cut(source, "gae", "gae")        signature and docstring stay, the body is one line
"""
import ast
import importlib.util
import zipfile

from exercises import ANSWERS, ROOT


class Gone(LookupError):
    """A function that an exercise names is not in its file."""


def reference(file):
    """The project's own text of a file, in a student's copy too."""
    if ANSWERS.exists():
        with zipfile.ZipFile(ANSWERS) as answers:
            if file not in answers.namelist():
                raise Gone(f"{ANSWERS.name} has no {file}")
            return answers.read(file).decode("utf-8")
    return (ROOT / file).read_text("utf-8")


def decoded(content):
    """The bytes of a Python file as text, as Python decodes them: UTF-8 with or without a byte
    order mark, or what a coding line says. Raises SyntaxError or UnicodeDecodeError."""
    try:
        return importlib.util.decode_source(content)
    except LookupError as error:  # a codec that is not of texts, such as rot13
        raise SyntaxError(str(error)) from None


def lines_in(source):
    """Its lines as Python counts them: str.splitlines also splits at form feeds and U+2028."""
    return source.removesuffix("\n").split("\n")


def node_of(source, name):
    """The top-level function `name` of a source, the last one if there are several. Raises Gone,
    or SyntaxError."""
    found = [node for node in ast.parse(source).body
             if isinstance(node, ast.FunctionDef) and node.name == name]
    if not found:
        raise Gone(f"there is no function {name} any more")
    return found[-1]


def lines_of(node):
    """(first, last + 1) of a node's lines, counted from 0; decorators belong to a function."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    return first - 1, node.end_lineno


def text_of(source, name):
    """The text of a function, decorators included, ending with a line end."""
    first, end = lines_of(node_of(source, name))
    return "\n".join(lines_in(source)[first:end]) + "\n"


def replaced(source, name, text):
    """The source with another text in a function's place."""
    first, end = lines_of(node_of(source, name))
    lines = lines_in(source)
    return "\n".join([*lines[:first], *text.rstrip("\n").split("\n"), *lines[end:]]) + "\n"


def hole(exercise):
    """The one line that stands where the student is to write."""
    return f'raise NotImplementedError("exercise {exercise}: python -m exercises check {exercise}")'


def cut(source, name, exercise, part=""):
    """The source with a hole in the function `name`: its whole body but the docstring, or with
    `part` only the first statement in it that begins with these words."""
    node, lines = node_of(source, name), lines_in(source)
    if part:
        inside = [n for n in ast.walk(node) if isinstance(n, ast.stmt) and n is not node
                  and lines[n.lineno - 1].strip().startswith(part)]
        if not inside:
            raise Gone(f"{name} has no statement {part!r} any more")
        first, end = lines_of(inside[0])
        indent = " " * inside[0].col_offset
    else:
        documented = ast.get_docstring(node) is not None
        first = node.body[0].end_lineno if documented else node.body[0].lineno - 1
        end, indent = node.end_lineno, " " * node.body[0].col_offset
    return "\n".join([*lines[:first], indent + hole(exercise), *lines[end:]]) + "\n"


def same_code(a, b):
    """Whether two texts are the same code, whatever their comments, docstrings and layout. What is
    nested too deep to look at is not."""
    def bare(text):
        tree = ast.parse(text)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        return ast.dump(tree)

    try:
        return bare(a) == bare(b)
    except RecursionError:
        return False
