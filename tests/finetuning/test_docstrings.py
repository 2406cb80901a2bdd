"""Demonstrations out of Python source."""

import ast
import sysconfig
import textwrap
from pathlib import Path

import pytest

from parlance.finetuning import docstrings
from parlance.finetuning.docstrings import (
    collect_demonstrations,
    drop_leaks,
    extract_demonstrations,
    first_sentence,
    sentence_end,
)

SOURCE = '''\
import functools

class Reader:
    @property
    @functools.cache
    def name(self):
        """The name of the file.

        More about it.
        """

        # Comments stay.
        return self._name  # this one too
'''


def only(source: str) -> dict:
    (record,) = extract_demonstrations(textwrap.dedent(source), "module.py")
    return record


def test_prompt_is_the_exact_source_without_docstring():
    record = only(SOURCE)
    assert record["prompt"] == (
        "@property\n@functools.cache\ndef name(self):\n    # Comments stay.\n    return self._name  # this one too"
    )
    assert record["completion"] == "The name of the file."
    assert record["metadata"] == {"id": "module.py:6", "function": "name", "module": "module.py"}


def test_nested_and_async_functions_are_found_in_source_order():
    source = '''
        async def outer(x):
            """Wait for the thing."""
            def inner(y):
                """Add one to it."""
                return y + 1
            return inner(x)
        def last(z):
            """Come after the others."""
            return z
    '''
    records = extract_demonstrations(textwrap.dedent(source), "m")
    assert [record["metadata"]["function"] for record in records] == ["outer", "inner", "last"]
    assert records[1]["prompt"] == "def inner(y):\n    return y + 1"
    assert "Add one to it" in records[0]["prompt"]  # somebody else's docstring is source like any other


def test_odd_layouts():
    # Non-ASCII text before the docstring's end, form feeds, Windows line ends, a comment behind the docstring.
    source = 'x = "äöü"\n\x0c\ndef f(a):\r\n    """Use the naïve way."""  # änd this\r\n    return "ü"\r\n'
    assert collect_demonstrations([(source, "m")]).counts == {docstrings.NOT_ASCII: 1}
    record = only(source.replace("naïve", "naive"))
    assert record["prompt"] == 'def f(a):\n    # änd this\n    return "ü"'
    # Text less indented than the function stays where it is.
    record = only('class A:\n    def f(self, a):\n        """Return a long text."""\n        return """\nleft\n"""\n')
    assert record["prompt"] == 'def f(self, a):\n    return """\nleft\n"""'


