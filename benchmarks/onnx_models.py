"""ONNX files against the torch networks that they were exported from, and RISE on them against bare onnxruntime passes.

    python benchmarks/onnx_models.py [--models efficientnet_lite0,resnet18,timm/vit_tiny_patch16_224] [--picture samples/coffee.png]
                                     [--masks 200] [--batch 16] [--rounds 5] [--only agreement|speed]

Exports every network (opset 17) into a temporary folder. First prints, for occlusion, LIME and RISE, the correlation r of the
two maps and the largest difference as a part of the map's range, and the difference of insertion and deletion of the RISE
map. Then the time of RISE over that of as many bare passes of onnxruntime, in batches of the same size with the same number
of threads, sessions of onnxruntime's own defaults ("bare") and with visx's settings ("bare, no spinning"); medians of
interleaved rounds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from timing import table, take_turns

PARAMS: dict[str, dict[str, Any]] = {"occlusion": {"patch": 56, "stride": 28}, "lime": {"samples": 200}, "rise": {}}


def exported(spec: str, folder: Path) -> tuple[Any, Any]:
    """The torch model of a SPEC (random weights where it is not built in), and the model of its ONNX file."""
    import torch

    from visx.models import load_model

    model = load_model(spec, "default" if spec == "efficientnet_lite0" else "random")
    file = folder / f"{spec.replace('/', '_')}.onnx"
    module = model.module.to(memory_format=torch.contiguous_format)
    x = torch.randn(1, *model.input_shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (x,), str(file), dynamo=False, opset_version=17, input_names=["pixels"], output_names=["scores"],
            dynamic_axes={"pixels": {0: "n"}, "scores": {0: "n"}},
        )  # fmt: skip
    how = model.preprocess
    other = load_model(str(file), resize=how.resize, interpolation=how.interpolation, mean=how.mean, std=how.std)
    return model, other


def agreement(model: Any, other: Any, picture: Path, masks: int, folder: Path) -> list[str]:
    """Lines of a table: how alike the maps and metrics of two models are."""
    from visx.engine.explainer import Explainer
    from visx.engine.jobs import plan
    from visx.evaluate.bench import Bench, explain_all
    from visx.images.find import Item
    from visx.methods import get_method
    from visx.metrics import get_metric
    from visx.store.settings import Settings

    params = {**PARAMS, "rise": {"masks": masks}}
    maps: list[dict[str, np.ndarray]] = []
    values: list[dict[str, float]] = []
    for number, one in enumerate((model, other)):
        out = folder / f"{one.name.replace('/', '_')}-{number}"
        jobs = plan(one, [get_method(name) for name in params], params=params)
        samples = explain_all(one, jobs, [Item(picture, picture.name)], Settings(out, one.targets(["top1"]))).samples
        maps.append({s.job.method.name: np.load(out / s.record.npy) for s in samples})
        (rise,) = (s for s in samples if s.job.method.name == "rise")
        bench = Bench(Explainer(one, one.black_box()))
        metrics = [get_metric(name) for name in ("insertion", "deletion")]
        values.append({m.name: bench.measure(rise, m, m.params()).value for m in metrics})
    lines = []
    for name, map in maps[0].items():
        r = float(np.corrcoef(map.ravel(), maps[1][name].ravel())[0, 1])
        lines.append(f"| {model.name} | {name} | r {r:.7f} | {np.abs(map - maps[1][name]).max() / np.ptp(map):.1e} |")
    for name, value in values[0].items():
        lines.append(f"| {model.name} | {name} | {value:.4f} | {abs(value - values[1][name]):.1e} |")
    return lines


def speed(other: Any, masks: int, batch: int, rounds: int) -> str:
    """A table of the time of RISE and of its bare passes."""
    import onnxruntime
    import torch

    from visx.engine.batch import explain_batch
    from visx.engine.jobs import plan
    from visx.methods import get_method
    from visx.network.memory import BatchSize

    box = other.black_box()
    _ = other.anatomy
    x = torch.randn(1, *other.input_shape, generator=torch.Generator().manual_seed(0))
    (job,) = plan(other, [get_method("rise")], params={"rise": {"masks": masks}})
    targets = [other.targets(["0"])]
    copies = x.expand(batch, -1, -1, -1).contiguous().numpy()

    def session(spinning: str) -> Any:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        return onnxruntime.InferenceSession(other.name, options, providers=["CPUExecutionProvider"])

    def bare(session: Any) -> None:
        for start in range(0, masks, batch):
            session.run(None, {"pixels": copies[: min(batch, masks - start)]})

    spinning, asleep = session("1"), session("0")
    contenders = {
        "bare": lambda: bare(spinning),
        "bare, no spinning": lambda: bare(asleep),
        "rise": lambda: explain_batch(other, box, job, x, targets, [0], copies=BatchSize(batch)),
    }
    with box.session():
        return table(
            f"{Path(other.name).stem}: {masks} copies in batches of {batch}", take_turns(contenders, rounds), "bare"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="efficientnet_lite0,resnet18,timm/vit_tiny_patch16_224")
    parser.add_argument("--picture", type=Path, default=Path("samples/coffee.png"))
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=["agreement", "speed"])
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    lines, tables = ["| network | | torch | difference |", "| --- | --- | ---: | ---: |"], []
    with tempfile.TemporaryDirectory() as temporary:
        for spec in args.models.split(","):
            model, other = exported(spec, Path(temporary))
            if args.only != "speed":
                lines += agreement(model, other, args.picture, args.masks, Path(temporary))
            if args.only != "agreement":
                tables.append(speed(other, args.masks, args.batch, args.rounds))
    print("\n\n".join([*(["\n".join(lines)] if args.only != "speed" else []), *tables]))


if __name__ == "__main__":
    main()
