"""The command line: each command is its options, one call of a job, and what is printed of the result.

Results go to stdout, everything else to stderr. Heavy imports stand inside the commands, so that ``--help``
answers at once. An option is named as the job's parameter is; ``process`` puts its flag into the job's messages.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.shell_completion import shell_complete

from . import process
from .choices import (
    BATCH_SIZE,
    BEST_BY,
    CHAT_TEMPLATE,
    COMPENSATIONS,
    CONVERSATIONS,
    DTYPES,
    GAMMA,
    GRANULARITIES,
    HOLDOUT,
    IMAGE_WEIGHT,
    LEARNING_RATE,
    LOSSES,
    MAX_NEW_TOKENS,
    METRICS,
    POLARITIES,
    RECIPES,
    REPORT_FILE,
    STEPS,
    TRAINED,
    WINDOW,
)
from .errors import UsageError, VerificationError, printable
from .option_groups import FILE, MainJobGroup, options, options_of, several
from .version import __version__

if TYPE_CHECKING:
    from .jobs.verify import Integrity
    from .verify.report import Report

SCHEDULES = "uniform|adaptive|global|bands:..."

_SHARED = (
    click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    click.option("-v", "--verbose", count=True, help="Say more on stderr; twice, what libraries say as well."),
    click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
)
_QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only where the output is.")
_JOBS = click.option("--jobs", type=click.IntRange(min=1), help="Threads that read and write.  [default: 2 to 8]")
_FOREIGN_STATISTICS = click.option("--foreign-statistics", is_flag=True, help="Accept statistics of another model.")
_IMAGE_WEIGHT = click.option(
    "--image-weight",
    type=float,
    metavar="SHARE",
    help=f"Share of image tokens in a fit.  [default: {IMAGE_WEIGHT}]",
)
_VISION_TOWER = click.option(
    "--vision-tower",
    type=click.Path(),
    metavar="DIR|ORG/NAME",
    help="The CLIP for images.  [default: mm_vision_tower of the config]",
)
_PROBE = (
    click.option("--probe", type=FILE, metavar="FILE", help="What hidden states are compared on: questions, or text."),
    click.option("--probe-images", type=FILE, metavar="DIR", help="The directory of the images of --probe."),
)
_CONVERSATION = click.option(
    "--conversation",
    type=click.Choice((*CONVERSATIONS, CHAT_TEMPLATE)),
    help="The prompt it was trained with, where its files do not say it.",
)
_WINDOW = click.option(
    "--window", type=click.IntRange(min=2), metavar="TOKENS", help=f"Of each sample of plain text.  [default: {WINDOW}]"
)
_MASK_POLARITY = click.option(
    "--mask-polarity", type=click.Choice(POLARITIES), help="For bare 0/1 flags: what a 1 does to a head."
)
_MASK_FILE = (
    _MASK_POLARITY,
    click.option("--schedule", metavar=SCHEDULES, help="For a file of scores: how many heads each layer loses."),
    click.option("--rate", metavar="RATE", help="For a file of scores: the share of heads to prune, as 0.3."),
)
_TRAINING = (
    click.option("--train", type=click.Choice(TRAINED), help=f"Projections of kept heads.  [default: {TRAINED[0]}]"),
    click.option("--steps", type=click.IntRange(min=1), metavar="N", help=f"Of 4 samples or more.  [default: {STEPS}]"),
    click.option("--learning-rate", type=float, metavar="RATE", help=f"At its highest.  [default: {LEARNING_RATE:g}]"),
    click.option("--self-answers", is_flag=True, help="Train on IN's own answers, not on the file's."),
)
_DATA = (
    several("--calibration", metavar="FILE", help="LLaVA's question file, or plain text; may be repeated."),
    several("--images", metavar="DIR", help="The directory of its images; one for all files, or one for each."),
    click.option(
        "--num-samples", type=click.IntRange(min=1), metavar="N", help="Take the first N of each.  [default: all]"
    ),
    _WINDOW,
    _VISION_TOWER,
)


@click.group(
    cls=MainJobGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has its own help: s4convert mask --help",
)
@click.version_option(__version__, prog_name="s4convert")
def cli() -> None:
    """Rewrite a LLaVA checkpoint on disk so that pruned attention heads stay pruned.

    IN is a directory, or org/name[@revision] on the Hub. The heads that MASK.json prunes are silenced in IN's weights,
    a compensation is folded into o_proj, the effect is verified on a probe batch, and the result is written to OUT,
    which unmodified LLaVA code loads. Without --mask, a mask is made that takes the share --rate of the heads, those
    that the model misses least on --calibration data.

    \b
    Examples:
      s4convert llava-1.5-7b-hf llava-1.5-7b-hf-pruned --mask mask.json
      s4convert llava-1.5-7b-hf llava-1.5-7b-hf-pruned \\
          --rate 0.3 --calibration questions.json --images images/
    """


@cli.command(hidden=True)
@click.argument("source", metavar="IN", type=click.Path())
@click.argument("out", metavar="OUT", type=FILE)
@options(
    "Mask",
    click.option("--mask", metavar="FILE", help="The pruned heads: a file, or org/name:file on the Hub."),
    _MASK_POLARITY,
    click.option("--rate", metavar="RATE", help="Without --mask, or for scores: the share of heads to prune, as 0.3."),
    click.option("--schedule", metavar=SCHEDULES, help="Likewise: how many each layer loses.  [default: global]"),
    click.option("--recipe", type=click.Choice(RECIPES), help="How a mask is made.  [default: fast]"),
    click.option("--save-mask", type=FILE, metavar="FILE", help="Keep the mask that was made (JSON)."),
)
@options(
    "Compensation",
    click.option(
        "--compensate",
        "compensation",
        type=click.Choice(COMPENSATIONS),
        help="How kept heads make up for pruned ones.  "
        "[default: least-squares with calibration data or statistics, else scale]",
    ),
)
@options("Training, of --compensate distill", *_TRAINING)
@options(
    "Calibration: what uniform-ls, head-ls, least-squares and distill are fitted to",
    *_DATA,
    click.option("--holdout", type=float, metavar="SHARE", help=f"The samples that judge a fit.  [default: {HOLDOUT}]"),
    _IMAGE_WEIGHT,
    click.option(
        "--device", metavar="NAME", help="Where models and fits run, checks too: cpu or cuda.  [default: cpu]"
    ),
    click.option("--save-statistics", type=FILE, metavar="DIR", help="Keep what was measured, for --statistics."),
    click.option("--statistics", type=FILE, metavar="DIR", help="Use what --save-statistics kept."),
    _FOREIGN_STATISTICS,
)
@options(
    "Evaluation: what IN and OUT answer, before OUT appears",
    click.option("--evaluate", type=FILE, metavar="FILE", help="Questions with right answers, as evaluate takes them."),
    click.option("--evaluate-images", type=FILE, metavar="DIR", help="The directory of their images."),
    _CONVERSATION,
)
@options("Checks", *_PROBE)
@options(
    "Output",
    click.option("--dry-run", is_flag=True, help="Print what would be done, and write nothing; tensors with -v."),
    click.option(
        "--no-verify",
        "check_behaviour",
        flag_value=False,
        default=True,
        help="Skip the hidden states; bytes are always checked.",
    ),
    click.option("--force", is_flag=True, help="Replace the conversion that stands at OUT."),
    click.option("--shard-size", metavar="SIZE", help="Largest shard built from .bin files, as 5GB."),
    click.option("--allow-converted", is_flag=True, help="Accept an IN that was converted before."),
    click.option("--allow-name", is_flag=True, help="Accept an OUT that stock LLaVA loads as another class."),
    click.option(
        "--no-card", "card", flag_value=False, default=True, help="Leave README.md as IN's; write no model card."
    ),
    click.option("--model-name", metavar="TEXT", help="The card's title.  [default: IN's name and the pruned heads]"),
    click.option("--base-model", metavar="ORG/NAME", help="For the card: what a local IN is called on the Hub."),
    click.option("--report", type=FILE, metavar="FILE", help="Write a report to look at, as report.html."),
    _JOBS,
)
@options(
    "Hub",
    click.option("--push-to-hub", metavar="ORG/NAME", help="Push OUT there once it is verified."),
)
@options("Messages", _QUIET, *_SHARED)
def convert(
    source: str,
    out: Path,
    mask: str | None,
    dry_run: bool,
    push_to_hub: str | None,
    quiet: bool,
    as_json: bool,
    verbose: int,
    **settings: Any,
) -> None:
    """Convert the checkpoint IN, a directory or org/name[@revision] on the Hub, to OUT."""
    process.set_up(cli, verbose, quiet=quiet)
    from .hub.names import check_repo_id
    from .jobs import convert as jobs

    options = jobs.ConvertOptions(**settings, progress=not quiet)
    if dry_run:
        if push_to_hub is not None:
            check_repo_id(push_to_hub)
        planned = jobs.plan_conversion(source, out, mask, options)
        if not quiet:
            text = planned.to_text(edits=verbose > 0)
            click.echo(json.dumps(planned.to_json(), indent=1) if as_json else f"{text} (--dry-run)")
        return
    result: dict[str, Any] = {"out": str(out)}
    shown = printable(str(out))

    def show(report: Report) -> None:
        result.update(report.to_json())
        if not as_json:
            process.print_result(shown if quiet else f"{report}\nwritten: {shown}", written=out)

    try:
        if push_to_hub is None:
            show(jobs.convert(source, out, mask, options, command=sys.argv[1:]))
        else:
            from .jobs.push import convert_and_push

            arguments = (source, out, mask, push_to_hub, options)
            _, pushed = convert_and_push(*arguments, command=sys.argv[1:], on_written=show)
            result["pushed"] = pushed.to_json()
            if not (as_json or quiet):
                process.print_result(pushed.to_text(), written=out)
    finally:  # a push that fails takes nothing from the conversion
        if as_json and len(result) > 1:
            process.print_result(json.dumps(result, indent=1), written=out)


@cli.command()
@click.argument("path", metavar="PATH", type=click.Path())
@click.option("--checkpoint", metavar="CKPT", type=click.Path(), help="For a mask that does not state its geometry.")
@click.option("--mask-polarity", type=click.Choice(POLARITIES), help="For bare 0/1 flags: what a 1 does to a head.")
@click.option("--plot", type=FILE, metavar="FILE", help="Draw the heads, as heads.png.")
@options("Messages", *_SHARED)
def inspect(path: str, as_json: bool, verbose: int, **settings: Any) -> None:
    """Show what PATH is: a checkpoint, a mask, scores or statistics.

    Of a checkpoint (a directory, or org/name[@revision] on the Hub): its layout, its geometry and the heads that are
    silent already.
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs.inspect import inspect

    inspection = inspect(path, **settings, progress=True)
    click.echo(json.dumps(inspection.to_json(), indent=1) if as_json else inspection.to_text())


