"""What the HTML report shows of each layer: how far its hidden states moved, and what is left of its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .html_figures import NO_FIGURE, Figure, Table, dots

_DELTA = "how far hidden states moved from the original's; it says that pruning had an effect, not how bad it is"
_REFERENCE = (
    "how far they are from the reference's, the original with its heads pruned by hooks at run time; it is rounding, "
    "adding up from layer to layer"
)
_OWN = "the same of this layer alone, on the same input: rounding that cannot add up"
_E = "E, the mean squared change of the layer's attention output, over that without compensation; 1 is no gain"


def layer_figures(content: Mapping[str, Any]) -> tuple[list[Figure], list[Table]]:
    """(the figures with a row per layer, the tables that have no figure) of the manifest *content*."""
    checked = content["verification"]
    behaviour, fitted = checked["behaviour"], checked.get("compensation")
    figures: list[Figure | None] = []
    tables = []
    if behaviour is not None:
        figures += [_deltas(behaviour), _apart(behaviour["layers"])]
        if fitted is None:
            figures.append(_left_on_the_probe(behaviour["layers"]))
        tables.append(_factors(behaviour["layers"]))
    if fitted is not None:
        figures.append(_left_of_error(fitted, content["compensation"]))
    return [figure for figure in figures if figure is not None], tables


def _deltas(behaviour: Mapping[str, Any]) -> Figure | None:
    rows = behaviour["layers"]
    columns = [
        ("layer", ""),
        ("heads pruned", ""),
        ("mean |delta|", "mean of the absolute change of hidden states after the layer"),
        ("relative delta", _DELTA),
        ("off reference", _REFERENCE),
        ("alone, delta", "the change that this layer makes to the original's output on the same input"),
        ("alone, off", _OWN),
    ]
    table = Table(
        "Hidden states after each layer",
        columns,
        [
            [
                str(row["layer"]),
                str(row["heads_pruned"]),
                f"{row['mean_abs_delta']:.3g}",
                f"{row['relative_delta']:.2%}",
                f"{row['reference_error']:.2g}",
                f"{row['own_delta']:.2%}",
                f"{row['own_error']:.2g}",
            ]
            for row in rows
        ],
    )
    series = [
        ("relative delta", _DELTA, [row["relative_delta"] for row in rows]),
        ("off reference", _REFERENCE, [row["reference_error"] for row in rows]),
        ("alone, off reference", _OWN, [row["own_error"] for row in rows]),
    ]
    return dots(
        "Hidden states: far from the original, near to the reference",
        "A row per layer: the relative change of hidden states against the original and against the reference.",
        [row["layer"] for row in rows],
        series,
        lambda figure: f"{figure:.3g}",
        table,
        bound=(behaviour["tolerance"], "tolerance"),
    )


def _apart(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Text and image tokens, each against the original and against the reference."""
    rows = [row for row in rows if row.get("apart")]
    columns = [
        ("layer", ""),
        ("tokens", "those of text, or those that an image becomes"),
        ("mean |delta|", "mean of the absolute change of hidden states against the original's"),
        ("max |delta|", "the largest of these"),
        ("relative delta", _DELTA),
        ("cosine", "between the two hidden states of a token, in the mean; 1 is the same direction"),
        *((f"{name}, reference", "") for name in ("mean", "max", "relative")),
        ("cosine, reference", "these four: the same against the reference, which is rounding"),
    ]
    table = Table(
        "Hidden states of text and of image tokens after each layer",
        columns,
        [
            [
                str(row["layer"]),
                modality,
                *(
                    shown
                    for other in ("original", "reference")
                    for shown in (
                        f"{of_modality[other]['mean_abs_delta']:.3g}",
                        f"{of_modality[other]['max_abs_delta']:.3g}",
                        f"{of_modality[other]['relative_delta']:.3g}",
                        f"{of_modality[other]['cosine']:.4g}",
                    )
                ),
            ]
            for row in rows
            for modality, of_modality in row["apart"].items()
        ],
    )
    series = [
        (
            f"{modality}, {'relative delta' if other == 'original' else 'off reference'}",
            f"how far hidden states of {modality} tokens are from the {other}'s",
            [row["apart"].get(modality, {}).get(other, {}).get("relative_delta") for row in rows],
        )
        for other in ("original", "reference")
        for modality in ("text", "image")
        if any(modality in row["apart"] for row in rows)
    ]
    return dots(
        "Hidden states of text and of image tokens",
        "A row per layer: the relative change of hidden states of text and of image tokens, against the original and "
        "against the reference.",
        [row["layer"] for row in rows],
        series,
        lambda figure: f"{figure:.3g}",
        table,
    )


