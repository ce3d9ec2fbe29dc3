"""`visx predict`: the likeliest classes, the way to find a target."""

from __future__ import annotations

from typing import Annotated

import typer

from visx.cli.options import (
    DEFAULT_MODEL,
    ComputeOptions,
    Head,
    Inputs,
    Json,
    Labels,
    MapOptions,
    Means,
    ModelSpec,
    Nul,
    Quiet,
    WeightsSpec,
    grouped,
)
from visx.cli.output import put
from visx.cli.pictures import PictureOptions
from visx.cli.prepare import prepare
from visx.cli.talk import Talk, failure
from visx.errors import ExitCode, printable


@grouped
def predict(
    inputs: Inputs,
    *,
    model: ModelSpec = DEFAULT_MODEL,
    weights: WeightsSpec = "default",
    top: Annotated[int, typer.Option("-k", "--top", metavar="K", min=1, help="How many classes.")] = 5,
    labels: Labels = None,
    means: Means = None,
    head: Head = None,
    compute: ComputeOptions,
    null: Nul = False,
    json: Json = False,
    quiet: Quiet = False,
    pictures: PictureOptions,
) -> int:
    """Show the likeliest classes of images, with their probabilities and logits (of a regression, its values)."""
    talk, options = Talk(quiet), MapOptions(weights, labels=labels, means=means, head=head)
    ready = prepare(talk, options, compute, pictures, inputs=inputs, null=null)

    from visx.engine.predict import predictions
    from visx.files import to_json

    loaded = ready.load(model)
    ready.describe_outputs(loaded)
    done = failed = 0
    remarked: set[str] = set()
    count = min(top, loaded.classes)
    rows = predictions(loaded, ready.items, count, compute.precision, ready.size, talk.say, compute.seed)
    for row in rows:
        if json:
            put(to_json(row), flush=True)
        if "error" in row:
            failed += 1
            talk.error(failure(row))
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
    return int(ExitCode.OK if not failed else ExitCode.SOME_FAILED if done else ExitCode.FAILURE)