@cli.command()
@click.argument("checkpoints", metavar="[ORIGINAL] CONVERTED", nargs=-1, required=True, type=click.Path())
@options(
    "Claim",
    click.option("--mask", metavar="FILE", help="The mask.  [default: as in the manifest, or the silent heads]"),
    *_MASK_FILE,
    click.option(
        "--compensate",
        "compensation",
        type=click.Choice(COMPENSATIONS),
        help="The compensation.  [default: as in the manifest, or as the weights show]",
    ),
    click.option("--statistics", type=FILE, metavar="DIR", help="What the compensation was fitted to."),
    _FOREIGN_STATISTICS,
    _IMAGE_WEIGHT,
    click.option("--device", metavar="NAME", help="Where fits and models run: cpu or cuda.  [default: cpu]"),
)
@options(
    "Checks",
    click.option("--calibration", type=FILE, metavar="FILE", help="Compare what both say on its held-out samples."),
    click.option("--images", type=FILE, metavar="DIR", help="The directory of its images."),
    *_PROBE,
    _VISION_TOWER,
    _JOBS,
)
@options("Messages", *_SHARED)
def verify(checkpoints: tuple[str, ...], as_json: bool, verbose: int, **settings: Any) -> None:
    """Check that CONVERTED is what its mask asks of ORIGINAL.

    Both are directories, or org/name[@revision] on the Hub. Where CONVERTED has no manifest, mask and compensation are
    read off the weights of the two. CONVERTED alone is checked against its own manifest: no file changed since.
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs.verify import verify_conversion, verify_files

    found: Report | Integrity
    try:
        if len(checkpoints) == 2:
            found = verify_conversion(*checkpoints, **settings, progress=True)
        elif len(checkpoints) > 2:
            raise UsageError(
                f"{len(checkpoints)} checkpoints are given; give ORIGINAL and CONVERTED, or CONVERTED alone"
            )
        elif given := [name for name, value in settings.items() if value not in (None, False)]:
            raise UsageError(f"`{given[0]}` is about two checkpoints; give ORIGINAL before {checkpoints[0]}")
        else:
            found = verify_files(checkpoints[0], progress=True)
    except VerificationError as error:
        if as_json:
            click.echo(json.dumps(error.to_json(), indent=1))
        raise
    click.echo(json.dumps(found.outcome_json(), indent=1) if as_json else found.to_text())


@cli.command()
@click.argument("checkpoints", metavar="CKPT...", nargs=-1, required=True, type=click.Path())
@options(
    "Questions",
    click.option("--questions", type=FILE, metavar="FILE", help="LLaVA's question file, VQA lines, or problems.json."),
    click.option("--images", type=FILE, metavar="DIR", help="The directory of their images."),
    click.option("--split", default="test", show_default=True, help="Of ScienceQA's own files."),
    click.option("--text", type=FILE, metavar="FILE", help="Plain text, whose perplexity is measured."),
    click.option("--num-samples", type=click.IntRange(min=1), metavar="N", help="Take the first N.  [default: all]"),
)
@options(
    "Model",
    _CONVERSATION,
    _VISION_TOWER,
    click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu or cuda."),
    click.option("--dtype", type=click.Choice(DTYPES), help="[default: as stored on cuda, float32 on cpu]"),
    click.option("--batch-size", type=click.IntRange(min=1), default=BATCH_SIZE, show_default=True, metavar="N"),
    click.option(
        "--max-new-tokens",
        type=click.IntRange(min=1),
        default=MAX_NEW_TOKENS,
        show_default=True,
        metavar="N",
        help="Where an answer is cut.",
    ),
)
@options(
    "Output",
    click.option("--samples", type=FILE, metavar="FILE", help="Keep every answer there, as JSON lines."),
    click.option("--force", is_flag=True, help="Replace a file that stands there."),
)
@options("Messages", *_SHARED)
def evaluate(checkpoints: tuple[str, ...], as_json: bool, verbose: int, **settings: Any) -> None:
    """Ask checkpoints the same questions, and say what is left of the first one's answers.

    CKPT is a directory, or org/name[@revision] on the Hub. A single conversion is compared with its original where
    that stands beside it or in the cache of the Hub.
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs.evaluate import evaluate

    evaluated = evaluate(checkpoints, **settings, progress=True)
    click.echo(json.dumps(evaluated.to_json(), indent=1) if as_json else evaluated.to_text())