def _left_on_the_probe(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    rows = [row for row in rows if row["error_left"] is not None]
    columns = [("layer", ""), ("error left", _E)]
    return dots(
        "What the compensation leaves of the error, on the probe",
        "A row per layer that loses heads: what the compensation leaves of the error of none.",
        [row["layer"] for row in rows],
        [("error left", _E, [row["error_left"] for row in rows])],
        lambda figure: f"{figure:.3g}",
        Table("Error left in each layer", columns, [[str(row["layer"]), f"{row['error_left']:.3g}"] for row in rows]),
        bound=(1.0, "none"),
    )


def _left_of_error(fitted: Mapping[str, Any], mode: str) -> Figure | None:
    rows = list(fitted.items())

    def left(row: Mapping[str, Any], name: str, of: str = "error") -> float | None:
        errors = row[of]
        return None if errors is None or not errors["none"] else errors[name] / errors["none"]

    def stored(row: Mapping[str, Any]) -> float | None:
        return row["stored_error"] / row["error"]["none"] if row["error"]["none"] else None

    unseen = [(row, "held_out_error") for _, row in rows]
    what = f"by {mode}, or what a layer uses in its place"
    series = [
        ("fit", f"{what}, on the data that it was made of", [left(row, "fit") for _, row in rows]),
        ("held-out fit", "the same on samples that it has not seen", [left(row, "fit", of) for row, of in unseen]),
    ]
    if mode != "scale":
        series += [
            ("scale", "by the S4 scale, on the data of the fit", [left(row, "scale") for _, row in rows]),
            ("held-out scale", "by the S4 scale on those samples", [left(row, "scale", of) for row, of in unseen]),
        ]
    columns = [
        ("layer", ""),
        (
            "compensation",
            "what this layer uses: the mode asked for, or a simpler one that is better on held-out samples",
        ),
        ("damping", "how strongly least squares holds back"),
        ("N/n", "the S4 scale: all heads over kept heads"),
        ("c*", "the one factor for all kept heads that changes the attention output least, on the data of the fit"),
        ("E none", "the mean squared change of the layer's attention output without compensation"),
        ("scale", "what the S4 scale leaves of it; above 1 is worse than no compensation"),
        ("fit", "what the fit leaves of it"),
        ("stored", "what it leaves once its weights are rounded to the stored type"),
        ("held-out fit", "what it leaves on samples that it was not made of"),
        ("held-out scale", "what the S4 scale leaves on those samples"),
    ]
    table = Table(
        "The fit of each layer",
        columns,
        [
            [
                layer,
                row["mode"],
                NO_FIGURE if row["damping"] is None else f"{row['damping']:g}",
                *(_figure(row[name]) for name in ("scale_factor", "best_factor")),
                f"{row['error']['none']:.3g}",
                *(_figure(figure) for figure in (left(row, "scale"), left(row, "fit"), stored(row))),
                *(_figure(left(row, name, "held_out_error")) for name in ("fit", "scale")),
            ]
            for layer, row in rows
        ],
    )
    return dots(
        "What each compensation leaves of the error",
        "A row per layer that loses heads: what scale and fit leave of the error of no compensation.",
        [int(layer) for layer, _ in rows],
        series,
        lambda figure: f"leaves {figure:.3g}",
        table,
        bound=(1.0, "none"),
    )


def _factors(rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = [
        ("layer", ""),
        ("heads pruned", ""),
        ("N/n", "the S4 scale: all heads over kept heads, whatever compensation was used"),
        ("c*", "the one factor for all kept heads that changes the layer's attention output least, on the probe"),
        ("error left", _E),
    ]
    return Table(
        "Factors of each layer that loses heads",
        columns,
        [
            [
                str(row["layer"]),
                str(row["heads_pruned"]),
                *(_figure(row[name]) for name in ("scale_factor", "best_factor", "error_left")),
            ]
            for row in rows
            if row["heads_pruned"]
        ],
    )


def _figure(figure: float | None) -> str:
    return NO_FIGURE if figure is None else f"{figure:.3f}"
