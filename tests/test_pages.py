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

import check
import pytest
import results
from conftest import ROOT

import main

README, GALLERY = (page.read_text(encoding="utf-8") for page in results.PAGES)
FENCED = re.findall(r"^```(\w*)\n(.*?)^```$", README + GALLERY, re.MULTILINE | re.DOTALL)
BLOCKS = [text for language, text in FENCED if language == "python"]
OUTPUTS = [text for language, text in FENCED if not language]
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


def block_with(words):
    """The only block of the pages that has these words."""
    (block,) = (block for block in BLOCKS if words in block)
    return block


@pytest.fixture
def printed(monkeypatch, tmp_path, capsys):
    """What a block prints, in a folder with a copy of the weights and check.npz."""
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    check.command([])
    capsys.readouterr()

    def call(block, **names):
        exec(compile(block, "README.md", "exec"), names)
        return capsys.readouterr().out

    return call


@pytest.mark.parametrize("page", results.PAGES, ids=["README", "gallery"])
def test_the_tables_are_those_of_the_results(page):
    """The tables in the pages are what res/results.py makes of its files of numbers."""
    text = page.read_text(encoding="utf-8")
    assert text.count("made by res/results.py -->") == text.count("<!-- end -->") > 1
    rows = results.read_rows(results.RESULTS), results.read_rows(results.runs.CSV)
    assert results.filled(text, results.blocks(*rows)) == text


SEED_0 = [each for each in results.measurements() if each.seed == 0]


@pytest.mark.parametrize("measurement", SEED_0, ids=lambda each: f"{each.flags} {each.shots}")
def test_results_are_those_of_the_weights(measurement):
    """The results of every run with seed 0 are measured again: those of its included weights."""
    included(measurement.file())
    assert results.differences(results.measure(measurement)) == []


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[-1])
def test_every_block_runs(printed, block):
    printed(block)


def test_the_losses_of_the_default_run_are_those_shown(printed):
    shown = re.search(r"mean query loss \|(.*)\|", README)[1]
    printed_losses = numbers(printed(block_with("for _ in range(1000)")))
    assert printed_losses == pytest.approx([float(x) for x in shown.split("|")], rel=5e-9)


def test_the_algorithm_is_a_file_and_prints_what_is_shown(printed):
    """Rounding moves what it learns a little."""
    block = (ROOT / "tests/maml.py").read_text(encoding="utf-8")
    assert block in BLOCKS
    (shown,) = (output for output in OUTPUTS if "one step later" in output)
    output = printed(block, __name__="__main__")
    assert re.sub(r"\d\.\d+", "", output) == re.sub(r"\d\.\d+", "", shown)
    assert numbers(output) == pytest.approx(numbers(shown), rel=0.25)


CHANGES = [  # of the block that makes yours.npz, in the order of what is said of them
    {},
    {"- 0.01 * g": "- 0.1 * g", "(sum(losses), ": "(sum(losses) / 10, "},
    {"- q_y)": "- q_y[:, 0])", "create_graph=True": "create_graph=False"},
]


def test_what_is_said_of_an_implementation_is_what_is_shown(printed, capsys):
    shown = [output for output in OUTPUTS if output.startswith("This is ")]
    for changes, expected in zip(CHANGES, shown, strict=True):
        block = block_with("yours.npz")
        for old, new in changes.items():
            assert block.count(old) == 1
            block = block.replace(old, new)
        printed(block)
        with pytest.raises(SystemExit) as end:
            check.command(["yours.npz"])
        assert end.value.code == bool(changes)
        left = re.compile(r"left: .*?\)")  # is of rounding
        assert left.sub("", capsys.readouterr().out) == left.sub("", expected)


def test_a_stuck_run_goes_on_as_is_said(printed):
    included("weights/w(k=10,seed=7,first_order).pt")
    means = numbers(printed(block_with("for first_order in")))
    assert means == pytest.approx([4.43, 4.53, 3.99, 3.82], abs=0.1)


def test_the_first_measurement_prints_what_is_shown(printed):
    """By the program itself, so in float64, unlike the tables."""
    included("weights/w(k=10).pt")
    Path("weights", "w(k=10,inner_steps=0).pt").unlink(missing_ok=True)  # its lines are not shown
    output = printed("main.main(['--test'])", main=main)
    (shown,) = (output.splitlines() for output in OUTPUTS if output.startswith("MAML, "))
    lines = output.splitlines()[2 : 2 + len(shown)]
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