@cli.command()
@click.argument("run_a", metavar="RUN_A", type=FILE)
@click.argument("run_b", metavar="RUN_B", type=FILE)
@click.option("--checkpoint", metavar="NAME", help="The one to compare, of a file that holds several.")
@options("Messages", *_SHARED)
def compare(run_a: Path, run_b: Path, checkpoint: str | None, as_json: bool, verbose: int) -> None:
    """Compare the answers of two evaluations, question by question.

    RUN_A and RUN_B are files that evaluate kept with --samples.
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs.compare import compare

    compared = compare(run_a, run_b, checkpoint=checkpoint)
    click.echo(json.dumps(compared.to_json(), indent=1) if as_json else compared.to_text())


@cli.command()
@click.argument("source", metavar="[IN]", required=False, type=click.Path())
@options(
    "Study",
    click.option("-o", "--output", "out", type=FILE, metavar="DIR", help="The results; a sweep goes on from them."),
    click.option("--study", type=FILE, metavar="FILE", help="YAML with the options below; flags have precedence."),
    click.option("--rates", metavar="RATE,...", help="Shares of heads to prune, as 0.1,0.2."),
    click.option("--schedules", metavar="NAME,...", help=f"{SCHEDULES}  [default: uniform]"),
    click.option("--metrics", metavar="NAME,...", help=f"{'|'.join(METRICS)}  [default: magnitude]"),
    click.option("--masks", metavar="FILE,...", help="Masks made before; without --rates, they alone."),
    click.option(
        "--compensations",
        metavar="NAME,...",
        help=f"{'|'.join(COMPENSATIONS)}  [default: least-squares with calibration data, else scale]",
    ),
    click.option("--retry-failed", is_flag=True, help="Run points again that failed before."),
    click.option("--ray", metavar="ADDRESS", help="Measure on a Ray cluster; local is this machine alone."),
    click.option(
        "--ray-cpus", type=click.IntRange(min=1), metavar="N", help="Of a worker without a GPU.  [default: 1]"
    ),
)
@options(
    "Calibration: what metrics and compensations are measured on",
    several("--calibration", metavar="FILE", help="LLaVA's question file, or plain text; may be repeated."),
    several("--calibration-images", metavar="DIR", help="The directory of its images; one for all files, or for each."),
    click.option("--calibration-samples", type=click.IntRange(min=1), metavar="N", help="Take the first N of each."),
    _WINDOW,
)
@options("Training, of the compensation distill", *_TRAINING)
@options_of(evaluate, "questions", "images", "split", "text", "num_samples")
@options_of(evaluate, "conversation", "vision_tower", "device", "dtype", "batch_size", "max_new_tokens")
@options(
    "Outside evaluator",
    click.option("--eval-command", metavar="COMMAND", help="Run it on each point, with {checkpoint} and {out} in it."),
    click.option("--score-json", metavar="FILE:KEY", help="Where its score is below {out}; keys are apart by /."),
    click.option("--score-pattern", metavar="REGEX", help="Or what its score is in what it prints; one group."),
    click.option("--keep", is_flag=True, help="Leave the points' checkpoints in DIR/checkpoints."),
)
@options(
    "Results",
    click.option("--summarise", type=FILE, metavar="DIR", help="Make summary and plots of results again; no IN."),
    click.option("--convert-best", type=FILE, metavar="OUT", help="Write the best point as a checkpoint."),
    click.option("--best-by", type=click.Choice(BEST_BY), help="What makes it the best.  [default: rate]"),
)
@options("Messages", *_SHARED)
def sweep(
    source: str | None,
    out: Path | None,
    study: Path | None,
    summarise: Path | None,
    as_json: bool,
    verbose: int,
    **settings: Any,
) -> None:
    """Measure many masks and compensations of IN on the same questions, without writing a checkpoint.

    IN is a directory, or org/name[@revision] on the Hub. Every metric, schedule and rate makes a mask, and every mask
    is measured with every compensation, beside IN itself. The tables and plots are in DIR.

    \b
    The best point is, by
    rate        the one that prunes most of those that lose no more than chance explains
    accuracy    the most accurate
    perplexity  the one with the lowest perplexity
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs import sweep as jobs

    context, defaulted = click.get_current_context(), click.core.ParameterSource.DEFAULT
    given = {name: value for name, value in settings.items() if context.get_parameter_source(name) is not defaulted}
    if summarise is not None:
        if source is not None or out is not None or study is not None or given.keys() - {"best_by"}:
            context.fail("--summarise makes the summary of results again; leave the others out, but for --best-by")
        swept = jobs.summarise_results(summarise, **given)
    else:
        if source is None or out is None:
            context.fail("give the checkpoint IN, and with --output the directory of the results")
        swept = jobs.sweep(source, out, study=study, **given, progress=True)
    written = printable(str(swept.directory))
    text = json.dumps(swept.to_json(), indent=1) if as_json else f"{swept.to_text()}\nwritten: {written}"
    process.print_result(text, written=swept.directory)
    if swept.summary.failed:
        context.exit(1)


