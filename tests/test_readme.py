"""What the README says is so: its numbers, its commands, its code, its pictures."""

import functools
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch

import main
from data import Sinusoid
from meta import Meta

ROOT = Path(__file__).parent.parent
README, GALLERY = ((ROOT / name).read_text() for name in ("README.md", "res/README.md"))
COMMANDS = sorted(set(re.findall(r"python3? main\.py[^`\n&|]*", README + GALLERY)) - {"python3 main.py --help"})
ROWS = [line.split("|")[1:-1] for line in README.splitlines() if line.startswith("|") and "±" in line]


def words(command):
    return shlex.split(command)[2:]


def weights_of(args):
    return ROOT / (args.weights or f"weights/w({main.run_name(args)}).pt")


def scores_of(args):
    return scores(weights_of(args), args.k_shot, args.loss)


@functools.cache
def scores(path, k_shot, loss):
    """What `--test` makes its table of: the scores of these weights on the 10,000 test tasks, with α = 0.01."""
    meta = Meta(loss=loss)
    meta.load_weights(path)
    tasks = Sinusoid(k_shot, q_query=0, num_tasks=main.TEST_TASKS, seed=(main.TEST,))
    return main.summarize(main.evaluate(meta, tasks, torch.device("cpu")))


def agrees(printed, measured):
    """To the last digit but one: other processors round otherwise."""
    return abs(float(printed) - measured) < 10.0 ** (1 - len(printed.split(".")[1]))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0].strip())
def test_results_are_those_of_the_weights_that_ship(row):
    name, k, *cells, command = (cell.strip() for cell in row)
    args = main.parse(words(command.strip("`")))
    assert args.k_shot == int(k)
    seeds = (0, 1, 2) if any("seeds" in cell for cell in cells) else (0,)
    results = []
    for seed in seeds:
        args.seed = seed
        results.append(scores_of(args))
    for steps, cell in zip((1, 5, 10), cells, strict=True):
        mean, ci = re.search(r"([\d.]+) ± ([\d.]+)", cell).groups()
        values = [score["mse"][steps].item() for score in results]
        assert agrees(mean, values[0]), f"{name}, {steps} steps: the weights give {values[0]}"
        assert agrees(ci, results[0]["mse_ci"][steps].item())
        diverged = re.search(r"(\d+) diverged", cell)
        assert (int(diverged[1]) if diverged else 0) == results[0]["diverged"][steps].item()
        if len(seeds) > 1:
            numbers = re.search(r"seeds ([\d.]+) \(([\d.]+) to ([\d.]+)\)", cell).groups()
            for printed, measured in zip(numbers, (np.mean(values), min(values), max(values)), strict=True):
                assert agrees(printed, measured), f"{name}, {steps} steps: the three seeds give {values}"


def test_there_are_results():
    assert 8 <= len(ROWS) <= 10


def test_the_losses_in_the_unit_of_the_original():
    found = re.findall(
        r"√SSE[^|]*?([\d.]+) ± [\d.]+ to \*{0,2}([\d.]+) ± [\d.]+[^|]*?`(python3 main.py --test[^`]*)`", README
    )
    assert len(found) == 2
    for pre, post, command in found:
        rsse = scores_of(main.parse(words(command)))["rsse"]
        assert agrees(pre, rsse[0].item())
        assert agrees(post, rsse[1].item())


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood_and_their_weights_ship(command):
    args = main.parse(words(command))
    assert weights_of(args).exists() or "--resume" in command


def test_the_inner_loop_is_shown_as_it_stands():
    (shown,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert shown in (ROOT / "meta.py").read_text()
    assert "torch.autograd.grad" in shown


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
            assert (folder / unquote("".join(link))).exists(), link
    mentioned = unquote(README + GALLERY)
    named = {weights_of(main.parse(words(command))).name for command in COMMANDS}
    for path in [*ROOT.glob("res/*.png"), *ROOT.glob("weights/*.pt")]:
        if not path.name.startswith("checkpoint"):
            assert path.name in mentioned or path.name in named, f"{path.name} is on no page"
