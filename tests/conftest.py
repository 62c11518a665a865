"""What several tests need: the program in a folder of its own, in this process or in another."""

import functools
import io
import itertools
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

os.environ["MPLBACKEND"] = "agg"  # a notebook's may not be installed here
sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(1, str(Path(__file__).parent.parent / "res"))

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

import data
import main
from net import AnyNet, Net

ROOT = Path(main.__file__).parent
# No more of the user's set-up reaches the tests, nor the processes that they start.
for name in ("OMP_NUM_THREADS", *(name for name in os.environ if name.startswith("TQDM_"))):
    os.environ.pop(name, None)
os.environ["COLUMNS"] = "100"
torch.set_num_threads(1)

COMPILES = torch.__version__ >= (2, 13)
needs_compiler = pytest.mark.skipif(
    not COMPILES or shutil.which("c++") is None, reason="needs PyTorch 2.13 and a C++ compiler"
)


def pytest_configure(config):
    # Of PyTorch's own, at the first use of its compiler.
    config.addinivalue_line("filterwarnings", "ignore:.torch.jit.script_method:DeprecationWarning")


@pytest.fixture(autouse=True)
def same_start():
    """A test does the same, whatever ran before it."""
    torch.manual_seed(0)
    matplotlib.rcdefaults()
    matplotlib.rcParams["text.parse_math"] = False


class Output(NamedTuple):
    code: int
    out: list[str]  # lines
    err: list[str]

    @property
    def refusal(self) -> str:
        """What is said on stderr at exit code 2: one line, or the last after usage or progress."""
        assert self.code == 2
        assert "Traceback" not in "".join(self.err)
        assert self.err[-1].startswith("main.py: ")
        return self.err[-1]


@pytest.fixture
def program(tmp_path, monkeypatch, capsys):
    """The command line in this process and in a folder of its own: `program("--epochs 12")`.

    There is a validation every 5 iterations, a checkpoint after each, and inputs are drawn for 4.
    With `interrupt_at=7`, Ctrl-C comes in iteration 7 of the call. No GPU: it rounds otherwise.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["main.py"])
    small = {"VALIDATION_TASKS": 20, "VALIDATE_EVERY": 5, "TEST_TASKS": 50, "CHECKPOINT_EVERY": -1}
    for name, value in small.items():
        monkeypatch.setattr(main, name, value)
    monkeypatch.setattr(data, "BLOCK", 4)

    def call(words: str, interrupt_at: int = 10**9) -> Output:
        def batches(*settings):
            yield from itertools.islice(data.meta_batches(*settings), interrupt_at - 1)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(main, "meta_batches", batches)
            with pytest.raises(SystemExit) as end:
                sys.exit(main.main(shlex.split(words)))
        out, err = capsys.readouterr()
        assert out.isascii()
        return Output(end.value.code or 0, out.splitlines(), err.splitlines())

    return call


@pytest.fixture
def traced(monkeypatch):
    """What is compiled is only traced: that needs no C++ compiler and a twentieth of the time."""
    if not COMPILES:
        pytest.skip("needs PyTorch 2.13")
    compile = functools.partial(torch.compile, backend=lambda graph, inputs, **options: graph)
    monkeypatch.setattr(torch, "compile", compile)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, in their order. Their files stay empty, to save time."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def run(folder, *arguments: str, command=(sys.executable, str(ROOT / "main.py")), **options):
    """The output of `python3 main.py` in a process of its own, which takes seconds to start."""
    options |= {"cwd": folder, "capture_output": True, "text": True}
    process = subprocess.run([*command, *arguments], **options)
    return Output(process.returncode, process.stdout.splitlines(), process.stderr.splitlines())


def contents(folder=".") -> dict[str, bytes]:
    """All files in a folder: their paths and what is in them."""
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def leave_only(files: dict[str, bytes]) -> None:
    """Make these the only files here."""
    for path in contents():
        os.remove(path)
    for path, content in files.items():
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).write_bytes(content)


def saved(content: object) -> bytes:
    """What `torch.save` writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def make_weights(path: str, scale: float = 1.0) -> None:
    """A file of weights that nobody trained."""
    Path(path).parent.mkdir(exist_ok=True)
    torch.save({name: scale * w for name, w in Net().state_dict().items()}, path)


def dropout() -> AnyNet:
    return AnyNet(nn.Sequential(nn.Linear(1, 9), nn.Dropout(), nn.Linear(9, 1)).double())
