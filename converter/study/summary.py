"""A study as people look at it: a row per point, the best of them, and what is to be said of all."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..choices import BEST_BY
from ..errors import UsageError, shown, text_of
from .evaluation import Evaluation
from .figures import Difference, Share
from .outside import Evaluator
from .points import NAME_DIGITS
from .results import Measured, Result, Results, Score

KINDS: Mapping[str, bool | None] = {"accuracy": None, "image_accuracy": True, "text_accuracy": False}
# What a row says that depends on the machine and the hour; the rest is the same in every run.
TIMINGS = (
    *("samples_per_second", "slowest_samples_per_second", "fastest_samples_per_second", "tokens_per_second"),
    *("speed", "host_peak_bytes", "device_peak_bytes"),
)
_SHOWN = 10


@dataclass(frozen=True)
class Row:
    """A point and what came of it; *settings* say which came to it, *result* is None where it is to be run.

    *outside* is what an outside evaluator said of it, if there is one.
    """

    point: str
    compensation: str | None
    settings: tuple[Mapping[str, Any], ...]
    mask: Mapping[str, Any] | None
    heads_pruned: int
    rate: float
    result: Result | None
    outside: Score | None = None

    @property
    def evaluation(self) -> Evaluation | None:
        """What it answered, if it was run and did not fail."""
        return None if self.result is None else self.result.evaluation

    @property
    def measured(self) -> Measured | None:
        """What else was measured of it."""
        return None if self.result is None else self.result.measured

    @property
    def state(self) -> str:
        """``done``, ``failed`` or ``to run``."""
        if self.result is None:
            return "to run"
        return "done" if self.result.failure is None else "failed"

    @property
    def failure(self) -> str | None:
        """Why the point failed, itself or in the outside evaluator; None where it did not."""
        failures = (one.failure for one in (self.result, self.outside) if one is not None)
        return next((failure for failure in failures if failure is not None), None)

    @property
    def asked(self) -> str:
        """The settings in words, or what the baseline is."""
        said = (
            f"{one['metric']} {one['schedule']}" + ("" if one["rate"] is None else f" {one['rate']:g}")
            for one in self.settings
        )
        return "; ".join(said) or "unpruned"


@dataclass(frozen=True)
class Summary:
    """The *rows* of a study, the baseline first, and what study.json says *about* all of them."""

    about: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def baseline(self) -> Row:
        """The model as it is."""
        return self.rows[0]

    @property
    def done(self) -> tuple[Row, ...]:
        """The pruned points that were run and did not fail."""
        return tuple(row for row in self.rows[1:] if row.evaluation is not None)

    @property
    def failed(self) -> tuple[Row, ...]:
        """The points that failed, themselves or in the outside evaluator."""
        return tuple(row for row in self.rows if row.failure is not None)

    def difference(self, row: Row, *, image: bool | None = None) -> Difference | None:
        """The paired difference of *row* to the baseline; None where there is nothing to compare."""
        if row is self.baseline or row.evaluation is None or self.baseline.evaluation is None:
            return None
        return row.evaluation.difference(self.baseline.evaluation, image=image)

    @property
    def speed_in_words(self) -> str:
        """What pruning does to the speed of stock inference, as measured; empty where nothing was."""
        speeds = [row.measured.speed for row in self.done if row.measured is not None]
        if not speeds:
            return ""
        return (
            "Zeroed heads keep their shapes, so stock inference is not faster: on the same input, the pruned points "
            f"were {statistics.median(speeds):.2f} times as fast as the unpruned model (median of {len(speeds)}, from "
            f"{min(speeds):.2f} to {max(speeds):.2f})."
        )

    @property
    def best_by_default(self) -> str:
        """``rate`` where questions were asked, else ``perplexity``."""
        asked = self.baseline.evaluation is not None and bool(self.baseline.evaluation.answers)
        return "rate" if asked else "perplexity"

    def ranked(self, by: str | None = None) -> list[Row]:
        """The points from the best on, *by* one of :data:`~s4convert.choices.BEST_BY`.

        ``rate``: those whose loss of accuracy cannot be told from chance, by the realised rate, then by accuracy; the
        others behind them, by accuracy. ``accuracy``: by accuracy, then by rate. ``perplexity``: by that of the right
        answers, or of the text where no question was asked, the lowest first; then by rate.
        """
        by = by or self.best_by_default
        if by not in BEST_BY:
            raise UsageError(f"`best_by` {by!r} is none of {', '.join(BEST_BY)}")

        def accuracy(row: Row) -> float:
            found = None if row.evaluation is None else row.evaluation.accuracy()
            return -1.0 if found is None else found.value

        def perplexity(row: Row) -> float:
            assert row.evaluation is not None
            found = row.evaluation.answer_perplexity or row.evaluation.text_perplexity
            return float("inf") if found is None else found

        def kept_first(row: Row) -> tuple[float, ...]:
            change = self.difference(row)
            kept = change is not None and change.is_kept
            return (0, -row.rate, -accuracy(row)) if kept else (1, -accuracy(row), -row.rate)

        keys: Mapping[str, Callable[[Row], tuple[float, ...]]] = {
            "rate": kept_first,
            "accuracy": lambda row: (-accuracy(row), -row.rate),
            "perplexity": lambda row: (perplexity(row), -row.rate),
        }
        return sorted(self.done, key=keys[by])

    def best(self, by: str | None = None) -> Row:
        """The best point, see :meth:`ranked`.

        Raises:
            UsageError: no point was run; or *by* is ``rate`` and every point has lost accuracy.
        """
        ranked = self.ranked(by)
        if not ranked:
            raise UsageError("no point was run to its end, so none is best; see the reasons in summary.md")
        if (by or self.best_by_default) == "rate":
            change = self.difference(ranked[0])
            if change is None or not change.is_kept:
                raise UsageError(
                    "every point has lost accuracy by more than chance explains; add smaller `rates`, or take the best "
                    "of them with `best_by='accuracy'`"
                )
        return ranked[0]

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat row per point: every setting and figure, empty where there is none; shares are in per cent."""
        return [self._flat(row) for row in self.rows]

    def _flat(self, row: Row) -> dict[str, Any]:
        found, measured = row.evaluation, row.measured
        flat: dict[str, Any] = {
            "point": row.point,
            "state": row.state,
            "settings": row.asked,
            "metric": _listed(row, "metric"),
            "schedule": _listed(row, "schedule"),
            "asked_rate": _listed(row, "rate"),
            "compensation": row.compensation,
            "heads_pruned": row.heads_pruned,
            "rate": round(row.rate, 6),
            "silent_heads": None if measured is None else measured.silent_heads,
            "logit_change": None if measured is None else _figure(measured.change),
            "error": None if measured is None else _figure(measured.error),
            "error_left": None if measured is None else _figure(measured.error_left),
        }
        for name, image in KINDS.items():
            share = None if found is None else found.accuracy(image=image)
            change = self.difference(row, image=image)
            flat |= _columns(name, share, change)
        stated = {} if found is None else found.to_json()
        for name in ("unparsable", "cut", "answer_perplexity", "text_perplexity"):
            flat[name] = stated.get(name)
        flat["reason"] = None if row.result is None else row.result.failure
        flat["outside_score"] = None if row.outside is None else row.outside.score
        flat["outside_reason"] = None if row.outside is None else row.outside.failure
        speed = stated.get("speed") or {}
        return (
            flat
            | {name: speed.get(name) for name in TIMINGS}
            | {"speed": None if measured is None else _figure(measured.speed)}
        )

    def to_json(self) -> dict[str, Any]:
        """The rows, and what is said of all, for a script to read."""
        return {**self.about, "rows": self.to_rows(), "speed": self.speed_in_words}

    def to_csv(self) -> str:
        """The rows with a line of headings; ASCII."""
        rows, text = self.to_rows(), io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _ascii(value) for name, value in row.items()})
        return text.getvalue()

    def to_markdown(self, plots: Sequence[str] = ()) -> str:
        """The study as a page; *plots* are names of pictures beside it."""
        lines = ["# Sweep", "", *self._said(), "", *self._table(self.rows), ""]
        if self.failed:
            lines += ["Failed (`--retry-failed` runs them again):", ""]
            lines += [f"- {row.asked}, {row.compensation}: {row.failure}" for row in self.failed]
            lines.append("")
        nothing = self.about.get("prune_nothing", ())
        if nothing:
            lines += ["These settings prune no head, so they are the unpruned model:", ""]
            lines += [f"- {one['metric']}: {one['reason']}" for one in nothing]
            lines.append("")
        lines += [f"![{name}]({name})" for name in plots]
        return str(_ascii("\n".join(lines).rstrip() + "\n"))

    def to_text(self, by: str | None = None) -> str:
        """The best ten, and what is said of all, for a terminal."""
        ranked = self.ranked(by)
        cells = self._filled((self.baseline, *ranked[:_SHOWN]))
        titles = list(cells[0])
        widths = [max(len(title), *(len(row[title]) for row in cells)) for title in titles]
        lines = ["  ".join(title.ljust(width) for title, width in zip(titles, widths, strict=True)).rstrip()]
        for row in cells:
            lines.append("  ".join(row[name].ljust(width) for name, width in zip(titles, widths, strict=True)).rstrip())
        if len(ranked) > _SHOWN:
            lines.append(f"... and {len(ranked) - _SHOWN} more")
        return text_of([*lines, "", *self._said()])

    def _said(self) -> list[str]:
        heads = self.about
        counts = f"{len(self.done)} points, {len(self.failed)} failed"
        to_run = sum(row.state == "to run" for row in self.rows)
        counts += f", {to_run} still to run" if to_run else ""
        several = sum(max(0, len(row.settings) - 1) for row in self.rows)
        repeated = f"; {several} more came out as the same mask and compensation" if several else ""
        said = [f"{heads['source']}: {counts}{repeated}."]
        noted = sum(row.measured is not None and bool(row.measured.notes) for row in self.rows)
        if noted:
            said.append(f"The fits of {noted} points say something of their data; see notes in points/NAME.json.")
        if self.speed_in_words:
            said.append(self.speed_in_words)
        return said

    def _filled(self, rows: Sequence[Row]) -> list[dict[str, str]]:
        """The cells of *rows*, but for columns with nothing in them."""
        cells = [_cells(self, row) for row in rows]
        return [{name: text for name, text in row.items() if any(one[name] for one in cells)} for row in cells]

    def _table(self, rows: Sequence[Row]) -> list[str]:
        cells = self._filled(rows)
        lines = [f"| {' | '.join(cells[0])} |", f"|{' --- |' * len(cells[0])}"]
        return [*lines, *(f"| {' | '.join(row.values())} |" for row in cells)]


