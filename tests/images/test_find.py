"""Inputs: what is found, in which order, under which name; nothing leads out of OUT, nothing collides."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import features

from visx.errors import VisxError
from visx.images import dicom, formats, heif
from visx.images.find import find


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "p/b.JPG",
        "p/a.png",
        "p/s/a.png",
        "p/out/x/1.png",
        "p/.hidden.png",
        "p/notes.txt",
        "q/a.png",
        "q/s/p/a.png",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("p/s/up").symlink_to("..")
    Path("p/s/self").symlink_to("self")


def names(*inputs: str, out: str = "p/out", stdin: bytes | None = None, nul: bool = False) -> list[str]:
    return [item.name for item in find(inputs, Path(out), io.BytesIO(stdin) if stdin is not None else None, nul)]


def test_a_directory_is_walked_in_order_once_and_without_out() -> None:
    assert names("p") == ["a.png", "b.JPG", "s/a.png"]
    assert names("p/") == names("p")
    assert names("p", out="elsewhere") == ["a.png", "b.JPG", "out/x/1.png", "s/a.png"]


def test_several_roots_get_their_names() -> None:
    assert names("p", "q") == ["p/a.png", "p/b.JPG", "p/s/a.png", "q/a.png", "q/s/p/a.png"]
    assert names("p", "p/") == ["p/a.png", "p/b.JPG", "p/s/a.png"]
    assert names("p/a.png", "p/a.png") == ["a.png"]


@pytest.mark.parametrize("inputs", [("p/a.png", "q/a.png"), ("p", "q/s/p")])
def test_a_collision_names_both(inputs: tuple[str, str]) -> None:
    with pytest.raises(VisxError, match=r"p/a\.png and q/.*a\.png would both write to") as error:
        names(*inputs)
    assert error.value.code == 2


def test_standard_input() -> None:
    root = Path.cwd()
    listed = f"p/a.png\n\n ./q/a.png\r\n{root}/p/b.JPG\n../../{root.name}/q/s/p/a.png\n".encode().replace(b" ./", b"./")
    found = names("-", stdin=listed)
    assert found == ["p/a.png", "q/a.png", f"{root}/p/b.JPG".lstrip("/"), f"{root.name}/q/s/p/a.png"]
    assert names("-", stdin=b"p\n") == ["p/a.png", "p/b.JPG", "p/s/a.png"]  # OUT is skipped here too
    assert names("-", stdin=b"p/a.png\0 \0", nul=True) == ["p/a.png", " "]
    for stdin in (None, b"", b"\n", b"a\0b"):
        with pytest.raises(VisxError) as error:
            names("-", stdin=stdin)
        assert error.value.code == 2
    assert not any(
        ".." in name.split("/") or name.startswith("/") for name in names("-", stdin=b"../../../x.png\n/y.png\n")
    )


@pytest.mark.parametrize("root", ["gone", "p/out", "a" * 300, "p/s/self/x"])
def test_nothing_to_do_is_a_usage_error(root: str) -> None:
    with pytest.raises(VisxError) as error:
        names(root)
    assert error.value.code == 2


def test_other_formats_are_remarked_once_with_how_to_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    images = [
        "a.heic",
        "b.HEIC",
        "s/c.dcm",
        "d.CR2",
        "e.svg",
        "x.npy",
        "y.txt",
        "z.jp2",
        "v.nii.gz",
        "w.tar.gz",
        "k.png",
    ]
    for name in (f"f/{image}" for image in images):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    monkeypatch.setattr(
        formats,
        "_BY_ENDING",
        {**formats._BY_ENDING, **dict.fromkeys((".heic", ".dcm"), (lambda: False, "pip install x"))},
    )
    formats.taken.cache_clear()
    said: list[str] = []
    names = [item.name for item in find(["f"], on_message=said.append)]
    assert names == ["k.png", "z.jp2"] if features.check("jpg_2000") else ["k.png"]
    (remark,) = said
    assert "passing over 7 files" in remark or not features.check("jpg_2000")
    for text in (
        "1 .dcm, 2 .heic (pip install x)",
        "1 .cr2 (raw",
        "1 .svg (drawings",
        "1 .npy (arrays",
        "1 .nii.gz (volumes",
    ):
        assert text in remark
    Path("f/k.png").unlink()
    Path("f/z.jp2").unlink()
    with pytest.raises(VisxError, match="no images in f") as error:
        find(["f"])
    assert "2 .heic" in error.value.hint
    monkeypatch.undo()
    formats.taken.cache_clear()
    assert formats.taken(".heic") == heif.available() and formats.taken(".dcm") == dicom.available()
    assert formats.taken(".avif") == bool(features.check("avif"))
