"""What the README and the gallery say is so: their numbers, commands, code, pictures and links.

Numbers are those of the weights that ship. Who trains replaces some of these, as the README says: what such a file
was measured for is skipped.
"""

import functools
import hashlib
import re
import shlex
import shutil
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
import torch

import main
from data import Sinusoid
from meta import Meta

ROOT = Path(__file__).parent.parent
README, GALLERY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "res/README.md"))
COMMANDS = sorted(set(re.findall(r"python3? main\.py[^`\n&|]*", README + GALLERY)) - {"python3 main.py --help"})
SHIPPED = {name: digest for digest, name in map(str.split, (ROOT / "weights/SHA256SUMS").read_text().splitlines())}
SEEDS = (0, 1, 2)


def parse(command):
    return main.parse(shlex.split(command)[2:])


def weights_of(command, seed=0):
    """The name of the file that this command measures."""
    args = parse(f"{command} --seed {seed}")
    return args.weights.name if args.weights else f"w({main.run_name(args)}).pt"


def shipped(name):
    """The path of weights that ship; a test that asks for others is skipped."""
    path = ROOT / "weights" / name
    if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != SHIPPED[name]:
        pytest.skip(f"weights/{name} is not the file that ships; `git checkout weights` brings it back")
    return path


def learner(command, seed=0):
    args = parse(command)
    meta = Meta(args.inner_lr, loss=args.loss, first_order=True)
    main.load(shipped(weights_of(command, seed)), meta.net.Param)
    return meta


@functools.cache
def scores(command, seed, shots):
    """The scores of `--test`, but in float32, which takes half the time and moves no number of the pages by 0.0005."""
    meta = learner(command, seed)
    meta.net.float()
    return main.summarize(main.evaluate(meta, Sinusoid(shots, 0, main.TEST_TASKS, seed=(main.TEST,))))


# Tables


class Cell(NamedTuple):
    """A number of a table, with all that it takes to measure it: "0.73", "0.73 ± 0.01" or "0.73 (0.71 to 0.76)"."""

    command: str
    seeds: tuple[int, ...]
    shots: tuple[int, ...]  # several for the last line of the third table
    unit: str  # √SSE, MSE, or MSE ≥ 100
    steps: int
    printed: list[float]

    def measured(self):
        results = [scores(self.command, seed, shots) for seed in self.seeds for shots in self.shots]
        if self.unit == "MSE ≥ 100":
            return [max(result["worst"].max().item() for result in results)]
        key = {"√SSE": "rsse", "MSE": "mse"}[self.unit]
        values = [result[key][self.steps].item() for result in results]
        if len(values) > 1:
            return [sum(values) / len(values), min(values), max(values)]
        return [values[0], results[0][f"{key}_ci"][self.steps].item()]


def anchors(page):
    """The sections of a page: the end of a link to it -> its text."""
    sections = re.findall(r"^##+ ([^\n]*)\n(.*?)(?=\n##|\Z)", page, re.MULTILINE | re.DOTALL)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-"): text for title, text in sections}


def command_of(section):
    """The first command of a section of the gallery, and the number of support points that it tests on."""
    command = re.search(r"`(python3 main\.py[^`]*)`", anchors(GALLERY)[section])[1]
    args = parse(command)
    return re.sub(r" --test_shots \d+", "", command), args.test_shots or args.k_shot


def tables(page):
    """The tables of a page, each a list of lines, each a list of cells."""
    for table in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        header, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines())
        yield header, lines


def numbers(cell):
    return [float(number) for number in re.findall(r"\d+\.?\d*", cell)]


def readme_cells():
    """The results of the README: a column is a learner, linked to its section, a line is a number of steps."""
    for header, lines in tables(README[README.index("## Results") : README.index("## Use it")]):
        for label, *cells in lines:
            every = [int(k) for k in re.findall(r"K = (\d+)", " ".join([header[0], *(line[0] for line in lines)]))]
            own = [int(k) for k in re.findall(r"K = (\d+)", f"{header[0]} {label}")]
            unit = re.search(r"MSE ≥ 100|√SSE|MSE", f"{label} MSE")[0]
            steps = int((re.findall(r"(\d+) step", label) or [-1])[0])
            for name, cell in zip(header[1:], cells, strict=True):
                if link := re.search(r"\]\(res/README\.md#([^)]*)\)", name):
                    seeds = SEEDS if "seeds" in name else (0,)
                    shots = tuple(sorted({*(own or every)}))
                    yield Cell(command_of(link[1])[0], seeds, shots, unit, steps, numbers(cell))


