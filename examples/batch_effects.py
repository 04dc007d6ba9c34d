"""Removes the batch effect from a real table of gene expression, by the moments of each batch.

57 samples of bladder tissue were measured in 5 batches (data/README.md), and the batch shows almost
as much as the tissue does. Batch Norm is the cure: every gene of every batch gets the mean of the
whole table and its variance within batches.

Tissues are spread unevenly: all of batch 1 is cancer, all of batch 3 is normal, all of batch 4 are
biopsies. Making such batches alike (the *plain* way) removes part of the tissue too. The second way
*keeps the tissue*: it fits ``x ~ batch + tissue`` first, sets the tissue's part aside, normalizes
the rest, and puts that part back, as ComBat does with covariates (Johnson et al. 2007,
doi:10.1093/biostatistics/kxj037). Unlike ComBat it does not pool the variances of small batches;
small_batches.py shows how uncertain those are. A table that was told its tissues is good to look
at, but no longer evidence about them: tests on it are too sure (Nygaard et al. 2016,
doi:10.1093/biostatistics/kxv027).

How much of the variance the batch explains is R^2 of a regression on the batch, as the mean over
genes. Since batch and tissue overlap, "batch beyond tissue" is told too: what the batch adds to the
R^2 of the tissue. Each way brings one of the two to 0 by construction; what is left of the tissue
is the figure to look at.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table

import fastnorm

DATA = Path(__file__).parent / "data" / "bladderbatch.npz"


def load():
    """Return expression (samples, genes) in float64, and batch and tissue of each sample."""
    with np.load(DATA) as data:
        return data["expression"].astype(np.float64), data["batch"], data["cancer"]


def normalize_batches(x, batch):
    """Give every batch, gene by gene, the mean of the table and its variance within batches."""
    parts = {b: fastnorm.Moments.from_array(x[batch == b]) for b in np.unique(batch)}
    mean = fastnorm.Moments.merge(parts.values()).mean
    std = np.sqrt(sum(part.m2 for part in parts.values()) / len(x))
    y = np.empty_like(x)
    for b in parts:
        # eps leaves a gene without any variance at the mean, and others as they are
        y[batch == b] = fastnorm.batch_norm(x[batch == b], std, mean, training=True, eps=1e-12)
    return y


def indicators(labels):
    """Return a column of 0 and 1 for each label."""
    return (labels[:, None] == np.unique(labels)).astype(np.float64)


def tissue_part(x, batch, tissue):
    """Return what ``x ~ batch + tissue`` says of the tissue."""
    design = np.hstack([indicators(batch), indicators(tissue)])
    coefficients, *_ = np.linalg.lstsq(design, x, rcond=None)
    return indicators(tissue) @ coefficients[-len(np.unique(tissue)) :]


def explained(x, *labels):
    """Return R^2 of the columns of x on the labels, as the mean over columns."""
    design = np.hstack([indicators(each) for each in labels])
    coefficients, *_ = np.linalg.lstsq(design, x, rcond=None)
    rest = fastnorm.Moments.from_array(x - design @ coefficients).var()
    return float((1 - rest / fastnorm.Moments.from_array(x).var()).mean())


def principal_components(x):
    """Return the first two."""
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return u[:, :2] * s[:2]


def figures(x, batch, tissue):
    """Return what batch and tissue explain, by name."""
    components = principal_components(x)
    by_tissue = explained(x, tissue)
    return {
        "batch": explained(x, batch),
        "batch beyond tissue": explained(x, tissue, batch) - by_tissue,
        "tissue": by_tissue,
        "batch, of two components": explained(components, batch),
        "tissue, of two components": explained(components, tissue),
    }


def draw(tables, batch, tissue, path):
    """First two principal components; a column for each table, coloured by batch, then tissue."""
    figure, axes = plt.subplots(2, len(tables), figsize=(4.2 * len(tables), 7.4), squeeze=False)
    for column, (name, x) in enumerate(tables.items()):
        components = principal_components(x)
        for axis, labels in zip(axes[:, column], (batch, tissue), strict=True):
            for i, label in enumerate(np.unique(labels)):
                points = components[labels == label]
                text = f"batch {label}" if labels is batch else label
                axis.scatter(*points.T, color=f"C{i}", marker="osD^v"[i], alpha=0.8, label=text)
            axis.set(xlabel="first component", ylabel="second component")
            axis.grid(alpha=0.3)
        axes[0, column].set_title(name)
    for row in axes:
        row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_table(results):
    """Percent of the variance, a row for each table."""
    table = Table(title="Explained of the variance, mean R^2 over genes, %")
    table.add_column("table")
    for name in next(iter(results.values())):
        table.add_column(name, justify="right")
    for name, found in results.items():
        table.add_row(name, *(f"{abs(100 * value):.1f}" for value in found.values()))
    Console(width=None if Console().is_terminal else 100).print(table)


def main(arguments=None):
    """Normalize both ways, print what the batch explains, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="draw a picture there, as batch_effects.png")
    options = parser.parse_args(arguments)
    x, batch, tissue = load()
    kept = tissue_part(x, batch, tissue)
    tables = {
        "before": x,
        "after, plain": normalize_batches(x, batch),
        "after, tissue kept": normalize_batches(x - kept, batch) + kept,
    }
    results = {name: figures(table, batch, tissue) for name, table in tables.items()}
    print_table(results)
    if options.output:
        draw(tables, batch, tissue, options.output)
        print(f"picture: {options.output}")
    return results


if __name__ == "__main__":
    main()
