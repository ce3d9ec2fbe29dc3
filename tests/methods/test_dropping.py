"""`hide=drop`, TIS and ViT-CX against their formulas written slowly, on a reference that masks tokens in every attention."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from in_process import visx as command
from masked_attention import masked
from nets import CLASSES, GapHead, TinyViT, images, seeded
from oracles import answers, ask, maps_of, model_of, pearson, same
from rise_masks import slow_masks
from visx.errors import VisxError
from visx.methods.tis import token_masks
from visx.methods.vit_cx import Raster
from visx.seeds import generator, normal


def tiny(**more: Any) -> nn.Module:
    """timm's ViT-tiny with seeded weights, a smaller one with them."""
    timm = pytest.importorskip("timm", reason="timm is an extra")
    return timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **more)


def scores(net: nn.Module, x: Tensor, visible: Tensor, target: int) -> Tensor:
    """(N,) probabilities of copies whose hidden tokens are masked in every attention."""
    return masked(net, x, visible, 1).softmax(1)[:, target]


def patches(masks: Tensor, side: int) -> Tensor:
    """(N, patches) bool: where the mean of a mask (N, H, W) over a patch is at least one half, patch by patch."""
    rows, columns = (n // side for n in masks.shape[-2:])
    kept = [
        m[i * side : (i + 1) * side, j * side : (j + 1) * side].mean() >= 0.5 - 1e-9
        for m in masks
        for i, j in itertools.product(range(rows), range(columns))
    ]
    return torch.stack(kept).view(len(masks), -1)


# (network, side of the picture, side of a patch)
NETS = {
    "toy": (lambda: TinyViT(prefix=1), 16, 4),
    "ViT-tiny": (lambda: tiny(img_size=48, depth=3), 48, 16),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("normalise", ["np", "pixel"])
def test_rise_weighs_its_masks_by_the_scores_of_visible_tokens(name: str, normalise: str) -> None:
    build, size, side = NETS[name]
    net, x = seeded(build), images(1, size)
    masks = slow_masks(5, 40, 3, 0.4, size, size)
    s = scores(net, x[0], patches(masks, side), 2)
    total = (s[:, None, None] * masks).sum(0)
    wanted = total / (40 * 0.4) if normalise == "np" else total / masks.sum(0)
    found = ask(
        "rise", net, x, (2,), kind="prob", seeds=(5,), masks=40, cells=3, p=0.4, normalise=normalise, hide="drop"
    )
    assert same(found.map[0, 0], wanted, 1e-7)
    assert found.extras == [[{"masks": 40}]] and found.warnings == [[[]]]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("pad", [False, True])
def test_occlusion_leaves_out_the_tokens_under_the_patch(name: str, pad: bool) -> None:
    """Of a padded one the patch is centred on pixels up to the border: no frame is needed, for nothing is filled."""
    build, size, side = NETS[name]
    net, x, patch, stride = seeded(build), images(1, size), side + side // 2, side // 2 + 1
    half = patch // 2 if pad else 0
    starts = list(range(0, size if pad else size - patch + 1, stride))
    last = size - 1 if pad else size - patch
    starts = [s - half for s in (starts if starts[-1] == last else [*starts, last])]
    masks = []
    for top, left in itertools.product(starts, starts):
        mask = torch.ones(size, size, dtype=torch.float64)
        mask[max(top, 0) : top + patch, max(left, 0) : left + patch] = 0
        masks.append(mask)
    visible = patches(torch.stack(masks), side)
    clean = net(x)[0].softmax(0)[2].detach()
    wanted = (clean - scores(net, x[0], visible, 2)).view(len(starts), len(starts))
    found = ask("occlusion", net, x, (2,), kind="prob", patch=patch, stride=stride, pad=pad, hide="drop")
    assert same(found.native[0, 0], wanted, 1e-6)
    if not pad:
        covering = 1 - torch.stack(masks)
        mean = (covering * wanted.view(-1, 1, 1)).sum(0) / covering.sum(0)
        assert same(found.map[0, 0], mean, 1e-6)


def test_a_patch_that_hides_no_token_is_refused() -> None:
    with pytest.raises(VisxError, match="a patch of 2 covers no half of a token's 4 x 4 pixels") as refused:
        ask("occlusion", seeded(TinyViT), images(1, 16), patch=2, stride=2, hide="drop")
    assert refused.value.code == 2


def test_what_cannot_be_scored_without_any_token_is_left_out() -> None:
    """Without a class token a copy that hides everything has no score."""
    net, x = seeded(lambda: TinyViT(prefix=0)), images(1, 16)
    found = ask("rise", net, x, (2,), kind="prob", masks=30, cells=2, p=0.1, hide="drop")
    hidden = int((~patches(slow_masks(0, 30, 2, 0.1, 16, 16), 4).any(1)).sum())
    assert 0 < hidden < 30 and found.extras[0][0]["masks"] == 30 - hidden
    assert f"the score of {hidden} of 30 masked copies is not finite" in found.warnings[0][0][0]
    assert found.map.isfinite().all()
    bare = ask("rise", seeded(TinyViT), x, (2,), kind="prob", masks=30, cells=2, p=0.1, hide="drop")
    assert bare.extras[0][0]["masks"] == 30 and not bare.warnings[0][0]


class ByTokens(nn.Module):
    """One attention of equal weights, so that the logits are the mean of what the visible patches hold."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.drop = nn.Conv2d(3, CLASSES, 4, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.patch(x).flatten(2).transpose(1, 2))
        weights = ((0 * x) @ x.transpose(1, 2)).softmax(-1)
        return (weights @ x).mean(1)


def test_closed_form_of_a_mean_of_tokens() -> None:
    """Without token k the mean of n values grows by (mean - value_k) / (n - 1): occlusion's map, minus that."""
    net, x = seeded(ByTokens), images(1, 16)
    values = net.patch(x)[0, 3].detach()  # (4, 4)
    found = ask("occlusion", net, x, (3,), patch=4, stride=4, hide="drop")
    assert same(found.native[0, 0], (values - values.mean()) / 15)
    assert same(found.map[0, 0], ((values - values.mean()) / 15).repeat_interleave(4, 0).repeat_interleave(4, 1))


def features(net: nn.Module, x: Tensor) -> Tensor:
    """(K, patches): the outputs of all blocks, one after the other."""
    kept: list[Tensor] = []
    handles = [b.register_forward_hook(lambda m, a, output: kept.append(output.detach())) for b in net.blocks]
    with torch.no_grad():
        net(x[None])
    for handle in handles:
        handle.remove()
    return torch.cat(kept, -1)[0, 1:].T


@pytest.mark.parametrize("name", NETS)
def test_tis_is_the_mean_score_of_the_masks_of_a_token(name: str) -> None:
    """The authors' steps: k-means of the blocks' features, the strongest tokens of each centre, scores, coverage."""
    from sklearn.cluster import KMeans

    build, size, side = NETS[name]
    net, x = seeded(build), images(1, size)
    points = features(net, x[0]).numpy()
    start = generator(7, "k-means").initial_seed() % 2**32
    means = KMeans(24, init="random", n_init=1, max_iter=100, tol=1e-4, random_state=start).fit(points)
    cells = (size // side) ** 2
    total, covered = np.zeros(cells), np.zeros(cells)
    for centre in means.cluster_centers_:
        mask = torch.zeros(1, cells, dtype=torch.bool)
        mask[0, np.sort(np.argsort(centre)[::-1][: int(0.4 * cells)]).copy()] = True
        score = float(scores(net, x[0], mask, 2))
        total, covered = total + score * mask[0].numpy(), covered + mask[0].numpy()
    assert covered.min() > 0
    found = ask("tis", net, x, (2,), kind="prob", seeds=(7,), masks=24, ratio=0.4)
    assert same(found.map[0, 0].flatten(), total / covered, 1e-7)
    assert pearson(found.map[0, 0].flatten(), total / covered) >= 0.9999
    assert found.extras == [[{"masks": 24, "tokens": int(0.4 * cells)}]]


def test_tis_has_a_mask_for_each_of_few_features_and_says_what_no_mask_keeps() -> None:
    few = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 3.0, 2.0, 1.0], [3.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    masks = token_masks(few, 1000, 0.5, 0)
    assert masks.tolist() == [[False, True, True, False], [True, True, False, False]]
    assert token_masks(few, 1000, 0.01, 0).sum(1).tolist() == [1, 1]
    net = seeded(lambda: TinyViT(depth=1, width=2))
    found = ask("tis", net, images(1, 40), (2,), kind="prob", masks=5, ratio=0.1)
    bare = int((found.map[0, 0] == 0).sum())
    assert bare > 0 and found.warnings[0][0] == [
        f"{bare} of 100 tokens are in no mask: their value is 0 (more masks help)"
    ]


def test_tis_depends_on_the_seed_and_on_nothing_else() -> None:
    net, x = seeded(TinyViT), images(2, 20)
    one, two = (ask("tis", net, x, (2,), seeds=(3, 4), masks=12, copies=copies).map for copies in (16, 3))
    assert same(one, two, 1e-12)
    alone = ask("tis", net, x[1:], (2,), seeds=(4,), masks=12).map
    assert same(one[1:], alone, 1e-12)
    assert not same(ask("tis", net, x[1:], (2,), seeds=(5,), masks=12).map, alone, 1e-6)


def slow_vit_cx(maps: Tensor, size: int, distance: float) -> Tensor:
    """The authors' masks: every map upsampled and brought to 0..1, grouped, summed, and brought to 0..1 again."""
    from sklearn.cluster import AgglomerativeClustering

    whole = F.interpolate(maps[None], (size, size), mode="bilinear", align_corners=False)[0].flatten(1)

    def normed(m: Tensor) -> Tensor:
        low, high = m.amin(1, keepdim=True), m.amax(1, keepdim=True)
        return (m - low) / (high - low)

    masks = normed(whole)
    cosines = F.normalize(masks) @ F.normalize(masks).T
    clusters = AgglomerativeClustering(None, metric="precomputed", linkage="complete", distance_threshold=distance)
    labels = clusters.fit(1 - cosines.numpy()).labels_
    groups = torch.stack([masks[torch.from_numpy(labels == i)].sum(0) for i in range(labels.max() + 1)])
    return normed(groups).view(-1, size, size)


def layer_maps(net: nn.Module, x: Tensor, name: str, grid: int) -> Tensor:
    kept: list[Tensor] = []
    handle = net.get_submodule(name).register_forward_hook(lambda m, a, output: kept.append(output.detach()))
    with torch.no_grad():
        net(x[None])
    handle.remove()
    return kept[0][0, 1:].T.unflatten(1, (grid, grid)) if kept[0].dim() == 3 else kept[0][0]


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("hide", ["drop", "noise"])
def test_vit_cx_is_the_mean_score_of_the_masks_of_a_pixel(name: str, hide: str) -> None:
    build, size, side = NETS[name]
    net, x = seeded(build), images(1, size)
    masks = slow_vit_cx(layer_maps(net, x[0], "blocks.2.norm1", size // side), size, 0.1)
    assert 3 <= len(masks) < 192, "too few groups to tell anything"
    if hide == "drop":
        s = scores(net, x[0], patches(masks, side), 2)
    else:
        z = 0.1 * normal(0, (3, size, size), 0, len(masks)) * (1 - masks[:, None])
        with torch.no_grad():
            hidden, noisy, clean = (net(y).softmax(1)[:, 2] for y in (x * masks[:, None] + z, x + z, x))
        s = hidden - noisy + clean
    wanted = torch.einsum("n,nhw->hw", s, masks) / masks.sum(0)
    found = ask("vit_cx", net, x, (2,), layer="blocks.2.norm1", kind="prob", hide=hide)
    assert found.map.shape == (1, 1, size, size)
    assert same(found.map[0, 0], wanted, 1e-6) and pearson(found.map[0, 0], wanted) >= 0.9999
    assert found.extras == [[{"masks": len(masks), "hide": hide}]]


def test_vit_cx_takes_the_paper_s_noise_where_no_token_can_be_left_out() -> None:
    net, x = seeded(GapHead), images(1, 12)
    masks = slow_vit_cx(layer_maps(net, x[0], "features.2", 12), 12, 0.1)
    z = 0.1 * normal(0, (3, 12, 12), 0, len(masks)) * (1 - masks[:, None])
    with torch.no_grad():
        hidden, noisy, clean = (net(y)[:, 2] for y in (x * masks[:, None] + z, x + z, x))
    wanted = torch.einsum("n,nhw->hw", hidden - noisy + clean, masks) / masks.sum(0).clamp_min(1e-300)
    found = ask("vit_cx", net, x, (2,), layer="features.2")
    assert found.extras[0][0] == {"masks": len(masks), "hide": "noise"}
    assert same(found.map[0, 0], wanted, 1e-6)
    with pytest.raises(VisxError, match="it has no attention") as refused:
        answers(model_of(net), "vit_cx", x, hide="drop")
    assert refused.value.code == 4


def test_vit_cx_by_default_looks_at_the_input_of_the_last_attention() -> None:
    (found,) = answers(model_of(seeded(TinyViT), 16), "vit_cx", images(1, 16))
    assert found[0].extras["hide"] == "drop"  # type: ignore[index]
    same_layer = answers(model_of(seeded(TinyViT), 16), "vit_cx", images(1, 16), layer="blocks.2.norm1")
    assert np.array_equal(maps_of([found]), maps_of(same_layer))


def test_vit_cx_without_any_mask_says_so() -> None:
    net = seeded(TinyViT)
    nn.init.zeros_(net.blocks[2].norm1.weight)
    found = ask("vit_cx", net, images(1, 16), layer="blocks.2.norm1")
    assert not found.map.any() and "there is no mask" in found.warnings[0][0][0]


@pytest.mark.parametrize("size", [(12, 30), (7, 7)])
def test_cosines_of_upsampled_maps_are_found_without_upsampling(size: tuple[int, int]) -> None:
    maps = torch.rand(9, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    raster = Raster(maps, size)
    whole = F.interpolate(maps[None], size, mode="bilinear", align_corners=False)[0]
    assert same(raster.up(maps), whole)
    assert same(raster._cosines(maps), F.cosine_similarity(whole.flatten(1)[:, None], whole.flatten(1)[None], dim=2))
    normed = raster.up(raster.normed(maps)).flatten(1)
    assert normed.amin(1).abs().max() < 1e-12 and (normed.amax(1) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("method", ["rise", "occlusion", "tis", "vit_cx"])
def test_batches_equal_singles_and_half_precision_is_near(method: str) -> None:
    params = {"rise": {"masks": 40, "cells": 3, "hide": "drop"}, "tis": {"masks": 20}}.get(method, {})
    params |= {"patch": 8, "stride": 4, "hide": "drop"} if method == "occlusion" else {}
    net, x = seeded(TinyViT, dtype=torch.float32), images(3, 20, dtype=torch.float32)
    model = model_of(net, 20)
    together = maps_of(answers(model, method, x, "2", seeds=(7, 8, 9), **params))
    for b in range(3):
        alone = maps_of(answers(model, method, x[b : b + 1], "2", seeds=(7 + b,), **params))
        assert same(together[b : b + 1], alone, 1e-5)
    half = maps_of(answers(model, method, x, "2", seeds=(7, 8, 9), precision="bf16", **params))
    assert method == "vit_cx" or np.abs(half - together).max() <= 0.3 * np.abs(together).max()


def test_by_the_command(tmp_path: Path) -> None:
    """The manifest says how tokens were hidden; a network without tokens is refused before anything is written."""
    (tmp_path / "nets.py").write_text(
        "import visx, torch\nfrom nets import GapHead, TinyViT\n"
        "def vit(): return visx.wrap(TinyViT(), size=24)\ndef cnn(): return visx.wrap(GapHead(), size=24)\n"
    )
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    words = ("-m", "rise,tis,vit_cx", "-p", "rise.masks=8", "-p", "tis.masks=8", "-p", "rise.hide=drop", "--json")
    run = command("explain", tmp_path / "a.png", "-M", f"{tmp_path / 'nets.py'}:vit", *words, "-o", tmp_path / "out")
    records = {line["method"]: line for line in map(json.loads, run.out.splitlines())}
    assert run.code == 0 and list(records) == ["rise", "tis", "vit_cx"]
    assert records["rise"]["params"]["hide"] == "drop" and records["vit_cx"]["extras"]["hide"] == "drop"
    assert records["tis"]["extras"] == {"masks": 8, "tokens": 18}
    run = command("explain", tmp_path / "a.png", "-M", f"{tmp_path / 'nets.py'}:cnn", *words, "-o", tmp_path / "none")
    assert run.code == 3 and "it has no attention" in run.err  # vit_cx is done, on pixels
    run = command(
        "explain", tmp_path / "a.png", "-M", f"{tmp_path / 'nets.py'}:cnn", "-m", "tis", "-o", tmp_path / "no"
    )
    assert run.code == 4 and "these fit: " in run.err
