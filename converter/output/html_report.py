"""The report that people look at: one file of HTML, made of nothing but what ``s4convert.json`` says.

It needs no script and no network, and the same manifest gives the same bytes. :func:`view_of` finds the words and
figures, and ``report.html.jinja`` puts them in their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compensation import MODES
from ..compensation.modes import REFIT
from ..errors import CheckpointError, MaskError, printable, shown
from ..mask import HeadMask
from ..verify.report import TOKENS
from .html_figures import NO_FIGURE, Figure, Table, heatmap
from .html_layers import layer_figures
from .left import NOT_MEASURED, as_command, what_is_left
from .manifest import MANIFEST_FORMAT
from .origin import in_words

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = Path(__file__).parent
_MOST_HEADS = 100_000  # of a model; a page of more is of no use
_MATCH = "Weights match the mask"


@dataclass(frozen=True)
class Check:
    """What one check compared, what it found at the worst, and whether it was made."""

    name: str
    compared: str
    worst: str
    made: bool = True


@dataclass(frozen=True)
class View:
    """What the report says, in the order in which it says it; pairs are a name and what is said of it."""

    title: str
    verdict: str
    stated_verdict: str
    tool_version: str
    done: Sequence[tuple[str, str]]
    checks: Sequence[Check]
    notes: Sequence[str]
    summary: Sequence[str]
    advice: str | None
    good: Sequence[Table]
    heads: Figure
    figures: Sequence[Figure]
    tables: Sequence[Table]
    answers: Table | None
    command: str | None
    made_of: Sequence[tuple[str, str]]
    data: Table | None
    files: Table


def html_report(content: Mapping[str, Any], where: Path) -> str:
    """The report of the conversion whose manifest, read from *where*, is *content*; ASCII.

    Raises:
        CheckpointError: the manifest is of another version, or malformed.
    """
    if content.get("format") != MANIFEST_FORMAT:
        raise CheckpointError(f"{where}: is no manifest that this version reads; it reads {MANIFEST_FORMAT!r}")
    try:
        view = view_of(content)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AttributeError, MaskError) as error:
        raise CheckpointError(f"{where}: is malformed ({shown(error)}); convert the original again") from error
    text: str = _template().render(view=view)
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii") + "\n"


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.globals["css"] = Markup((_HERE / "report.css").read_text(encoding="utf-8"))
    return environment.from_string((_HERE / "report.html.jinja").read_text(encoding="utf-8"))


def view_of(content: Mapping[str, Any]) -> View:
    """What there is to say of the manifest *content*; errors of all kinds where it is malformed."""
    mask = _mask_of(content["mask"])
    checked = content["verification"]
    unproven = len(checked.get("unproven_layers", ()))
    verdict = _MATCH
    if unproven:
        verdict += f"; the fits of {unproven} layers are not checked against their data"
    if checked["behaviour"] is None:
        verdict += "; hidden states were not looked at"
    figures, tables = layer_figures(content)
    evaluation = content.get("evaluation")
    return View(
        title=f"{content['source']}, with {mask.num_pruned} of {mask.num_layers * mask.num_heads} heads pruned",
        verdict=verdict,
        stated_verdict=checked["verdict"],
        tool_version=content["tool_version"],
        done=_done(content, mask),
        checks=_checks(content, mask),
        notes=checked.get("notes", ()),
        summary=what_is_left(evaluation, checked) or [NOT_MEASURED],
        advice=None if content.get("advice") is None else as_command(content["advice"]).replace("`", ""),
        good=[
            *_evaluated(evaluation),
            *_agreement(checked.get("agreement"), content["compensation"]),
            *_next_token(checked["behaviour"]),
        ],
        heads=heatmap(mask),
        figures=figures,
        tables=tables,
        answers=_answers(evaluation),
        command=content.get("command"),
        made_of=_made_of(content),
        data=_data(content, evaluation),
        files=Table(
            "Files of the conversion",
            [("file", ""), ("bytes", ""), ("sha256", "")],
            [[name, f"{file['size']:,}", file["sha256"]] for name, file in content["files"].items()],
        ),
    )


def _mask_of(said: Mapping[str, Any]) -> HeadMask:
    num_layers, num_heads = said["num_layers"], said["num_heads"]
    if min(num_layers, num_heads) < 1 or num_layers * num_heads > _MOST_HEADS:
        raise ValueError(f"{num_layers} layers of {num_heads} heads cannot be drawn")
    pruned = said["pruned"]
    rows = tuple(tuple(pruned.get(str(layer), ())) for layer in range(said["num_layers"]))
    return HeadMask(said["num_heads"], rows, provenance=said.get("provenance"))


def _done(content: Mapping[str, Any], mask: HeadMask) -> list[tuple[str, str]]:
    """What was done, from what and with what."""
    said, mode, plan = mask.provenance or {}, content["compensation"], content["plan"]
    file, training, calibration = content["mask_file"], content.get("training"), content["calibration"]
    how = [f"{name} {said[name]}" for name in ("metric", "schedule", "recipe") if isinstance(said.get(name), str)]
    trained = MODES[mode].trained and training is not None and bool(training["best_step"])
    change = MODES[mode if trained or not MODES[mode].trained else REFIT].change
    rows = [
        ("Original", content["source"]),
        ("Heads pruned", f"{mask.num_pruned} {mask.realised}"),
        ("Layers", f"{len(mask.touched_layers)} of {mask.num_layers} lose heads"),
        (
            "Compensation",
            f"{mode}: in the layers that lose heads, the output projection's columns of kept heads {change}",
        ),
        (
            "Mask",
            f"{file['name']}, {file['read_as']}" if file is not None else "made for this conversion, or in Python",
        ),
    ]
    rows += [("Heads chosen by", ", ".join(how))] if how else []
    if training is not None:
        kl = f"KL to the original {training['refit_kl']:.4g} by least squares, {training['kl']:.4g} as kept"
        kept = f"step {training['best_step']} was kept" if trained else "the least-squares refit stays"
        rows.append(("Training", f"{training['num_samples']} samples; {kl} on held-out samples; {kept}"))
    if calibration is not None:
        rows.append(("Calibration data", _amount(calibration) or "moments that a Python function gave"))
    rewritten = f"{plan['edits']} edits, in spans of {plan['rewritten_bytes']:,} bytes; shapes and head counts stay"
    return [*rows, ("Written", rewritten)]


def _amount(calibration: Mapping[str, Any]) -> str:
    """How much data was taken of which files, in words."""
    files = [f"{file['samples']} samples of {file['file']}" for file in calibration.get("files", [])]
    tokens = [f"{calibration[name]:,} {name.replace('_', ' ')}" for name in TOKENS[1:] if name in calibration]
    return ", ".join([*files, *tokens])


def _checks(content: Mapping[str, Any], mask: HeadMask) -> list[Check]:
    """What was compared with what, and the worst that was found."""
    checked, mode = content["verification"], content["compensation"]
    structure, unproven = checked["structure"], len(checked.get("unproven_layers", ()))
    definition = "within the rounding of the stored type"
    if unproven:
        definition = f"{unproven} layers are not checked against the data of their fit"
    if MODES[mode].trained:
        definition = "no definition says what a training makes; pruned rows and columns are zero"
    checks = [
        Check(
            "What must not change",
            "every byte of it with the original's",
            f"no byte differs: {structure['identical_tensors']} tensors and {structure['sidecars']} other files",
        ),
        Check(
            "What must change",
            "every byte with what mask and compensation make of the original's; pruned heads are zero",
            f"no byte differs: {structure['edited_tensors']} tensors",
        ),
        Check("Compensation", f"the stored weights with the definition of {mode}, by other code", definition),
    ]
    behaviour = checked["behaviour"]
    if behaviour is None:
        return [*checks, Check("Hidden states", "not compared (--no-verify)", "not known", made=False)]
    layers, first = behaviour["layers"], mask.touched_layers[0]
    own, off = (max(layers, key=lambda row: row[name]) for name in ("own_error", "reference_error"))
    least = min((layers[layer] for layer in mask.touched_layers), key=lambda row: row["own_delta"])
    if first:
        before = max(row["relative_delta"] for row in layers[:first])
        checks.append(
            Check(
                "Hidden states before the mask",
                f"those after layers 0 to {first - 1} with the original's, bit by bit",
                f"{before:.3g}, and 0 is asked for",
            )
        )
    return [
        *checks,
        Check(
            "Each layer alone",
            "its output with that of the original with pruning hooks, on the same input",
            f"{own['own_error']:.2g} in layer {own['layer']}; rounding explains up to {behaviour['tolerance']:.2g}",
        ),
        Check(
            "All layers together",
            "hidden states with those of the original with pruning hooks",
            f"{off['reference_error']:.2g} after layer {off['layer']}",
        ),
        Check(
            "Effect",
            "each layer that loses heads with the original's, on the same input: it must differ",
            f"{least['own_delta']:.2%} in layer {least['layer']}, the least",
        ),
        Check("Probe", "what went through the models", _probe(behaviour)),
    ]


def _probe(behaviour: Mapping[str, Any]) -> str:
    """What the probe was, in words."""
    data = behaviour.get("data")
    if data is None:  # as of earlier versions
        return str(behaviour["probe"])
    counts = (f"{data[name]:,} {name.replace('num_', '').replace('_', ' ')}" for name in TOKENS)
    return f"{behaviour['probe']}: {', '.join(counts)}"


def _evaluated(evaluation: Mapping[str, Any] | None) -> list[Table]:
    """What original and converted answered."""
    if evaluation is None:
        return []
    columns = [
        ("", ""),
        ("accuracy", "right answers of all questions, with the 95 % interval of so few questions"),
        ("image", "of those with an image"),
        ("text", "of those without one"),
        ("unreadable", "answers that name no option where one was asked for; they count as wrong"),
        ("cut", "answers that were cut at the largest number of new tokens"),
        ("perplexity", "how surprised the model is by the right answers; 1 is not at all"),
    ]
    rows = [
        [
            name,
            *(_share(found[f"{kind}accuracy"]) for kind in ("", "image_", "text_")),
            *(str(found[name]) for name in ("unparsable", "cut")),
            NO_FIGURE if found["answer_perplexity"] is None else f"{found['answer_perplexity']:.4g}",
        ]
        for name, found in evaluation["checkpoints"].items()
    ]
    changed = evaluation["checkpoints"]["converted"]["changed"]
    gained = [
        [
            "all" if kind == "accuracy" else kind,
            f"{one['points']:+.1f} points",
            f"{one['low']:+.1f} to {one['high']:+.1f}",
            str(one["gained"]),
            str(one["lost"]),
            f"{one['p_value']:.2g}",
            "no more than chance explains" if one["kept"] else "more than chance explains",
        ]
        for kind, one in changed.items()
    ]
    meanings = [
        ("questions", ""),
        ("change", "right answers of the converted model less those of the original, question by question"),
        ("interval", "where the change lies at 95 % confidence; a wide one says that there were too few questions"),
        ("gained", "questions that only the converted model answers right"),
        ("lost", "questions that only the original answers right"),
        ("p", "how likely so uneven a pair of gained and lost is by chance"),
        ("loss", ""),
    ]
    return [Table("Answers to the questions", columns, rows), Table("What changed", meanings, gained)]


def _share(share: Mapping[str, Any] | None) -> str:
    if share is None:
        return NO_FIGURE
    return f"{share['percent']:.1f} % ({share['low']:.1f} to {share['high']:.1f})"


def _agreement(agreement: Mapping[str, Any] | None, mode: str) -> list[Table]:
    """How near the converted model, and what needs no data, is to the original."""
    if agreement is None:
        return []
    measured = {"text": agreement} | ({"answers": agreement["answers"]} if "answers" in agreement else {})
    columns = [("model", "none and scale: the original with hooks that prune, without and with the S4 scale")]
    for kind in measured:
        columns += [
            (
                f"KL, {kind}",
                "KL divergence of the original's next token from the model's, in nats a token; 0 is the same",
            ),
            (f"same top token, {kind}", "the share of places where both find the same next token most likely"),
        ]
    named = {name: name for name in ("none", "scale") if name != mode} | {"converted": f"{mode}, as stored"}
    rows = [
        [shown, *(text for one in measured.values() for text in (f"{one[name]['kl']:.3g}", f"{one[name]['top1']:.1%}"))]
        for name, shown in named.items()
    ]
    tokens = ", ".join(f"{one['num_tokens']:,} tokens of {kind}" for kind, one in measured.items())
    return [Table(f"Agreement with the original, on {agreement['num_samples']} samples: {tokens}", columns, rows)]


def _next_token(behaviour: Mapping[str, Any] | None) -> list[Table]:
    """What the models say comes next on the probe."""
    said = None if behaviour is None else behaviour.get("next_token")
    if behaviour is None or said is None:
        return []
    columns = [
        ("model", "reference: the original with hooks that prune, which the converted model must equal"),
        ("KL", "KL divergence of the original's next token from the model's, in nats a token; 0 is the same model"),
        ("same top token", "the share of places where the original finds the same next token most likely"),
        ("perplexity", "how surprised the model is by the probe's text, its prompts included; 1 is not at all"),
    ]
    rows = []
    for name in ("original", "reference", "converted"):
        one = said[name]
        near = [f"{one['kl']:.3g}", f"{one['top1']:.1%}"] if "kl" in one else [NO_FIGURE] * 2
        rows.append([name, *near, NO_FIGURE if one["perplexity"] is None else f"{one['perplexity']:.4g}"])
    compared, predicted = said["text_tokens"], said["predicted_tokens"]
    text = f"Next token on the probe, at {compared:,} places of text; perplexity of {predicted:,} tokens"
    return [Table(text, columns, rows)]


def _answers(evaluation: Mapping[str, Any] | None) -> Table | None:
    """Some answers side by side; None where none were kept."""
    kept = [] if evaluation is None else evaluation.get("answers", [])
    if not kept:
        return None
    names = list(kept[0]["said"])
    columns = [("question", "its name in the file of questions, which has the words"), *((name, "") for name in names)]
    rows = [
        [
            f"{one['question_id']}{' (image)' if one['image'] else ''}",
            *(f"{one['said'][name]['text']} [{_scored(one['said'][name]['score'])}]" for name in names),
        ]
        for one in kept
    ]
    return Table("Answers side by side, those that changed first", columns, rows)


def _scored(score: float) -> str:
    return "right" if score == 1 else "wrong" if score == 0 else f"{score:.0%} right"


def _made_of(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Versions, and the names of what went in."""
    file, provenance = content["mask_file"], dict(content["mask"].get("provenance") or {})
    data = provenance.pop("calibration", None)
    rows = [("Original's fingerprint", content["fingerprint"])]
    if file is not None:
        rows.append(("Mask file", f"{file['name']}, sha256 {file['sha256']}"))
    rows += [("Mask says of itself", in_words(provenance))] if in_words(provenance) else []
    rows += [("Heads scored on", in_words(data))] if isinstance(data, dict) else []
    if content["calibration"]:
        rows.append(("Compensation fitted on", in_words(content["calibration"])))
    return [*rows, *((name, version) for name, version in content["versions"].items())]


def _data(content: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> Table | None:
    """The files of data that were used."""
    behaviour = content["verification"]["behaviour"] or {}
    used = {"calibration": content.get("calibration"), "probe": behaviour.get("data")}
    rows = [
        [what, file["file"], f"{file['samples']} samples", file["sha256"]]
        for what, said in used.items()
        for file in (said or {}).get("files", [])
    ]
    if evaluation is not None and evaluation["questions"]["file"]:
        asked = evaluation["questions"]
        rows.append(["evaluation", asked["file"], f"{asked['count']} questions", asked["sha256"]])
    return Table("Data", [("used for", ""), ("file", ""), ("took", ""), ("sha256", "")], rows) if rows else None