def summarise(results: Results) -> Summary:
    """The study in *results* as far as it has come.

    Raises:
        UsageError, StorageError: a file cannot be used; and errors of all kinds where study.json is malformed.
    """
    study = results.study()
    evaluator = None if study["evaluator"] is None else Evaluator(**study["evaluator"])
    rows = tuple(_row(entry, results, evaluator) for entry in study["points"])
    about = {name: value for name, value in study.items() if name not in ("format", "points")}
    return Summary({"source": study["source"], **about}, rows)


def _row(entry: Mapping[str, Any], results: Results, evaluator: Evaluator | None) -> Row:
    if re.fullmatch(f"[0-9a-f]{{{NAME_DIGITS}}}", entry["point"]) is None:  # it names a file
        raise ValueError(f"a point {shown(entry['point'])}")
    return Row(
        entry["point"],
        entry["compensation"],
        tuple(entry["settings"]),
        entry["mask"],
        entry["heads_pruned"],
        entry["rate"],
        results.result(entry["point"]),
        None if evaluator is None else results.score(evaluator.name(entry["point"])),
    )


def as_json_text(summary: Summary) -> str:
    """The text of summary.json."""
    return json.dumps(summary.to_json(), indent=1) + "\n"


def _columns(name: str, share: Share | None, change: Difference | None) -> dict[str, Any]:
    shares = {} if share is None else share.to_json()
    changes = {} if change is None else change.to_json()
    return {
        name: shares.get("percent"),
        f"{name}_low": shares.get("low"),
        f"{name}_high": shares.get("high"),
        f"{name}_change": changes.get("points"),
        f"{name}_change_low": changes.get("low"),
        f"{name}_change_high": changes.get("high"),
        f"{name}_p_value": changes.get("p_value"),
        f"{name}_in_words": None if change is None else str(change),
    }