def gallery_cells():
    """The results of the gallery: a line is a seed, a column is a number of steps."""
    for section, text in anchors(GALLERY).items():
        for header, lines in tables(text):
            for seed, *cells in lines:
                command, shots = command_of(section)
                for column, cell in zip(header[1:], cells, strict=True):
                    unit, steps = re.fullmatch(r"(MSE ≥ 100|MSE)(?:, (\d+) steps?)?", column).groups(default=-1)
                    yield Cell(command, (int(seed),), (shots,), unit, int(steps), numbers(cell))


CELLS = [*readme_cells(), *gallery_cells()]


@pytest.mark.parametrize("command", sorted({cell.command for cell in CELLS}))
def test_results_are_those_of_the_weights_that_ship(command):
    """All of a command in one test: on several cores, too, its weights are measured once.

    The printed numbers are rounded to 0.01. Another processor rounds otherwise, and may lose another task.
    """
    for cell in (cell for cell in CELLS if cell.command == command):
        margin = 2 if cell.unit == "MSE ≥ 100" else 0.0075
        assert cell.printed == pytest.approx(cell.measured(), abs=margin), cell


def test_there_are_results():
    """The three tables of the README, and a table of seeds for each run that has three."""
    headers = [header for header, _ in tables(README[README.index("## Results") : README.index("## Use it")])]
    assert len(headers) == 3
    assert sum(len(cell.seeds) == 3 for cell in CELLS) > 30
    assert sum(cell.command == command_of("maml")[0] for cell in CELLS) > 15


# Sentences


def test_the_readme_says_what_the_first_two_steps_do():
    """Default weights, test tasks: how long the steps are, and what they do to the error of support points and test."""
    meta, tasks = learner("python3 main.py"), Sinusoid(10, 0, main.TEST_TASKS, seed=(main.TEST,))
    found = {}
    for chunk in torch.arange(len(tasks)).split(main.CHUNK):
        k_x, k_y, _, _ = tasks.batch(chunk.tolist())
        x, y = main.GRID.expand(len(chunk), -1, -1), tasks.target(chunk.tolist(), main.GRID)
        weights = {steps: meta.adapt(k_x, k_y, steps) for steps in (0, 1, 2)}
        for step in (1, 2):
            moves = [(w - weights[step - 1][name]).flatten(1) for name, w in weights[step].items()]
            found.setdefault(f"length {step}", []).append(torch.cat(moves, dim=1).norm(dim=1))
        weights["quarter"] = {name: w + (weights[2][name] - w) / 4 for name, w in weights[1].items()}
        for steps, fast in weights.items():
            for kind, inputs, targets in (("support", k_x, k_y), ("test", x, y)):
                error = (meta.net.predict(inputs, fast) - targets).square().mean((1, 2)).detach()
                found.setdefault(f"{kind} {steps}", []).append(error.clamp_max(main.WORST))
    found = {name: torch.cat(values) for name, values in found.items()}
    median = [found[name].median().item() for name in ("length 1", "length 2", "support 0", "support 1")]
    mean = [found[name].mean().item() for name in ("support 1", "support 2", "test 1", "test 2", "test quarter")]
    sentence = README[README.index("**The second step") : README.index("It is not the loss alone")]
    assert [float(number) for number in re.findall(r"\d+\.\d+", sentence)] == pytest.approx(median + mean, abs=0.0075)

    run = main.Run(meta, 1)
    run.validate(Sinusoid(10, num_tasks=main.VALIDATION_TASKS, seed=(main.VALIDATION,)).batch(range(1000)))
    units = re.search(r"([\d.]+) on the 15 query points .* is ([\d.]+) on the 50 points", README).groups()
    assert float(units[0]) == pytest.approx(run.lowest(), abs=0.075)
    assert float(README.split('"best validation loss: ')[1][:6]) == pytest.approx(run.lowest(), abs=0.0075)
    assert float(units[1]) == pytest.approx((50 * found["test 1"]).sqrt().mean().item(), abs=0.075)


@pytest.mark.parametrize(("command", "printed"), re.findall(r"fit of `([^`]*)` is ([\d.]+) cos x", GALLERY))
def test_what_pretraining_has_learned_is_a_cosine(command, printed):
    """The least squares fit of a cos x to the net's prediction."""
    prediction, cosine = learner(command).net.predict(main.GRID[None])[0].detach(), main.GRID.cos()
    assert ((prediction * cosine).sum() / cosine.square().sum()).item() == pytest.approx(float(printed), abs=0.0075)


