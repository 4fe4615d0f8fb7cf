"""What was verified, for people and for scripts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any, Protocol

from ..compensation.figures import FIT_COLUMNS, LayerFigures, rounded
from ..errors import UsageError, text_of
from ..mask import HeadMask
from .agreement import Agreement
from .behaviour import BehaviourReport, LayerDelta
from .structure import StructureReport

if TYPE_CHECKING:
    from pandas import DataFrame


TOKENS = ("num_samples", "text_tokens", "image_tokens", "cut_tokens")  # of calibration data, in this order


class Told(Protocol):
    """What stands beside the checks: figures for a script, text for a person."""

    def to_json(self) -> dict[str, Any]: ...

    def to_text(self) -> str: ...


@dataclass(frozen=True)
class Report:
    """The outcome of a verification that passed; *behaviour* is None where that check was skipped.

    *compensation* is its mode. *figures* are those of its fit in each layer that loses heads, where there was
    calibration data, and *stored_errors* the errors of the same weights as they were stored, rounded.
    *training* is what became of one. *agreement* is how near the converted model is to the original on held-out
    samples, where there are some, and *calibration* what calibration data came to, see
    :func:`~s4convert.calibration.inputs.describe`. *notes* are sentences that a reader of the verdict must know.
    *unproven_layers* are those whose fit was not checked against the data that it was made of. *evaluation* is what
    original and converted answered, where they were asked. *recognised* is what was read off the weights, where nobody
    stated the compensation.
    """

    mask: HeadMask
    compensation: str
    structure: StructureReport
    behaviour: BehaviourReport | None
    figures: Mapping[int, LayerFigures] = field(default_factory=dict)
    stored_errors: Mapping[int, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unproven_layers: tuple[int, ...] = ()
    evaluation: Told | None = None
    training: Told | None = None
    agreement: Agreement | None = None
    calibration: Mapping[str, Any] = field(default_factory=dict)
    recognised: Told | None = None

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        return f"<Report: {self.verdict}>"

    def _repr_html_(self) -> str:
        """The report as a notebook shows it: the verdict, and a row per layer."""
        rows = [{name: _shown(value) for name, value in row.items()} for row in self._rows()]
        head = "".join(f"<th>{escape(name)}</th>" for name in (rows[0] if rows else ()))
        body = "".join(f"<tr>{''.join(f'<td>{escape(text)}</td>' for text in row.values())}</tr>" for row in rows)
        return f"<p>{escape(self.verdict)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_frame(self) -> DataFrame:
        """The figures as a pandas data frame with a row per layer.

        Raises:
            UsageError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise UsageError("a data frame needs pandas; pip install pandas, or use to_json()") from error
        return pandas.DataFrame(self._rows(apart=True)).set_index("layer")

    def _rows(self, *, apart: bool = False) -> list[dict[str, float | None]]:
        """A row per layer: what was pruned, what the probe saw (by modality as well if *apart*), how good a fit is."""
        behaviour = {} if self.behaviour is None else {row.layer: row for row in self.behaviour.layers}
        rows: list[dict[str, float | None]] = []
        for layer, pruned in enumerate(self.mask.pruned):
            row: dict[str, float | None] = {"layer": layer, "heads_pruned": len(pruned)}
            if layer in behaviour:
                row |= _layer_json(behaviour[layer])
                row |= {
                    f"{modality}_{name}_{other}": figure
                    for modality, others in _apart_json(behaviour[layer]).items()
                    for other, figures in others.items()
                    for name, figure in figures.items()
                    if apart
                }
            if self.figures:
                fit = self.figures.get(layer)
                row["fit_error"] = None if fit is None else rounded(fit.train.fit / fit.train.none)
            rows.append(row)
        return rows

    def to_json(self) -> dict[str, Any]:
        """The figures, rounded to four significant digits so that machines agree on them."""
        return {
            "heads": self.mask.realised_json(),
            "structure": {
                "identical_tensors": self.structure.identical_tensors,
                "edited_tensors": self.structure.edited_tensors,
                "sidecars": self.structure.sidecars,
            },
            "behaviour": None if self.behaviour is None else _behaviour_json(self.behaviour),
            **({"compensation": self._compensation_json()} if self.figures else {}),
            **({"calibration": dict(self._tokens())} if self.calibration else {}),
            **({"training": self.training.to_json()} if self.training is not None else {}),
            **({"agreement": self.agreement.to_json()} if self.agreement is not None else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"unproven_layers": list(self.unproven_layers)} if self.unproven_layers else {}),
            "verdict": self.verdict,
            **({"evaluation": self.evaluation.to_json()} if self.evaluation is not None else {}),
        }

    def outcome_json(self) -> dict[str, Any]:
        """What a verification found, for a script: :meth:`to_json` with the mask, the compensation and no cause.

        The figures of a fit, which that has for the compensation, are the ``fits`` of this one.
        """
        figures = self.to_json()
        fits = {} if "compensation" not in figures else {"fits": figures.pop("compensation")}
        compensation = compensation_json(self.compensation, self.recognised)
        return {"cause": None, "mask": self.mask.to_json(), "compensation": compensation} | fits | figures

    def _tokens(self) -> list[tuple[str, int]]:
        """What calibration data came to, by name."""
        return [(name, self.calibration[name]) for name in TOKENS if name in self.calibration]

    def _compensation_json(self) -> dict[str, Any]:
        return {
            str(layer): fit.to_json() | {"stored_error": rounded(self.stored_errors[layer])}
            for layer, fit in self.figures.items()
        }

    @property
    def advice(self) -> str | None:
        """A sentence where no compensation, or the S4 scale, was seen to be nearer to the original; else None."""
        return None if self.agreement is None else self.agreement.advice

    @property
    def verdict(self) -> str:
        """The outcome in a line."""
        heads, touched = self.mask.num_layers * self.mask.num_heads, len(self.mask.touched_layers)
        text = f"OK, {self.mask.num_pruned} of {heads} heads silenced in {touched} of {self.mask.num_layers} layers"
        if self.unproven_layers:
            text = f"{text}; the fits of {len(self.unproven_layers)} layers are not checked against their data"
        if self.behaviour is None:
            return text
        worst = max(row.own_error for row in self.behaviour.layers)
        text += f"; each equals the hooked original to {worst:.1e} (tolerance {self.behaviour.tolerance:.1e})"
        return f"{text}; {self.behaviour.weakness}" if self.behaviour.weakness else text

    def to_text(self) -> str:
        """The table that a conversion ends with."""
        lines = [] if self.recognised is None else self.recognised.to_text().split("\n")
        if self.behaviour is None:
            lines.append("behaviour: not checked")
        else:
            lines += [
                f"probe: {self.behaviour.probe}",
                "",
                "layer  heads pruned  mean |delta|  relative delta  off reference    N/n     c*",
            ]
            for row in self.behaviour.layers:
                lines.append(
                    f"{row.layer:>5}  {len(row.pruned):>12}  {row.mean_abs_delta:>12.3e}"
                    f"  {row.relative_delta:>14.2%}  {row.reference_error:>13.1e}{_factors(row)}"
                )
            lines += ["", *_apart_lines(self.behaviour), "", *self.behaviour.next_token.to_lines(), ""]
        if self.figures:
            lines += [FIT_COLUMNS]
            lines += [fit.to_row(self.stored_errors[layer]) for layer, fit in self.figures.items()]
            lines.append("")
        if self.calibration:
            counts = (f"{count:,} {name.replace('num_', '').replace('_', ' ')}" for name, count in self._tokens())
            lines += [f"calibration: {', '.join(counts)}", ""]
        if self.agreement is not None:
            lines += [*self.agreement.to_lines(), ""]
        lines += [
            f"heads: {self.mask.num_pruned} {self.mask.realised}",
            f"structure: {self.structure.edited_tensors} tensors edited, {self.structure.identical_tensors} tensors"
            f" and {self.structure.sidecars} other files byte-identical",
            *([] if self.training is None else [f"training: {self.training.to_text()}"]),
            *(f"note: {note}" for note in self.notes),
            f"verdict: {self.verdict}",
        ]
        if self.evaluation is not None:
            lines += ["", *self.evaluation.to_text().split("\n")]
        return text_of(lines)


