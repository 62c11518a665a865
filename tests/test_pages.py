"""What the pages show is so: their tables, their code, their commands, their pictures and links.

Their numbers are those of the included weights. Who trains overwrites some of these, as the README
says: what such a file was measured for is skipped.
"""

import hashlib
import re
import shlex
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import results
from conftest import ROOT

import main

README, GALLERY = (page.read_text(encoding="utf-8") for page in results.PAGES)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SUMS = (ROOT / "weights/SHA256SUMS").read_text(encoding="utf-8").splitlines()
INCLUDED = {name: digest for digest, name in (line.split("  ") for line in SUMS)}


def included(path):
    """Skip the test if this file of weights is not the included one."""
    file = ROOT / path
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    if digest != INCLUDED[file.name]:
        pytest.skip(f"{path} is not the included file; `git checkout weights` brings it back")


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+(?:e-\d+)?", text)]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with a copy of the weights, in which what the README shows is run."""
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", results.PAGES, ids=["README", "gallery"])
def test_the_tables_are_those_of_the_results(page):
    """The tables in the pages are what res/results.py makes of its files of numbers."""
    text = page.read_text(encoding="utf-8")
    assert text.count("made by res/results.py -->") == text.count("<!-- end -->") > 1
    rows = (results.RESULTS, results.PLATEAU, results.STUCK)
    assert results.filled(text, results.blocks(*map(results.read_rows, rows))) == text


SEED_0 = [each for each in results.measurements() if each.seed == 0]


@pytest.mark.parametrize("measurement", SEED_0, ids=lambda each: f"{each.flags} {each.shots}")
def test_results_are_those_of_the_weights(measurement):
    """The results of every run with seed 0 are measured again: those of its included weights."""
    included(measurement.file())
    assert results.differences(results.measure(measurement)) == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1])
def test_every_block_of_the_readme_runs(folder, capsys, block):
    """Where an implementation is checked, it agrees to the last digits."""
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    if "def yours(" in block:
        assert [float(line.split()[-1]) < 1e-13 for line in printed] == [True, True, True]


def test_the_algorithm_is_a_file_quoted_whole():
    assert (ROOT / "tests/maml.py").read_text(encoding="utf-8") in BLOCKS


def test_the_first_measurement_prints_what_is_shown(folder, capsys):
    """By the program itself, so in float64, unlike the tables."""
    included("weights/w(k=10).pt")
    Path("weights", "w(k=10,inner_steps=0).pt").unlink(missing_ok=True)  # its lines are not shown
    main.main(["--test"])
    shown = re.search(r"```\n(MAML, .*?)```", README, re.DOTALL)[1].splitlines()
    lines = capsys.readouterr().out.splitlines()[2 : 2 + len(shown)]
    for line, expected in zip(lines, shown, strict=True):
        assert re.sub(r"\d", "", line) == re.sub(r"\d", "", expected)
        assert numbers(line) == pytest.approx(numbers(expected), abs=0.0075)


def test_commands_are_understood():
    """Every command of the pages parses."""
    commands = re.findall(r"python3? main\.py(?! --help)([^`\n&|]*)", README + GALLERY)
    assert len(commands) > 10
    for command in commands:
        main.parse(shlex.split(command))


def test_every_link_and_picture_has_its_file():
    """Links within the pages lead to a file, and to a section that is there."""
    anchors = {}
    for page, text in zip(results.PAGES, (README, GALLERY), strict=True):
        titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
        anchors[page] = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
    pattern = r"\]\((?!http)([^)]*(?:\([^)]*\))*[^)]*)\)|src=\"([^\"]*)\""
    for page, text in zip(results.PAGES, (README, GALLERY), strict=True):
        for link in re.findall(pattern, text):
            path, _, anchor = unquote("".join(link)).partition("#")
            target = (page.parent / path).resolve() if path else page
            assert target.exists(), path
            assert not anchor or anchor in anchors[target], anchor