@cli.command()
@click.argument("converted", metavar="OUT", type=click.Path())
@options(
    "Output",
    click.option(
        "-o",
        "--output",
        "out",
        type=FILE,
        default=REPORT_FILE,
        show_default=True,
        metavar="FILE",
        help="The report to write (HTML).",
    ),
    click.option("--force", is_flag=True, help="Replace a file that stands there."),
)
@options("Messages", _QUIET, *_SHARED)
def report(converted: str, out: Path, force: bool, quiet: bool, as_json: bool, verbose: int) -> None:
    """Write the report of the conversion OUT as one HTML file, to look at in a browser.

    OUT is a directory, or org/name[@revision] on the Hub. All that the report says is in OUT's s4convert.json; no
    weight is read.
    """
    process.set_up(cli, verbose, quiet=quiet)
    from .jobs.report import write_report

    write_report(converted, out, force=force, progress=not quiet)
    shown = printable(str(out))
    text = json.dumps({"report": str(out)}, indent=1) if as_json else shown if quiet else f"written: {shown}"
    process.print_result(text, written=out)


@cli.command()
@click.argument("converted", type=click.Path())
@options(
    "What it was made from",
    click.option("--source", metavar="IN", help="The original.  [default: as in the manifest, if on the Hub]"),
    several("--calibration", metavar="FILE", help="The data that its compensation was fitted to; may be repeated."),
    several("--images", metavar="DIR", help="The directory of its images; one for all files, or one for each."),
    click.option("--statistics", type=FILE, metavar="DIR", help="What was kept of the data, in its place."),
    _VISION_TOWER,
)
@options("Checks", _JOBS)
@options("Messages", *_SHARED)
def reproduce(converted: str, as_json: bool, verbose: int, **settings: Any) -> None:
    """Make CONVERTED again from its manifest, and compare every file.

    Nothing is written but in a hidden directory beside CONVERTED, which is removed.
    """
    process.set_up(cli, verbose, quiet=False)
    from .jobs.reproduce import reproduce

    made_again = reproduce(converted, **settings, progress=True)
    click.echo(json.dumps(made_again.to_json(), indent=1) if as_json else made_again.to_text())


