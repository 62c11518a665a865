"""What the README and the gallery say is so: their numbers, commands, code, pictures and links."""

import functools
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

import main
from data import Sinusoid
from meta import Meta

ROOT = Path(__file__).parent.parent
README, GALLERY = ((ROOT / name).read_text() for name in ("README.md", "res/README.md"))
COMMANDS = sorted(set(re.findall(r"python3? main\.py[^`\n&|]*", README + GALLERY)) - {"python3 main.py --help"})
SECTIONS = {  # of the gallery: the end of a link to it -> its command
    title.lower().replace(" ", "-"): re.search(r"`(python3 main\.py[^`]*)`", text)[1]
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=\n## |\Z)", GALLERY, re.MULTILINE | re.DOTALL)
}
SEEDS = (0, 1, 2)


def parse(command):
    return main.parse(shlex.split(command)[2:])


def weights_of(args):
    return ROOT / (args.weights or f"weights/w({main.run_name(args)}).pt")


def scores_of(command, seed=0):
    args = parse(f"{command} --seed {seed}")
    return scores(weights_of(args), args.k_shot, args.loss)


@functools.cache
def scores(path, k_shot, loss):
    """What `--test` makes its table of: the scores of these weights on the 10,000 test tasks, with α = 0.01."""
    meta = Meta(loss=loss, first_order=True)
    meta.net.load_state_dict(main.load(path))
    tasks = Sinusoid(k_shot, q_query=0, num_tasks=main.TEST_TASKS, seed=(main.TEST,))
    return main.summarize(main.evaluate(meta, tasks))


def rows():
    """Each row of results: the first cell of its table, the other columns, its name, its command and its cells."""
    found = []
    for page, heading in ((README, "## Results"), (GALLERY, "")):
        text = page[page.index(heading) :]
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
            if "MSE, 1 step" not in header:
                continue
            before = text[: text.index(table)]
            titles = re.findall(r"^## (.*)$", before, re.MULTILINE)
            for name, *cells in lines:
                link = re.search(r"\]\(res/README\.md#([^)]*)\)", name)
                anchor = link[1] if link else titles[-1].lower().replace(" ", "-")
                if "paper" not in name or link:
                    found.append((header[0], header[1:], name, SECTIONS.get(anchor), cells))
    return found


def agrees(printed, measured):
    """To the last digit but one: other processors round otherwise."""
    return abs(float(printed) - measured) < 10.0 ** (1 - len(printed.split(".")[1]))


@pytest.mark.parametrize("command", sorted({row[3] for row in rows()}))
def test_results_are_those_of_the_weights_that_ship(command):
    """All rows of a command in one test: on two cores, too, its weights are measured once."""
    for first, columns, name, _, cells in (row for row in rows() if row[3] == command):
        if first.startswith("K = "):
            assert parse(command).k_shot == int(first.removeprefix("K = "))
        several = "seeds" in name
        seeds = SEEDS if several else [int(name)] if first == "seed" else [0]
        results = [scores_of(command, seed) for seed in seeds]
        diverged = 0
        for column, cell in zip(columns, cells, strict=True):
            if column == "diverged":
                assert int(cell) == diverged
                continue
            unit, steps = re.fullmatch(r"(√SSE|MSE), (\d+) steps?", column).groups()
            key, steps = {"√SSE": "rsse", "MSE": "mse"}[unit], int(steps)
            values = [score[key][steps].item() for score in results]
            diverged = max(diverged, *(score["diverged"][steps].item() for score in results))
            expected = [values[0], results[0][f"{key}_ci"][steps].item()]
            if several:
                expected = [min(values), max(values)] if "range" in name else [np.mean(values)]
            numbers = cell.replace("*", "").replace(" to ", " ± ").split(" ± ")
            assert len(numbers) == len(expected)
            for printed, measured in zip(numbers, expected, strict=True):
                assert agrees(printed, measured), f"{name}, {column}: the weights give {measured}"


def test_there_are_results():
    """Both tables of the README, and a table of three seeds for each run that has them."""
    assert [first for first, *_ in rows()].count("K = 10") == 6
    assert [first for first, *_ in rows()].count("K = 5") == 5
    assert [first for first, *_ in rows()].count("seed") == 9


def test_what_the_second_step_does_is_that_of_the_three_seeds():
    (sentence,) = re.findall(r"the second step[^(]*\(([^)]*)\)", README.replace("\n", " "))
    pairs = re.findall(r"([\d.]+) to ([\d.]+)", sentence)
    assert len(pairs) == len(SEEDS)
    for seed, pair in zip(SEEDS, pairs, strict=True):
        for steps, printed in zip((1, 2), pair, strict=True):
            measured = scores_of("python3 main.py", seed)["mse"][steps].item()
            assert abs(float(printed) - measured) < 0.01


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood_and_their_weights_ship(command):
    args = parse(command)
    assert weights_of(args).exists() or "checkpoint" in command


def test_the_inner_loop_is_shown_as_it_stands():
    (shown,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert shown in (ROOT / "meta.py").read_text()
    assert "torch.autograd.grad" in shown
    assert max(map(len, shown.splitlines())) <= 96


def test_what_the_algorithm_table_names_is_there():
    table = README.split("| the paper's Algorithm 1 |")[1].split("\n\n")[0]
    code = "".join((ROOT / name).read_text() for name in ("main.py", "meta.py", "net.py", "data.py"))
    names = re.findall(r"`([\w.]+)[^`]*`", table)
    assert len(names) >= 8
    for name in names:
        assert name.rsplit(".", 1)[-1] in code, name


def test_every_file_that_ships_has_its_place_and_every_link_its_file():
    for text, folder in ((README, ROOT), (GALLERY, ROOT / "res")):
        for link in re.findall(r"\]\((?!http)([^)]*(?:\([^)]*\))*[^)]*)\)|src=\"([^\"]*)\"", text):
            path, _, anchor = unquote("".join(link)).partition("#")
            assert (folder / path).exists(), path
            assert not anchor or anchor in SECTIONS, anchor
    shown = unquote(README + GALLERY)
    for path in ROOT.glob("res/*.png"):
        assert path.name in shown, f"{path.name} is on no page"
    measured = {weights_of(parse(f"{command} --seed {seed}")) for command in COMMANDS for seed in SEEDS}
    for path in ROOT.glob("weights/*.pt"):
        assert path in measured or path.name.startswith("checkpoint"), f"{path.name} is measured by no command"
