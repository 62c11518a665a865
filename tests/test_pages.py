"""What the README and the gallery say is so: tables, claims, commands, code, pictures and links.

Their numbers are those of the included weights. Who trains overwrites some of these, as the README
says: what such a file was measured for is skipped.
"""

import hashlib
import re
import shlex
import shutil
import statistics
from pathlib import Path
from urllib.parse import unquote

import pytest
import results
from conftest import ROOT
from results import FOMAML, MAML, ORIGINAL, PAPER, PAPER_FOMAML, SEEDS, TWO_STEPS

import main
from data import Sinusoid

README, GALLERY = (page.read_text(encoding="utf-8") for page in results.PAGES)
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
LISTING, PLATEAU, USE, CHECK, CHANGE = BLOCKS
SUMS = (ROOT / "weights/SHA256SUMS").read_text(encoding="utf-8").splitlines()
INCLUDED = {name: digest for digest, name in (line.split("  ") for line in SUMS)}
ROWS, PLATEAU_ROWS = results.read_rows(results.RESULTS), results.read_rows(results.PLATEAU)
KNOWN, TABLES = results.Results(ROWS), results.blocks(ROWS, PLATEAU_ROWS)


def included(path):
    """Skip the test if this file of weights is not the included one."""
    file = ROOT / path
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else ""
    if digest != INCLUDED[file.name]:
        pytest.skip(f"{path} is not the included file; `git checkout weights` brings it back")
    return file


def learner(words):
    args = main.parse(shlex.split(words))
    return main.load(included(main.weights_file(args)), args, "cpu")


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+(?:e-\d+)?", text)]


@pytest.mark.parametrize("page", results.PAGES, ids=["README", "gallery"])
def test_the_tables_are_those_of_the_results(page):
    """The tables in the pages are what tests/results.py makes of res/results.csv."""
    text = page.read_text(encoding="utf-8")
    assert text.count("made by tests/results.py -->") == text.count("<!-- end -->") > 1
    assert results.filled(text, TABLES) == text


SEED_0 = [each for each in results.measurements() if each.seed == 0]


@pytest.mark.parametrize("measurement", SEED_0, ids=lambda each: f"{each.flags} {each.shots}")
def test_results_are_those_of_the_weights(measurement):
    """The results of every run with seed 0 are measured again: those of its included weights."""
    included(measurement.file())
    assert results.differences(results.measure(measurement)) == []


def below(flags, shots, marks):
    """How many of the ten seeds are below a mark, by the number of gradient steps."""
    return [sum(x < m for x in KNOWN.scores(flags, shots, steps)) for steps, m in marks.items()]


def ahead(one, other, shots, steps):
    """With how many seeds one run is better than another."""
    pairs = zip(KNOWN.scores(one, shots, steps), KNOWN.scores(other, shots, steps), strict=True)
    return sum(ours < theirs for ours, theirs in pairs)


def test_the_readme_counts_seeds_as_the_results_do():
    """Each "with nine of ten seeds" of the README."""
    original = {steps: KNOWN.score(ORIGINAL, 0, 10, steps) for steps in (1, 2, 5, 10)}
    assert below(MAML, 10, original) == [10, 8, 9, 9]
    assert "with ten of ten seeds; after two steps with eight, after five and after ten" in README
    assert below(PAPER, 5, results.TABLE_2) == [10, 2, 4]
    assert "only two seeds are ahead of its 0.38, and after ten four of its 0.35" in README
    assert below(TWO_STEPS, 5, results.TABLE_2) == [0, 9, 9]
    assert "with nine of ten seeds (not with seed 7), but behind after one step with all" in README
    for steps, expected in ((1, 0), (5, 10), (10, 10)):
        assert ahead(TWO_STEPS, PAPER, 5, steps) == expected
    assert (ahead(FOMAML, MAML, 10, 10), ahead(PAPER_FOMAML, PAPER, 5, 10)) == (5, 7)
    assert "ahead with five of ten seeds in the original's experiment" in README
    assert "and with seven with the paper's objective" in README
    assert max(KNOWN.scores(TWO_STEPS, 5, 10)) == KNOWN.score(TWO_STEPS, 7, 5, 10)
    assert ahead(MAML, FOMAML, 10, 1) == ahead(PAPER, PAPER_FOMAML, 5, 1) == 10


def test_the_readme_names_the_seeds_that_fail_or_overshoot():
    """Failed runs have twice the MSE of the exact gradient; an overshoot raises it by 0.03."""
    failed = {}
    for exact, first_order, shots in ((MAML, FOMAML, 10), (PAPER, PAPER_FOMAML, 5)):
        pairs = zip(KNOWN.scores(exact, shots, 1), KNOWN.scores(first_order, shots, 1), strict=True)
        failed[exact] = [seed for seed, (ours, theirs) in enumerate(pairs) if theirs > 1.9 * ours]
    assert failed == {MAML: [5, 7], PAPER: [7]}
    rise = {s: KNOWN.score(MAML, s, 10, 2) - KNOWN.score(MAML, s, 10, 1) for s in SEEDS}
    assert [seed for seed in SEEDS if rise[seed] > 0.03] == [0, 2, 4]
    rows = [KNOWN.score(MAML, seed, 10, steps) for seed in (0, 2, 4) for steps in (1, 2)]
    assert "MSE {:.2f} to {:.2f}). It does so".format(*rows) in README
    assert "({2:.2f} to {3:.2f}, {4:.2f} to {5:.2f})".format(*rows) in README