@cli.command()
@click.argument("checkpoint", metavar="[CKPT]", required=False, type=click.Path())
@options(
    "Scores",
    click.option("--metric", type=click.Choice(METRICS), help="What CKPT's heads are scored by."),
    click.option("--scores", type=FILE, metavar="FILE", help="Scores made before, in place of CKPT."),
    *_DATA,
    click.option(
        "--gamma", type=float, default=GAMMA, show_default=True, help="Weight of the mean in cross-attention."
    ),
    click.option(
        "--loss",
        type=click.Choice(LOSSES),
        default=LOSSES[0],
        show_default=True,
        help="The tokens that count in fisher.",
    ),
    click.option("--resident", is_flag=True, help="Keep the whole model on the device, for fisher."),
    click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of fisher, random and the search."
    ),
    click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu or cuda."),
)
@options(
    "Schedule",
    click.option("--schedule", required=True, metavar=SCHEDULES, help="How many heads each layer loses."),
    click.option("--rate", metavar="RATE", help="The share of heads to prune, as 0.3; bands have their own."),
    click.option("--protect", metavar="LAYERS", help="Layers that lose no head (adaptive: fewer), as 0-5,31."),
    click.option("--protect-rate", metavar="RATE", help="What protected layers lose under adaptive."),
    click.option(
        "--granularity",
        type=click.Choice(GRANULARITIES),
        default=GRANULARITIES[0],
        show_default=True,
        help="What is pruned whole.",
    ),
    click.option("--num-kv-heads", type=click.IntRange(min=1), metavar="N", help="Of a layer, for --scores in groups."),
)
@options(
    "Search: heads swapped between layers, where that brings CKPT's output closer to the original's",
    click.option("--search", type=float, metavar="SECONDS", help="How long; the whole model is on the device."),
    click.option("--start", type=FILE, metavar="FILE", help="A mask that a search made before, to go on from."),
)
@options(
    "Output",
    click.option("-o", "--output", "out", required=True, type=FILE, metavar="FILE", help="The mask to write (JSON)."),
    click.option("--save-scores", type=FILE, metavar="FILE", help="Keep the scores, for other masks without CKPT."),
    click.option("--plot", type=FILE, metavar="FILE", help="Draw saliency and pruned heads, as mask.png."),
    click.option("--force", is_flag=True, help="Replace files that stand at the outputs."),
)
@options("Messages", _QUIET, *_SHARED)
def mask(checkpoint: str | None, out: Path, quiet: bool, as_json: bool, verbose: int, **settings: Any) -> None:
    """Make a mask: a schedule says how many heads each layer loses, saliency says which.

    The heads of CKPT are scored by a metric; or give --scores made before. A search takes CKPT in both cases.

    \b
    cross-attention  how text looks at the image: variance + gamma * mean (S4)
    energy           the head's share of the attention output
    reconstruction   what is lost for good when the head goes, after a least-squares refit
    fisher           what the model's output loses then; recommended, with global
    magnitude        the norm of its weights; needs no calibration data
    random           seeded; needs no calibration data

    \b
    uniform    RATE of every layer
    adaptive   RATE of the model, early layers protected
    global     RATE of the model, wherever heads score lowest
    bands      a rate for each range of layers, as in bands:0-5:0,6-21:0.2,22-31:0.35
    """
    process.set_up(cli, verbose, quiet=quiet)
    from .jobs.mask import make_mask

    made = make_mask(checkpoint, out, **settings, progress=not quiet)
    if as_json:
        click.echo(json.dumps({"out": str(out)} | made.to_json(), indent=1))
    else:
        shown = printable(str(out))
        click.echo(shown if quiet else f"{made.to_text()}\nwritten: {shown}")


