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
import numpy as np
import pytest
import results
import step
import torch
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
    (tmp_path / "weights").mkdir()
    for name in INCLUDED:
        shutil.copyfile(ROOT / "weights" / name, tmp_path / "weights" / name)
    monkeypatch.chdir(tmp_path)
    check.command([])
    capsys.readouterr()

    def call(block, **names):
        exec(compile(block, "README.md", "exec"), names)
        return capsys.readouterr().out

    return call


# Tables and numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("page", results.PAGES, ids=["README", "gallery"])
def test_the_tables_are_those_of_the_results(page):
    """The tables in the pages are what the scripts make of their files of numbers."""
    text = page.read_text(encoding="utf-8")
    assert text.count(" made by res/") == text.count("<!-- end -->") > 1
    rows, run_rows = results.read_rows(results.RESULTS), results.read_rows(results.runs.CSV)
    again = results.filled(text, results.blocks(rows, run_rows), "results.py")
    assert results.filled(again, step.tables(results.read_rows(step.CSV)), "step.py") == text


@pytest.mark.parametrize("flags", [results.MAML, results.PAPER, results.PRETRAINED])
def test_results_are_those_of_the_weights(flags):
    """Three of them are measured again here, with the tuned step size of the pretrained network."""
    run = results.Measurement(flags, 0, 10, tuned=flags in results.TUNED)
    included(run.file())
    assert results.differences(results.measure(run)) == []


def test_what_one_step_does_is_measured_again():
    included(results.Measurement(results.MAML, 0, 10).file())
    (known,) = results.chosen(results.read_rows(step.CSV), learner="√SSE", seed=0)
    (row,) = step.measure(("√SSE", 0))
    scores = [name for name in row if name not in ("learner", "seed", "points")]
    assert len(scores) == 7
    assert [known[name] for name in scores] == pytest.approx(
        [row[name] for name in scores], rel=0.02
    )


def test_the_first_lines_have_the_numbers_of_the_results():
    """The MSE before the step, after it, and after ordinary training and a tuned step: medians."""
    rows = results.read_rows(results.RESULTS)
    maml, pretrained = (
        np.median(results.scores(rows, flags, 10, tuned=flags in results.TUNED), axis=1)
        for flags in (results.PAPER, results.PAPER_PRETRAINED)
    )
    shown = numbers(README.split("(MSE)")[1])[:3]
    assert shown == [round(maml[0], 1), round(maml[1], 2), round(pretrained[1], 2)]


def test_the_lines_of_the_four_files_are_counted():
    files = [ROOT / f"{name}.py" for name in ("main", "net", "meta", "data")]
    lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    assert f"in four files, {lines} lines in all" in README


# Blocks -------------------------------------------------------------------------------------------


TESTED = ["__main__", "for _ in range(1000)", "yours.npz", "for first_order in"]  # below
OTHERS = [block for block in BLOCKS if not any(words in block for words in TESTED)]


@pytest.mark.parametrize("block", OTHERS, ids=lambda block: block.strip().splitlines()[-1])
def test_every_block_runs(printed, block):
    """Those that print a loss at the start and at the end learn."""
    losses = numbers(printed(block))
    if "losses[-50:]" in block:
        first, last = losses
        assert last < 0.75 * first


def test_reptile_goes_downhill_to_the_fast_weights():
    """Its gradient is the sum over tasks of θ − θ'."""
    names = {}
    exec(block_with("class Reptile(Meta)").split("meta, batches")[0], names)
    torch.manual_seed(0)
    meta = names["Reptile"](names["Net"](), inner_steps=2)
    batch = next(names["meta_batches"](names["Sinusoid"](10), 3))
    with torch.no_grad():
        *_, fast = meta.adapt(*batch[:2], 2)
    _, gradient = meta.meta_gradient(*batch)
    for (name, p), g in zip(meta.net.Param.items(), gradient, strict=True):
        torch.testing.assert_close(g, 3 * p - fast[name].sum(0))


def test_anil_adapts_the_last_layer_alone():
    names = {}
    exec(block_with("class Anil(Net)").split("meta, batches")[0], names)
    assert list(names["Anil"]().expand(2)) == ["w_3", "b_3"]


def test_the_losses_of_the_default_run_are_those_shown(printed):
    """Rounding grows on the way."""
    shown = re.search(r"mean query loss \|(.*)\|", README)[1]
    expected = [float(x) for x in shown.split("|")]
    losses = numbers(printed(block_with("for _ in range(1000)")))
    assert losses[:3] == pytest.approx(expected[:3], rel=5e-9)
    assert losses == pytest.approx(expected, rel=1e-2)


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
        assert capsys.readouterr().out == expected


def test_a_stuck_run_goes_on_as_is_said(printed):
    included("weights/w(k=10,seed=7,first_order).pt")
    means = numbers(printed(block_with("for first_order in")))
    assert means == pytest.approx([4.43, 4.53, 3.99, 3.82], abs=0.1)


def test_the_first_measurement_prints_what_is_shown(printed):
    included("weights/w(k=10).pt")
    Path("weights", "w(k=10,inner_steps=0).pt").unlink()  # its lines are not shown
    output = printed("main.main(['--test'])", main=main)
    (shown,) = (output.splitlines() for output in OUTPUTS if output.startswith("MAML, "))
    lines = output.splitlines()[2 : 2 + len(shown)]
    for line, expected in zip(lines, shown, strict=True):
        assert re.sub(r"\d", "", line) == re.sub(r"\d", "", expected)
        assert numbers(line) == pytest.approx(numbers(expected), abs=0.002)


# Commands, pictures and links ---------------------------------------------------------------------


def test_commands_are_understood():
    """Every command of the pages parses, and the files that it names are there."""
    commands = re.findall(r"python3? ((?:res/|tests/)?\w+\.py)([^`\n&|]*)", README + GALLERY)
    assert len(commands) > 20
    for script, flags in commands:
        assert (ROOT / script).exists()
        if script == "main.py" and "--help" not in flags:
            main.parse(shlex.split(flags))


def test_the_table_of_flags_has_their_defaults():
    """All flags are in it."""
    table = dict(re.findall(r"^\| `--(\w+)` \| (\S*) ?\|", README, re.MULTILINE))
    assert table.keys() == vars(main.parse([])).keys()
    for flag, default in main.SETTINGS.items():
        assert table[flag] == (str(default) if default else str(default * 1) * (flag == "seed"))


def test_a_command_of_the_gallery_draws_the_pictures_below_it():
    """Those of the adaptation and of the steps."""
    sections = re.split(r"^##+ ", GALLERY, flags=re.MULTILINE)
    shown = 0
    for section in sections:
        pictures = {unquote(src) for src in re.findall(r'src="((?:graph|steps)[^"]*)"', section)}
        for command in re.findall(r"^`python3 main\.py(.*)`$", section, re.MULTILINE):
            args = main.parse(shlex.split(command))
            name = main.run_name(args) + (f",weights={args.weights.stem}" if args.weights else "")
            assert pictures == {f"graph({name}).png", f"steps({name}).png"}
            shown += 1
    assert shown > 10


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