def test_the_readme_says_how_tasks_that_diverge_count():
    """Medians without capped tasks, and what 600 tasks can show for a seed in the middle."""
    scores = [KNOWN.scores(PAPER, 5, steps, "mse_of_uncapped") for steps in (5, 10)]
    assert "medians are {:.2f} and {:.2f}".format(*map(statistics.median, scores)) in README
    assert f"up to {KNOWN.capped(PAPER, 5)} of 10,000" in README
    assert sorted(KNOWN.scores(PAPER, 5, 10))[4] == KNOWN.score(PAPER, 0, 5, 10)
    measurement = results.Measurement(PAPER, 0, 5)
    included(measurement.file())
    sentence = README[README.index("600 of ours, drawn 300 times") :].split("So for this seed")[0]
    drawn = [*results.small_tests(measurement, 5), *results.small_tests(measurement, 10)]
    assert numbers(sentence) == pytest.approx(drawn, abs=0.03)


def test_the_readme_says_what_the_second_step_does():
    """In the run of seed 0, on the test tasks; and what its losses and scores are."""
    included("weights/w(k=10).pt")
    sentence = README[README.index("the median lengths of") :].split("Why this run")[0]
    assert numbers(sentence) == pytest.approx(list(results.second_step().values()), abs=0.0075)
    run = main.Run(learner(""))
    points = Sinusoid(10, num_tasks=main.VALIDATION_TASKS, seed=(main.VALIDATION,))
    run.validate(points.batch(range(main.VALIDATION_TASKS)))
    assert run.lowest() == pytest.approx(2.8673, abs=0.0075)
    assert "best validation loss: 2.8673 on the AMD EPYC" in README
    assert "what is 2.9 on the 15 query points" in README
    assert f"is {KNOWN.score(MAML, 0, 10, 1, 'rsse'):.1f} on the 50 points" in README


def test_pretraining_learns_a_cosine():
    """The least squares fit of a cos x to the prediction of a pretrained net."""
    fits = re.findall(r"fit of `python3 main\.py ([^`]*)` is ([\d.]+) c", GALLERY)
    assert len(fits) > 1
    for command, printed in fits:
        prediction, cosine = learner(command).net.predict(main.GRID[None])[0], main.GRID.cos()
        fit = (prediction * cosine).sum() / cosine.square().sum()
        assert fit.item() == pytest.approx(float(printed), abs=0.0075)


# Code, commands, files and links


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with a copy of the weights, in which what the README shows is run."""
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def printed_by(code, capsys):
    """The numbers that a block of the README prints."""
    exec(compile(code, "README.md", "exec"), {})
    return numbers(capsys.readouterr().out)


def test_the_failed_run_goes_on_with_the_exact_gradient(folder, capsys):
    """With the first-order gradient it stays where it is."""
    included("weights/w(k=10,seed=7,first_order).pt")
    before, stays, _, falls = printed_by(PLATEAU, capsys)
    assert abs(stays - before) < 0.3
    assert falls < stays - 0.4


def test_the_blocks_that_use_and_check_run(folder, capsys):
    """One draws a picture. In the other, an `nn.Module` has the same loss and gradient."""
    printed_by(USE, capsys)
    assert (folder / "mine.png").read_bytes().startswith(b"\x89PNG")
    theirs, ours, error = printed_by(CHECK, capsys)
    assert theirs == ours
    assert 0 < error < 1e-13


def test_the_three_changes_train(folder, capsys, monkeypatch):
    """Other curves, another network and another loss: each loss goes down."""
    monkeypatch.setattr("net.LOSSES", dict(main.LOSSES))
    losses = printed_by(CHANGE, capsys)
    assert len(losses) == 6
    assert all(last < 0.9 * first for first, last in zip(losses[::2], losses[1::2], strict=True))


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


def test_the_listing_is_that_of_meta():
    """What the README shows stands in meta.py in this order, but for docstrings and checks."""
    code = iter((ROOT / "meta.py").read_text(encoding="utf-8").splitlines())
    for line in LISTING.splitlines():
        assert line in code, line  # which goes on behind the line before


def test_commands_are_understood():
    """Every command of the pages parses."""
    commands = re.findall(r"python3? main\.py(?! --help)([^`\n&|]*)", README + GALLERY)
    assert len(commands) > 10
    for command in commands:
        main.parse(shlex.split(command))


def test_every_link_and_picture_has_its_file():
    """Links within the pages lead to a file, and to a section that is there."""
    titles = re.findall(r"^##+ (.*)$", GALLERY, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}
    pattern = r"\]\((?!http)([^)]*(?:\([^)]*\))*[^)]*)\)|src=\"([^\"]*)\""
    for text, folder in ((README, ROOT), (GALLERY, ROOT / "res")):
        for link in re.findall(pattern, text):
            path, _, anchor = unquote("".join(link)).partition("#")
            assert (folder / path).exists(), path
            assert not anchor or anchor in anchors, anchor