def _cells(summary: Summary, row: Row) -> dict[str, str]:
    """A row of the tables."""
    found, measured = row.evaluation, row.measured
    cells = {
        "heads": f"{row.heads_pruned} ({row.rate:.1%})",
        "asked for": row.asked,
        "compensation": row.compensation or "",
    }
    change = summary.difference(row)
    for name, image in KINDS.items():
        share = None if found is None else found.accuracy(image=image)
        cells[name.replace("_accuracy", "")] = "" if share is None else str(share)
    cells["against the baseline"] = row.state if found is None else "" if change is None else str(change)
    stated = {} if found is None else found.to_json()
    perplexity = stated.get("answer_perplexity") or stated.get("text_perplexity")
    cells["perplexity"] = "" if perplexity is None else f"{perplexity:#.4g}"
    cells["E left"] = "" if measured is None or measured.error_left is None else f"{measured.error_left:.3f}"
    scored = row.outside
    cells["outside"] = "" if scored is None else "failed" if scored.score is None else f"{scored.score:g}"
    cells["speed"] = "" if measured is None else f"{measured.speed:.2f}x"
    return {name: _ascii(text) for name, text in cells.items()}


def _listed(row: Row, name: str) -> str:
    return "; ".join(dict.fromkeys("" if one[name] is None else f"{one[name]}" for one in row.settings))


def _figure(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _ascii(value: Any) -> Any:
    """Text with +- for ±, and other letters as escapes; anything else as it is."""
    if not isinstance(value, str):
        return value
    return value.replace("±", "+-").encode("ascii", "backslashreplace").decode("ascii")
