"""--verbose says what was chosen; an index in --layer becomes the layer's own name everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def test_verbose_says_what_was_chosen(visx: Any) -> None:
    done = visx(
        "explain", "cat.png", "-M", "nets.py:good", "-m", "gradcam,rise", "-p", "masks=8", "-v", "--batch-size", "2"
    )
    assert done.code == 0
    for words in (
        "model: nets.py:good, weights", "cropped to 32 x 32, bilinear, mean 0.485", "logits, one a class",
        "layers: relu", "gradcam: explains the logit", "rise: explains the prob; masks=8", "cpu, fp32, batches of 2",
        " s an image",
    ):  # fmt: skip
        assert words in done.err, words
    plain = visx("explain", "cat.png", "-M", "nets.py:good", "-o", "plain")
    assert "weights" not in plain.err and "an image" not in plain.err
    assert visx("explain", "cat.png", "-M", "nets.py:good", "-v", "-q", "-o", "quiet").err == ""


def test_verbose_is_explained_by_help(visx: Any) -> None:
    assert "Also say what was chosen" in " ".join(visx("explain", "--help").out.replace("│", " ").split())


NETS = """
from torch import nn
def net():
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def test_an_index_is_a_layer_by_its_own_name(visx: Any) -> None:
    Path("seq.py").write_text(NETS)
    (named,) = visx("explain", "cat.png", "-M", "seq.py:net", "-l", "0.1", "--json", "-o", "a").rows
    (found,) = visx("explain", "cat.png", "-M", "seq.py:net", "-l", "0[-1],0[1],0.1", "--json", "-o", "b").rows
    assert found["layer"] == named["layer"] == "0.1" and found["files"] == named["files"]
    assert (Path("a") / named["files"]["npy"]).read_bytes() == (Path("b") / found["files"]["npy"]).read_bytes()
    wrong = visx("explain", "cat.png", "-M", "seq.py:net", "-l", "0[-3]")
    assert wrong.code == 2 and "unknown layer '0[-3]'" in wrong.err
