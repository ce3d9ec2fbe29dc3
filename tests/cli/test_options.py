"""One name means one thing everywhere: options that commands share, groups of them, and when what was typed is checked."""

import inspect
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.main import get_command

from visx.cli.app import app
from visx.cli.options import grouped

# Where a name's help differs from command to command, and so does what it stands for: a folder or a file, one or several.
DIFFERING = {
    "--layer", "--method", "--metrics", "--min", "--model", "--out", "--overwrite", "--resume", "--weights",
}  # fmt: skip
COMPUTING = {
    "explain": (),
    "evaluate": (),
    "sensitivity": ("--vary", "relu=true,false"),
    "compare": (),
}


def test_a_shared_option_is_the_same_in_every_command() -> None:
    forms: dict[str, set[Any]] = defaultdict(set)
    texts: dict[str, set[Any]] = defaultdict(set)
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        for option in command.params:
            names = (*option.opts, *option.secondary_opts)
            for name in names:
                if name.startswith("--"):
                    forms[name].add((option.name, tuple(other for other in names if not other.startswith("--"))))
                    texts[name].add(option.help)
    assert len(forms) > 40
    assert {name: form for name, form in forms.items() if len(form) > 1} == {}
    assert {name for name, text in texts.items() if len(text) > 1} == DIFFERING


@pytest.mark.parametrize("command", COMPUTING)
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-m", "gradcm"], "did you mean gradcam"),
        (["-p", "rel=1"], "unknown parameter of gradcam 'rel'"),
        (["-p", "cam.relu=1"], "unknown method in --param"),
        (["-p", "relu"], "is not KEY=VALUE"),
        (["-p", "relu=7"], "gradcam: relu='7'"),
        (["--batch-size", "0"], "from 1 up"),
        (["--size", "1,2,3"], "is not N or H,W"),
        (["--range", "1"], "is not LOW,HIGH"),
    ],
)
def test_what_is_typed_is_checked_before_a_model_is_loaded(
    visx: Any, monkeypatch: pytest.MonkeyPatch, command: str, args: list[str], message: str
) -> None:
    if command == "sensitivity" and args == ["-p", "relu=7"]:
        return  # it is what varies
    monkeypatch.setattr("visx.models.load_model", lambda *a, **k: pytest.fail("a model was loaded"))
    run = visx(command, "cat.png", "-M", "nets.py:good", *COMPUTING[command], *args)
    assert (run.code, run.out) == (2, "")
    assert message in run.err
    assert not list(Path().glob("visx-*"))


def test_layers_are_separated_by_commas_everywhere(visx: Any) -> None:
    args = ("cat.png", "-M", "nets.py:good", "-l", "conv,relu", "--json")
    assert [row["layer"] for row in visx("explain", *args).rows] == ["conv", "relu"]
    assert [row["layer"] for row in visx("compare", *args).rows] == ["conv", "relu"]
    measured = visx("evaluate", *args, "--metrics", "deletion", "-p", "deletion.steps=2").rows
    assert [row["method"] for row in measured] == ["gradcam.conv", "gradcam.relu"]
    run = visx("sensitivity", *args, "--vary", "relu=true,false")
    assert run.code == 2
    assert "maps of one layer are compared" in run.err and "--vary layer=conv,relu" in run.err


def test_a_fused_map_has_files_and_a_record_of_its_own_and_is_resumed(visx: Any) -> None:
    args = ("explain", "cat.png", "-M", "nets.py:good", "-l", "conv+relu", "-o", "out", "--json")
    (row,) = visx(*args).rows
    assert row["layer"] == "conv+relu" and [len(shape) for shape in row["layer_shape"]] == [3, 3]
    assert (
        Path("out", row["files"]["npy"]).name.startswith("gradcam.conv+relu.")
        and Path("out", row["files"]["npy"]).exists()
    )
    assert visx(*args).rows == [row] and len(Path("out/manifest.jsonl").read_text().splitlines()) == 1
    run = visx(*args[:4], "-l", "conv+rleu")
    assert run.code == 2 and "unknown layer 'rleu'" in run.err and "relu" in run.err


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option("--width")] = 3
    height: Annotated[int, typer.Option("--height")] = 4


@dataclass(frozen=True)
class Box(Size):
    width: Annotated[int, typer.Option("--width", "-W")] = 5
    depth: Annotated[int, typer.Option("--depth")] = 6


def test_a_group_is_its_options_in_its_place() -> None:
    @grouped
    def command(name: str, *, box: Box, last: bool = False) -> tuple[str, Box, bool]:
        return name, box, last

    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["name", "width", "height", "depth", "last"]
    assert [p.default for p in parameters.values()][1:] == [5, 4, 6, False]
    assert parameters["width"].annotation.__metadata__[0].param_decls == ("-W",)
    assert command(name="a", width=1, height=2, depth=3, last=True) == ("a", Box(1, 2, 3), True)


def test_all_takes_parameters_of_methods_that_fit_alone(visx: Any) -> None:
    Path("hard.py").write_text(
        "import torch, visx\n"
        "from nets import Net\n"
        "class Hard(Net):\n"
        "    @torch.no_grad()\n"
        "    def forward(self, x): return super().forward(x)\n"
        "def make(): return visx.wrap(Hard(), size=16)\n"
    )
    args = ("cat.png", "-M", "hard.py:make", "-m", "all", "-p", "gradcam.relu=true")
    for command in ("explain", "evaluate", "compare"):
        run = visx(command, *args)
        assert run.code == 2, command
        assert "unknown method in --param 'gradcam.relu=true' 'gradcam'" in run.err
    assert not list(Path().glob("visx-*/*.png"))


def test_a_name_given_twice_counts_once(visx: Any) -> None:
    run = visx(
        "explain", "cat.png", "-M", "nets.py:good", "-l", "conv,conv", "-l", "conv", "-m", "gradcam,gradcam", "--json"
    )
    assert [row["layer"] for row in run.rows] == ["conv"]
    args = ("cat.png", "-M", "nets.py:good", "--json")
    assert len(visx("compare", *args, "-M", "nets.py:good").rows) == 1
    measured = visx("evaluate", *args, "--metrics", "deletion,deletion", "-p", "deletion.steps=2").rows
    assert [row["metric"] for row in measured] == ["deletion"]