def compensation_json(mode: str, recognised: Told | None) -> dict[str, Any]:
    """The *mode* of a compensation, and what was read off the weights where nobody stated it, for a script to read."""
    return {"mode": mode, **({} if recognised is None else recognised.to_json())}


def _factors(row: LayerDelta) -> str:
    if row.scale_factor is None or row.best_factor is None:
        return ""
    return f"  {row.scale_factor:>5.3f}  {row.best_factor:>5.3f}"


def _apart_lines(behaviour: BehaviourReport) -> list[str]:
    """The last layer's deltas of text and image tokens."""
    last = behaviour.layers[-1]
    lines = [f"after layer {last.layer}   tokens  mean |delta|  max |delta|  relative delta  cosine  off reference"]
    width = lines[0].index("  tokens")
    for modality, one in last.apart.items():
        delta = one.original
        lines.append(
            f"{modality:<{width}}  {delta.tokens:>6}  {delta.mean_abs_delta:>12.3e}  {delta.max_abs_delta:>11.3e}"
            f"  {delta.relative_delta:>14.2%}  {delta.cosine:>6.4f}  {one.reference.relative_delta:>13.1e}"
        )
    return lines


def _behaviour_json(behaviour: BehaviourReport) -> dict[str, Any]:
    return {
        "probe": behaviour.probe,
        "data": dict(behaviour.data),
        "tolerance": rounded(behaviour.tolerance),
        "layers": [
            {"layer": row.layer, "heads_pruned": len(row.pruned)} | _layer_json(row) | {"apart": _apart_json(row)}
            for row in behaviour.layers
        ],
        "next_token": behaviour.next_token.to_json(),
    }


def _apart_json(row: LayerDelta) -> dict[str, dict[str, dict[str, float]]]:
    """By modality, the converted model's hidden states against those of the original and of the reference."""
    return {
        modality: {"original": one.original.to_json(), "reference": one.reference.to_json()}
        for modality, one in row.apart.items()
    }


def _layer_json(row: LayerDelta) -> dict[str, float | None]:
    return {
        "mean_abs_delta": rounded(row.mean_abs_delta),
        "relative_delta": rounded(row.relative_delta),
        "reference_error": rounded(row.reference_error),
        "own_delta": rounded(row.own_delta),
        "own_error": rounded(row.own_error),
        "scale_factor": None if row.scale_factor is None else rounded(row.scale_factor),
        "best_factor": None if row.best_factor is None else rounded(row.best_factor),
        "error_left": None if row.error_left is None else rounded(row.error_left),
    }


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
