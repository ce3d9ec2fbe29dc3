"""`visx predict`: the likeliest classes, the way to find a target."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from visx.cli import common
from visx.cli.common import (
    BatchSize,
    Device,
    Head,
    Inputs,
    Json,
    Labels,
    Means,
    ModelSpec,
    Nul,
    Precision,
    Quiet,
    WeightsSpec,
)
from visx.cli.output import put
from visx.cli.pictures import with_pictures
from visx.cli.talk import Talk
from visx.errors import printable


@with_pictures
def predict(
    inputs: Inputs,
    model: ModelSpec = "efficientnet_lite0",
    weights: WeightsSpec = "default",
    top: Annotated[int, typer.Option("-k", "--top", metavar="K", min=1, help="How many classes.")] = 5,
    labels: Labels = None,
    means: Means = None,
    head: Head = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    batch_size: BatchSize = "auto",
    null: Nul = False,
    json: Json = False,
    quiet: Quiet = False,
    *,
    pictures: dict[str, Any],
) -> int:
    """Show the likeliest classes of images, with their probabilities and logits (of a regression, its values)."""
    size = common.batch_size(batch_size)

    from visx.engine.predict import predictions
    from visx.files import to_json
    from visx.images import find as finding
    from visx.models import load_model
    from visx.store.manifest import holds_results

    talk = Talk(quiet)
    items = finding.find(inputs, None, sys.stdin.buffer, null, talk.say, holds_results)
    loaded = load_model(
        model, weights, labels=labels, device=common.pick_device(device), means=means, head=head, **pictures
    )
    common.say_outputs(loaded, talk.say)
    done = failed = 0
    remarked: set[str] = set()
    for row in predictions(loaded, items, min(top, loaded.classes), precision, size):
        if json:
            put(to_json(row), flush=True)
        if "error" in row:
            failed += 1
            hint = f" ({row['error']['hint']})" if row["error"]["hint"] else ""
            talk.error(f"{printable(row['image'])}: {row['error']['message']}{hint}")
            continue
        done += 1
        for remark in set(row["remarks"]) - remarked:
            remarked.add(remark)
            talk.say(f"{printable(row['image'])}: {remark} (shown for the first such picture only)")
        if not json:
            put(printable(row["image"]))
            for guess in row["predictions"]:
                chance = guess["probability"]
                shown = f"{guess['logit']:<10.5g}" if chance is None else f"{chance:7.2%}"
                put(f"  {shown}  {guess['target']:>4}  {guess['label']}")
    return 0 if not failed else 3 if done else 1
