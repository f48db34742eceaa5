"""The shape of the package: a file imports only from files above it, one library per file."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import nas

PACKAGE = Path(nas.__file__).parent
ORDER = """
    errors arch target device record rungs estimates compliance shipped settings space published
    pareto
    cache artifacts audio clips layouts splits scenes dataset features
    blocks network trace plain ledger mcu cost augment train finetune foreign calibrate slim
    quantize score measure
    pipeline gate formats folds warm storage sampler study workers progress engine figure page
    report
    classifier arena csource firmware card bundle
    api printing cli __init__ __main__
""".split()
OWNER = {
    "boto3": ("artifacts",),
    "nncf": ("quantize",),
    "onnxruntime": ("measure",),
    "optuna": ("storage", "sampler", "study"),  # its databases, samplers, studies
    "plotly": ("report",),
}
HEAVY = {"torch", "torchaudio", "nncf", "onnx", "onnxruntime", "optuna", "plotly", "scipy", "numpy"}
# What lies in assets is shipped to users as it is and never imported here.
FILES = sorted(p for p in PACKAGE.rglob("*.py") if PACKAGE / "assets" not in p.parents)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of every import, those inside functions and `from nas import x` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = ".".join(filter(None, ["nas" if node.level else "", node.module]))
            if module == "nas":
                yield from ((node.lineno, f"nas.{alias.name}") for alias in node.names)
            else:
                yield node.lineno, module


def violations(name: str, source: str) -> list[str]:
    """What `source`, as nas/<name>.py, imports against the rules; one sentence each."""
    found = []
    for line, imported in imports(ast.parse(source)):
        top, _, rest = imported.partition(".")
        inner = rest.split(".")[0] or "__init__"
        if top == "nas" and inner != "__version__" and rank(inner) >= rank(name):
            found.append(f"nas/{name}.py:{line} imports nas.{inner}, which is not above it")
        if name not in OWNER.get(top, (name,)):
            owners = " and ".join(f"nas/{owner}.py" for owner in OWNER[top])
            found.append(f"nas/{name}.py:{line} imports {top}: only {owners} may")
    return found


def rank(name: str) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_files_above_it_and_leaves_each_library_to_its_owner(path):
    assert path.parent == PACKAGE, f"{path.relative_to(PACKAGE)}: the package is flat"
    assert path.stem in ORDER, f"nas/{path.name} has no place in ORDER in tests/test_layers.py yet"
    assert violations(path.stem, path.read_text()) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("arch", "from nas.cost import estimate"),
        ("arch", "def f():\n    from nas import cost"),
        ("arch", "from . import cost"),
        ("arch", "from .cost import estimate"),
        ("arch", "import nas.cost as cost"),
        ("arch", "import nas.nowhere"),
        ("cost", "import nas"),
        ("cost", "def f():\n    import optuna.trial"),
        ("cost", "from onnxruntime.quantization import quantize_static"),
    ],
)
def test_the_rule_notices_each_way_of_breaking_it(name, source):
    assert len(violations(name, source)) == 1


def test_the_rule_lets_files_above_the_owned_library_and_the_version_pass():
    source = "import optuna\nfrom nas import __version__, pipeline\nfrom .cost import estimate"
    assert violations("study", source) == []


UNPICKLERS = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickles(source: str) -> list[str]:
    """Every way in which `source` could run code that a data file holds."""
    tree = ast.parse(source)
    found = [name for _, name in imports(tree) if name.split(".")[0] in UNPICKLERS]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        unsafe = any(word.arg == "allow_pickle" for word in call.keywords)
        # Connection.recv, unlike recv_bytes, unpickles what comes over a pipe.
        found += [name] * (unsafe or name == "torch.load" or name.endswith((".recv", "_pickle")))
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_nothing_is_unpickled(path):
    assert unpickles(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('a.pt', weights_only=True)",
        "np.load('a.npy', allow_pickle=flag)",
        "pandas.read_pickle('a')",
        "pipe.recv()",
    ],
)
def test_each_way_of_unpickling_is_noticed(source):
    assert len(unpickles(source)) == 1


def heavy_modules_after(statement: str, *argv: str) -> set[str]:
    """The slow libraries that a fresh interpreter holds after running `statement`."""
    code = (
        f"import sys; sys.argv = {['nas', *argv]!r}\n"
        f"try:\n    {statement}\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "statement, argv",
    [
        ("import nas", ()),
        ("import nas.shipped", ()),
        ("import nas.cli", ()),
        ("import nas.cli; nas.cli.main()", ("--help",)),
        ("import nas.cli; nas.cli.main()", ("list", "targets")),
    ],
)
def test_the_command_line_starts_without_any_slow_library(statement, argv):
    assert heavy_modules_after(statement, *argv) == set()
