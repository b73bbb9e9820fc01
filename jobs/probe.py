"""igpt probe: how well each layer's features tell classes apart."""

import json
from typing import TYPE_CHECKING

import click
from pydantic import Field

from jobs.command import command
from pipeline.options import ProgressOptions, StorageOptions

if TYPE_CHECKING:
    from pipeline.training.probe import LayerAccuracy


class ProbeOptions(ProgressOptions, StorageOptions):
    train: str = Field(description="run of igpt embed to fit the probes to")
    test: str = Field(description="run of igpt embed to test them on")
    output: str = Field(description="folder for probe.json, probe.npz and accuracy.png")
    label_column: str = Field("label", description="column of classes, whole numbers from 0")
    seed: int = Field(0, ge=0, description="seed of the choice of validation rows")


def run(options: ProbeOptions) -> None:
    from pipeline.storage.filesystem import absolute, options_for
    from pipeline.storage.redact import redacted
    from pipeline.training.embeddings import read_embeddings
    from pipeline.training.probe import check_packages, probe_layers, table, write_probe

    check_packages()
    train, test = (
        read_embeddings(
            location,
            label_column=options.label_column,
            storage_options=options_for(options.storage_options, "input"),
        )
        for location in (options.train, options.test)
    )
    say = (lambda row: None) if options.progress != "text" else _say
    layers, best = probe_layers(train, test, seed=options.seed, report=say)
    result = write_probe(
        absolute(options.output),
        layers,
        best,
        facts={"train_rows": len(train.labels), "test_rows": len(test.labels)},
        storage_options=options_for(options.storage_options, "output"),
    )
    if options.json_lines:
        click.echo(json.dumps({"event": "done", "output": redacted(options.output), **result}))
    else:
        click.echo(table(layers, result["best_layer"]))
        click.echo(redacted(f"{options.output}/accuracy.png"))


def _say(row: "LayerAccuracy") -> None:
    click.echo(f"layer {row.layer}: accuracy {row.accuracy:.4f}", err=True)


COMMAND = command(
    "probe",
    ProbeOptions,
    run,
    help="Fit a linear probe to each layer of embeddings; table, plot, JSON, the best one saved.",
    example="igpt probe --train out/train --test out/test --output out/probe",
)