@cli.command()
@click.argument("directory", metavar="DIR", type=FILE)
@click.argument("repo_id", metavar="ORG/NAME")
@options(
    "Repository",
    click.option("--private", is_flag=True, help="Make the repository private, where it has to be made."),
    click.option("--revision", metavar="BRANCH", help="Push to this branch, made where there is none."),
    click.option("--create-pr", is_flag=True, help="Push as a pull request."),
    click.option("--message", metavar="TEXT", help="The commit's message."),
    click.option("--dry-run", is_flag=True, help="List what would go, without the Hub."),
)
@options("Messages", _QUIET, *_SHARED)
def push(
    directory: Path, repo_id: str, dry_run: bool, quiet: bool, as_json: bool, verbose: int, **settings: Any
) -> None:
    """Bring a conversion to the Hugging Face Hub.

    The files that DIR's s4convert.json lists go to the repository ORG/NAME, which is made if there is none, in one
    commit, and are compared with the list there. What the Hub has already is not sent again.
    """
    process.set_up(cli, verbose, quiet=quiet)
    from .hub.push import plan_push, push

    if dry_run:
        where = {name: settings[name] for name in ("revision", "create_pr")}
        outgoing = plan_push(directory, repo_id, **where, progress=not quiet)
        if not quiet:
            click.echo(json.dumps(outgoing.to_json(), indent=1) if as_json else outgoing.to_text())
        return
    pushed = push(directory, repo_id, **settings, progress=not quiet)
    text = pushed.url if quiet else pushed.to_text()
    click.echo(json.dumps(pushed.to_json(), indent=1) if as_json else text)


@cli.command()
@click.argument("directory", default="s4convert-demo", type=FILE)
@options("Messages", *_SHARED)
def demo(directory: Path, as_json: bool, verbose: int) -> None:
    """Run the main job on a small trained LLaVA that ships with s4convert, in DIRECTORY."""
    process.set_up(cli, verbose, quiet=False)
    from .jobs.demo import demonstrate

    demonstration = demonstrate(directory, progress=True)
    click.echo(json.dumps(demonstration.to_json(), indent=1) if as_json else demonstration.to_text())


def main() -> NoReturn:
    """The entry point."""
    instruction = os.environ.get("_S4CONVERT_COMPLETE")  # set by the shell, see README
    if instruction:
        sys.exit(shell_complete(cli, {}, "s4convert", "_S4CONVERT_COMPLETE", instruction))
    process.run(cli, sys.argv[1:])


if __name__ == "__main__":
    main()