def test_every_reason_is_reported():
    documents = [
        ("def f(:\n", "syntax"),
        (
            textwrap.dedent('''
                def a(): pass
                def b(self): """Nothing but this sentence."""
                def c(x): """One line for everything."""; return x
                def d(x):
                    """Only the signature is left."""
                def e(x):
                    """Too short."""
                    return x
                def f(x):
                    """Spell it façade from here."""
                    return x
                def g(x):
                    """>>> g(1)
                    1
                    """
                    return x
                def h(x):
                    """Do a lot of work."""
                    return "long" + "long" + "long" + "long" + "long" + "long" + "long" + "long" + "long"
            ''')
            + f'def i(x):\n    """{"word " * 31}."""\n    return x\n',
            "module",
        ),
        ('def p(x):\n    """Same for all three."""\n    return x\n' * 2, "twice"),
        ("".join(f'def q{i}(x):\n    """See the base class."""\n    return x\n' for i in range(5)), "common"),
    ]
    extraction = collect_demonstrations(documents, max_source_chars=80, max_repeats=3)
    assert extraction.counts == {
        "kept": 5,
        docstrings.NO_DOCSTRING: 1,
        docstrings.BARE_SIGNATURE: 1,
        docstrings.SHARED_LINE: 1,
        docstrings.TOO_LONG: 1,
        docstrings.NO_PROSE: 1,
        docstrings.TOO_FEW_WORDS: 1,
        docstrings.TOO_MANY_WORDS: 1,
        docstrings.NOT_ASCII: 1,
        docstrings.DUPLICATE: 1,
        docstrings.TOO_COMMON: 2,
        docstrings.SYNTAX_ERROR: 1,
    }
    assert len(extraction.records) == 5
    assert extraction.records[0]["prompt"] == "def d(x):"
    assert set(extraction.counts) == {docstrings.KEPT, *docstrings.REASONS}


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return X.  More.", "Return X."),
        ("Return X\n\nMore text. And more.", "Return X."),
        ("Use a suffix, e.g. Foo or i.e. Bar, here. Next.", "Use a suffix, e.g. Foo or i.e. Bar, here."),
        ("Works since version 3.11 of Python 3. Before, it did not.", "Works since version 3.11 of Python 3."),
        ("Call os.path.join on both.", "Call os.path.join on both."),
        ("Set the state. state is a string.", "Set the state."),
        ("Sort a, b, etc. in place. Then stop.", "Sort a, b, etc. in place."),
        ("Sort a, b, etc. The rest stays.", "Sort a, b, etc."),
        ("Take the (first. Or second) one. Go.", "Take the (first. Or second) one."),
        ("Remove '/' and '.' elements of a path. Go.", "Remove '/' and '.' elements of a path."),
        ("Is it true? Nobody knows.", "Is it true?"),
        ("A first line\n    that goes\n    on. And on.", "A first line that goes on."),
        ("\n    Begin one line lower.\n    ", "Begin one line lower."),
        ("name(a, b=(1, 2)) -> c\n\nReturn the c of it.", "Return the c of it."),
        ("name(a, b): return the c of it", "return the c of it."),
        ("name(a) -- return the c of it", "return the c of it."),
        ("Return the flag\nIf there is none, return None", "Return the flag."),
        (
            "Return the output of the\nPython compiler of this very long line.",
            "Return the output of the Python compiler of this very long line.",
        ),
        ("Return one of\n- this\n- that", "Return one of."),
        ("Return the value\n:param x: the x", "Return the value."),
        ("Return one of the following:\n\n- a\n- b", ""),
        (">>> f(1)\n1", ""),
        ("tag = [CFWS] text", ""),
        ("x -> y", ""),
        ("", ""),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


def test_sentence_end():
    assert sentence_end("One. Two.") == 4
    assert sentence_end("No end here") is None
    assert sentence_end("One two.") == 8


def test_drop_leaks_compares_prompts_without_white_space():
    train = [{"prompt": "def f(x):\n    return x"}, {"prompt": "def g(x):\n    return x"}]
    heldout = [{"prompt": "def f(x):\n  return  x"}]
    assert drop_leaks(train, heldout) == train[1:]
    assert drop_leaks(train, []) == train


def test_on_the_standard_library():
    """Every prompt of some real modules parses, has lost its docstring and nothing else."""
    root = Path(sysconfig.get_path("stdlib"))
    names = ("argparse.py", "shutil.py", "pathlib.py", "textwrap.py", "asyncio/tasks.py", "heapq.py")
    documents = [((root / name).read_text(), name) for name in names]
    records = collect_demonstrations(documents).records
    assert len(records) > 100
    trees = {name: ast.parse(text) for text, name in documents}
    originals = {
        (name, node.name, node.lineno): node
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    compared = 0
    for record in records:
        metadata = record["metadata"]
        original = originals[metadata["module"], metadata["function"], int(metadata["id"].rpartition(":")[2])]
        original.body = original.body[1:]
        if not original.body:
            continue
        (parsed,) = ast.parse(record["prompt"]).body
        # Dedenting changes strings over several lines, and nothing else.
        if not any(isinstance(node, ast.Constant) and "\n" in str(node.value) for node in ast.walk(original)):
            assert ast.dump(parsed) == ast.dump(original)
            compared += 1
        assert len(record["completion"].split()) >= 3
        assert record["completion"][-1] in ".!?)'\"`*]"
    assert compared > 100