# Commands, code, files and links


def test_the_checksums_are_those_of_the_files_that_the_pages_measure():
    measured = {weights_of(command) for command in COMMANDS if "checkpoint" not in command and "FILE" not in command}
    measured |= {weights_of(cell.command, seed) for cell in CELLS for seed in cell.seeds}
    assert set(SHIPPED) == measured


def test_other_weights_and_files_of_ones_own_skip_a_test_and_fail_none(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w(k=10,seed=7).pt").write_bytes(b"my own")
    for content in (None, b"trained here"):
        if content:
            (tmp_path / "weights" / "w(k=10).pt").write_bytes(content)
        with pytest.raises(pytest.skip.Exception, match=r"weights/w\(k=10\)\.pt .*`git checkout weights`"):
            shipped("w(k=10).pt")


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command):
    parse(command)


def code_blocks():
    return re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_loops_are_shown_as_they_stand():
    adapt, outer_step = code_blocks()[0].split("\n\n")
    code = (ROOT / "meta.py").read_text(encoding="utf-8")
    assert f"{adapt}\n\n" in code
    assert f'"""\n{outer_step}\n' in code
    assert "torch.autograd.grad" in adapt
    assert "self.outer_optim.step()" in outer_step
    assert max(map(len, code_blocks()[0].splitlines())) <= 96


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """A folder with a copy of the weights, in which what the README shows is run."""
    shutil.copytree(ROOT / "weights", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("MPLBACKEND", "agg")
    return tmp_path


def test_the_first_measurement_prints_what_the_readme_shows(folder, capsys):
    """The program itself, so in float64, unlike the tables."""
    shipped("w(k=10).pt")
    Path("weights", "w(k=10,inner_steps=0).pt").unlink(missing_ok=True)  # its lines are not shown
    main.main(["--test"])
    shown = re.search(r"```\n(MAML, .*?)```", README, re.DOTALL)[1].splitlines()
    output = capsys.readouterr()
    assert "/100 [" in output.err  # the bar, over chunks of 100 tasks
    for line, expected in zip(output.out.splitlines()[2 : 2 + len(shown)], shown, strict=True):
        assert re.sub(r"\d+\.\d+", "", line) == re.sub(r"\d+\.\d+", "", expected)
        assert numbers(line) == pytest.approx(numbers(expected), abs=0.0075)


def test_the_snippet_that_uses_the_project_runs(folder):
    _, use, _ = code_blocks()
    exec(compile(use, "snippet", "exec"), {})
    assert (folder / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_the_snippet_that_checks_a_gradient_runs(folder, capsys):
    *_, check = code_blocks()
    exec(compile(check, "snippet", "exec"), {})
    error = float(re.search(r"relative error (\S+)", capsys.readouterr().out)[1])
    assert 0 < error < 1e-13
    assert "1e-13" in README


def test_what_the_algorithm_table_names_is_there():
    table = README.split("| the paper's Algorithm 1 |")[1].split("\n\n")[0]
    code = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("main.py", "meta.py", "net.py", "data.py"))
    names = re.findall(r"`([\w.]+)[^`]*`", table)
    assert len(names) >= 8
    for name in names:
        assert name.rsplit(".", 1)[-1] in code, name


def test_the_settings_are_those_of_the_program():
    args, table = main.parse([]), README.split("| setting | default |")[1].split("\n\n")[0]
    assert f"| K = {args.k_shot} support points, one step, α = {args.inner_lr} |" in table
    assert f" {args.batch_size} tasks, Adam (β = {args.outer_lr}, 0.9, 0.999), {args.epochs:,} iterations |" in table
    assert f" {main.VALIDATION_TASKS:,} validation tasks, looked at every {main.VALIDATE_EVERY:,} iterations;" in table


def test_every_link_and_picture_has_its_file():
    for text, folder in ((README, ROOT), (GALLERY, ROOT / "res")):
        for link in re.findall(r"\]\((?!http)([^)]*(?:\([^)]*\))*[^)]*)\)|src=\"([^\"]*)\"", text):
            path, _, anchor = unquote("".join(link)).partition("#")
            assert (folder / path).exists(), path
            assert not anchor or anchor in anchors(GALLERY), anchor
