"""README is true: its Python runs and prints what it shows, its commands work, its tables are complete."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex

import pytest
from fresh import ROOT

import fastconv
from fastconv import cli, grad, registry
from fastconv.environment import VARIABLES

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if line.startswith("fastconv ")]

# Times, memory and ratios are the machine's, and stand in README as an example, as do who wins, and the order of rows.
QUANTITY = re.compile(r"\d[\d.e+-]* (s|ms|us|B|KiB|MiB|times)\b")
CANDIDATE = re.compile(r"^(?:    |  ->)(\w+/\w+) +(?:# \w+|-) .*\n", re.MULTILINE)
VERDICT = re.compile(r"^  \w+/\w+: predicted # \w+, # times faster than \w+/\w+$", re.MULTILINE)


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch, tmp_path):
    """Nothing has been measured, and what README registers is taken out again."""
    monkeypatch.setenv("FASTCONV_CACHE_DIR", str(tmp_path))
    before = {algorithm.key for algorithm in registry.algorithms()}
    yield
    for algorithm in registry.algorithms():
        if algorithm.key not in before:
            registry.unregister(algorithm.key)


def sections():
    """Yield each Python block with what README says that it prints."""
    for (kind, text), (next_kind, next_text) in zip(BLOCKS, [*BLOCKS[1:], ("", "")], strict=True):
        if kind == "python":
            yield text, next_text if next_kind == "text" else ""


def check_output(shown: str, printed: str) -> None:
    """Compare line by line but for quantities; ``...`` stands for anything, lines included."""
    shown, printed = (VERDICT.sub("  verdict", QUANTITY.sub(r"# \1", text)) for text in (shown, printed))
    assert set(CANDIDATE.findall(shown)) <= set(CANDIDATE.findall(printed))
    shown, printed = (CANDIDATE.sub("", text) for text in (shown, printed))
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(shown, printed, flags), f"README shows\n{shown}\nit prints\n{printed}"


def test_python_blocks_print_what_is_shown():
    names: dict[str, object] = {}
    for number, (code, shown) in enumerate(sections()):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"README.md, Python block {number}", "exec"), names)
        check_output(shown, printed.getvalue())


def test_every_block_is_code_output_or_commands():
    kinds = [kind for kind, _ in BLOCKS]
    assert set(kinds) == {"python", "text", "sh"}
    assert README.count("```") == 2 * len(kinds)
    for before, kind in zip(["", *kinds], kinds, strict=False):
        assert kind != "text" or before == "python", "a text block shows what the Python block before it prints"


def test_a_difference_is_noticed():
    check_output("took 1.5 ms\n  ...\nend\n", "took 22 ms\n  one\n  two\nend\n")
    row, other = "    naive/loops  8 us  -\n", "  ->numba/direct  9 ms  -\n"
    check_output(row + other, other + row)
    different = (("7. 12.\n", "7. 13.\n"), ("took 1.5 ms\n", "took 1.5 s\n"), ("", "more\n"), (row, other))
    for shown, printed in different:
        with pytest.raises(AssertionError):
            check_output(shown, printed)


def test_commands_work(monkeypatch, tmp_path, capsys):
    """In order, since one reads what another wrote."""
    monkeypatch.chdir(tmp_path)
    assert COMMANDS
    for line in COMMANDS:
        assert cli.main(shlex.split(line)[1:]) == 0, f"{line}\n{capsys.readouterr().err}"
        assert capsys.readouterr().out


def test_table_of_variables_is_theirs():
    rows = re.findall(r"^\| `(FASTCONV_\w+)` \| (.*) \|$", README, re.MULTILINE)
    assert rows == [(name, variable.meaning) for name, variable in VARIABLES.items()]


def test_table_of_functions_is_complete():
    table = README.partition("## Functions")[2].partition("\n## ")[0]
    listed = set(re.findall(r"`([\w.]+)`", "\n".join(re.findall(r"^\| (`.*?`) \|", table, re.MULTILINE))))
    functions = {name for name in fastconv.__all__ if callable(getattr(fastconv, name)) and name[0].islower()}
    gradients = {f"grad.{name}" for name, value in vars(grad).items() if callable(value) and hasattr(value, "lower")}
    assert listed == functions | gradients | {"testing.check_algorithm"}


def test_table_of_backends_is_complete():
    table = README.partition("\n| backend |")[2].partition("\n\n")[0]
    registered = tuple(dict.fromkeys(algorithm.backend for algorithm in registry.algorithms()))
    assert tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == registered


def test_contributing_quotes_what_is_there():
    """Its code is found in the files as it stands, and the files that it names are there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "fastconv").rglob("*.py")]
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        assert any(block in source for source in sources), f"CONTRIBUTING quotes what is nowhere:\n{block}"
    named = set(re.findall(r"`([\w./]+/(?:[\w.]+\.\w+)?)`", text))
    assert named
    assert {name for name in named if not (ROOT / name).exists()} == set()
