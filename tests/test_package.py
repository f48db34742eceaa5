"""The wheel, installed where there is no checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from test_layers import FILES, imports

import nas
from nas import shipped

ROOT = Path(nas.__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def bare(requirement: str) -> str:
    """The distribution name of a requirement such as `torch>=2.14.1,<2.15`."""
    return re.split(r"[^\w-]", requirement)[0].lower()


def third_party_imports() -> set[str]:
    tops = {
        name.split(".")[0] for path in FILES for _, name in imports(ast.parse(path.read_text()))
    }
    return tops - set(sys.stdlib_module_names) - {"nas"}


def test_every_library_that_the_package_imports_is_declared():
    extras = sum(PROJECT["optional-dependencies"].values(), [])
    declared = {bare(requirement) for requirement in PROJECT["dependencies"] + extras}
    providers = packages_distributions()
    for top in third_party_imports():
        assert {name.lower() for name in providers.get(top, [top])} & declared, top


def test_every_library_that_is_declared_is_imported():
    providers = packages_distributions()
    used = {name.lower() for top in third_party_imports() for name in providers.get(top, [])}
    assert {bare(requirement) for requirement in PROJECT["dependencies"]} <= used


def test_every_lower_bound_is_met_by_what_the_tests_run_with():
    done = subprocess.run([sys.executable, "-m", "pip", "check"], capture_output=True, text=True)
    assert "tinyaudio-nas" not in done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("tinyaudio_nas-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, borrows the libraries and cannot see the checkout.

    A path line in a .pth file adds the libraries' folder without reading the .pth files there, so
    that the editable installation stays unseen.
    """
    environment = tmp_path_factory.mktemp("elsewhere") / "environment"
    venv.create(environment, with_pip=False)
    pip("--python", str(environment / "bin/python"), "install", "--no-deps", str(wheel))
    site = next(environment.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(str(Path(pytest.__file__).parent.parent))
    return environment


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run(installed: Path, *command: str) -> str:
    """stdout of a command of the environment, run in an empty folder."""
    elsewhere = installed.parent / "empty"
    elsewhere.mkdir(exist_ok=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    program, *arguments = command
    done = subprocess.run(
        [str(installed / "bin" / program), *arguments],
        capture_output=True,
        text=True,
        cwd=elsewhere,
        env=clean,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_every_built_in_file_and_no_study_s_output(wheel):
    content = zipfile.ZipFile(wheel).namelist()
    for kind in ("spaces", "targets", "studies"):
        for path in shipped.folder(kind).glob("*.toml"):
            assert f"nas/_shipped/{path.parent.name}/{path.name}" in content
    shipped_files = [name for name in content if name.startswith("nas/_shipped/")]
    assert all(name.count("/") == 3 and name.endswith(".toml") for name in shipped_files)
    information = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    assert {name.split("/")[0] for name in content} == {"nas", information}


def test_the_installed_package_is_not_the_checkout(installed):
    where = run(installed, "python", "-c", "import nas; print(nas.__file__)")
    assert Path(where.strip()).is_relative_to(installed)


@pytest.mark.parametrize("kind", ["spaces", "targets", "studies"])
def test_the_installed_command_lists_what_the_checkout_has(installed, kind):
    listed = run(installed, "nas", "list", kind)
    assert shipped.names(kind)
    assert all(name in listed for name in shipped.names(kind))


def test_the_installed_package_loads_a_built_in_target(installed):
    code = "from nas import shipped; print(shipped.load_target('host').threads)"
    assert run(installed, "python", "-c", code) == "1\n"
