"""`make bench`, run on a tree of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHELL = Path(__file__).parent / "bench" / "__main__.py"
BENCH = '''"""Doubling of numbers

Twice of each number.
"""
from pathlib import Path

def cases():
    for number in (1, 2, 3):
        yield f"number {number}", lambda number=number: double(number)

def double(number):
    if number == 2 and not Path(__file__).with_name("repaired").exists():
        raise ValueError("two is broken")
    return {"double": 2 * number, "half": number / 3}
'''


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "tests" / "bench"
    folder.mkdir(parents=True)
    shutil.copy(SHELL, folder)
    (folder / "doubling.py").write_text(BENCH)
    return folder


def run(bench: Path, *names: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(bench), *names], capture_output=True, text=True, cwd=bench
    )


def page(bench: Path) -> str:
    return (bench.parent.parent / "docs" / "benchmarks.md").read_text()


def test_a_failed_row_leaves_the_others_and_only_it_is_measured_again(bench):
    first = run(bench)
    assert first.returncode == 1
    assert "two is broken" in first.stderr
    assert "| number 1 | 2 | 0.3333 |" in page(bench) and "number 2" not in page(bench)
    (bench / "repaired").touch()
    second = run(bench, "doubling")
    assert (second.returncode, second.stderr) == (0, "doubling: number 2 ...\n")
    assert "| number 2 | 4 | 0.6667 |" in page(bench) and "| number 3 | 6 | 1 |" in page(bench)
    assert "ValueError" not in page(bench)


def test_the_page_names_title_text_date_machine_versions_and_command(bench):
    run(bench)
    for part in ("## Doubling of numbers\n", "Twice of each number.", "cores", "torch 2", "20"):
        assert part in page(bench)
    assert "`make bench ONLY=doubling`" in page(bench)


def test_rows_of_another_machine_are_measured_again(bench):
    (bench / "repaired").touch()
    run(bench)
    rows = bench / "rows" / "doubling.jsonl"
    rows.write_text(rows.read_text().replace("cores", "cores of another machine"))
    assert run(bench).stderr.count("...") == 3
    assert "another machine" not in page(bench)


def test_rows_of_two_machines_in_one_table_are_told_apart(bench):
    run(bench)
    rows = bench / "rows" / "doubling.jsonl"
    assert "[" not in page(bench)
    rows.write_text(rows.read_text().replace("cores", "cores of another machine", 1))
    first = rows.read_text().splitlines()[0] + "\n"
    (bench / "doubling.py").write_text(BENCH.replace("(1, 2, 3)", "(2, 3)"))
    run(bench)
    assert rows.read_text().startswith(first)
    assert "| number 1 [1] |" in page(bench) and "| number 3 [2] |" in page(bench)
    assert "cores of another machine" in page(bench).split(" [1]; ")[0]


def test_an_unknown_bench_is_refused_with_the_known_ones(bench):
    done = run(bench, "dubling")
    assert (done.returncode, done.stderr) == (2, "unknown bench dubling; known: doubling\n")
    assert not (bench / "rows").exists()
