"""The command line: each command calls the library and prints what it returns.

Results go to stdout, everything else to stderr. Heavy imports stand inside the commands, so that ``--help``
answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import logging
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import click

from .errors import S4ConvertError, StorageError
from .redaction import RedactingFormatter, redact
from .version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .calibration.request import MomentsRequest
    from .mask import Schedule

_HTTP_LIBRARIES = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3")
COMPENSATIONS = ("scale", "none", "uniform-ls", "head-ls", "least-squares", "residual-transfer", "similarity")
POLARITIES = ("keep", "prune")
GRANULARITIES = ("head", "group")
METRICS = ("cross-attention", "energy", "reconstruction", "magnitude", "random")
SCHEDULES = "uniform|adaptive|global|bands:..."
EXIT_USAGE, EXIT_STORAGE, EXIT_INTERNAL, EXIT_INTERRUPTED = 2, 3, 70, 130


# What every command takes, and people write in front of it.
_SHARED_FLAGS = ("--debug", "-v", "-vv", "--verbose", "--json")


class MainJobGroup(click.Group):
    """A group whose arguments, where they name no command, are those of the main job."""

    main_job = "convert"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args:
            args = ["--help"]
        num_flags = next((i for i, arg in enumerate(args) if arg not in _SHARED_FLAGS), len(args))
        first = args[num_flags] if num_flags < len(args) else ""
        if first in self.commands:
            args = [first, *args[:num_flags], *args[num_flags + 1 :]]
        elif first not in ("-h", "--help", "--version"):
            self._refuse_misspelt(ctx, first)
            args = [self.main_job, *args]
        return super().parse_args(ctx, args)

    def _refuse_misspelt(self, ctx: click.Context, word: str) -> None:
        """A word that is nearly a command and names no directory is a misspelt command."""
        commands = [name for name, command in self.commands.items() if not command.hidden]
        near = difflib.get_close_matches(word, commands, n=1)
        if near and not word.startswith("-") and not Path(word).exists():
            ctx.fail(f"no such command or directory: {word!r}; did you mean {near[0]}?")

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "IN OUT --mask MASK.json [OPTIONS]")
        formatter.write_usage(ctx.command_path, "COMMAND [ARGS]...", prefix="       ")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.main_job].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


class Size(click.ParamType):  # type: ignore[type-arg]
    """Bytes, as the Hub writes them: 500MB, 5GB (powers of ten)."""

    name = "size"
    units: ClassVar = {"KB": 10**3, "MB": 10**6, "GB": 10**9}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)([KMG]B)", str(value).upper())
        size = int(float(match[1]) * self.units[match[2]]) if match else 0
        if not size:
            self.fail(f"{value!r} is not a size such as 500MB or 5GB", param, ctx)
        return size


SIZE = Size()


def _shared_options(command: Any) -> Any:
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error."),
        click.option("-v", "--verbose", count=True, help="Say more on stderr; twice, what libraries say as well."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


def _mask_file_options(command: Any) -> Any:
    """What some mask files leave open."""
    for option in (
        click.option("--schedule", metavar=SCHEDULES, help="For a mask file of scores: heads per layer."),
        click.option("--rate", metavar="RATE", help="For a mask file of scores: the share to prune, as 0.3."),
        click.option(
            "--mask-polarity", type=click.Choice(POLARITIES), help="For bare 0/1 masks: what a 1 does to its head."
        ),
    ):
        command = option(command)
    return command


def _calibration_options(command: Any) -> Any:
    """What moments are measured on, or where they were kept."""
    for option in (
        click.option("--save-statistics", type=click.Path(path_type=Path), help="Keep what was measured there."),
        click.option("--statistics", type=click.Path(path_type=Path), help="Use what was kept, not --calibration."),
        click.option("--image-weight", type=float, help="The share of image tokens in a fit.  [default: 0.5]"),
        click.option("--device", help="Where calibration and fits run: cpu or cuda.  [default: cpu]"),
        click.option("--holdout", type=float, help="The share of samples that fits are judged by.  [default: 0.2]"),
        click.option("--num-samples", type=click.IntRange(min=1), help="Take the first N samples.  [default: all]"),
        click.option("--images", type=click.Path(path_type=Path), help="The directory of its images."),
        click.option(
            "--calibration", type=click.Path(path_type=Path), help="Questions (or text) to fit a compensation on."
        ),
    ):
        command = option(command)
    return command


def _moments_request(
    out: Path, calibration: Path | None, statistics: Path | None, save_statistics: Path | None, **settings: Any
) -> MomentsRequest | None:
    """Where the moments come from, where the options name any."""
    given = {name: value for name, value in settings.items() if value is not None}
    fitting = {
        name: given.pop(name) for name in ("image_weight", "device") if name in given and (calibration or statistics)
    }
    if calibration is None and (given or save_statistics):
        option = "--" + next(iter(given), "save-statistics").replace("_", "-")
        raise click.UsageError(f"{option} is about calibration data; give it with --calibration")
    if calibration is None and statistics is None:
        return None
    from .calibration.request import MomentsRequest
    from .calibration.statistics import CalibrationData

    device = fitting.get("device", "cpu")
    data = None if calibration is None else CalibrationData(calibration, device=device, **given)
    return MomentsRequest(out, data=data, statistics=statistics, save=save_statistics, **fitting)


@click.group(cls=MainJobGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="s4convert")
def cli() -> None:
    """Rewrite a LLaVA checkpoint on disk so that pruned attention heads stay pruned.

    The heads that MASK.json prunes are silenced in IN's weights, a compensation is folded into o_proj, the
    effect is verified on a probe batch, and the result is written to OUT, which unmodified LLaVA code loads.
    """


@cli.command(hidden=True)
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--mask", required=True, help="Which heads are pruned: a file, or org/name:file on the Hub.")
@_mask_file_options
@click.option(
    "--compensate",
    type=click.Choice(COMPENSATIONS),
    default=COMPENSATIONS[0],
    show_default=True,
    help="How kept heads make up for pruned ones.",
)
@_calibration_options
@click.option("--dry-run", is_flag=True, help="Print the plan and write nothing.")
@click.option("--no-verify", is_flag=True, help="Skip the hidden states; bytes are always checked.")
@click.option("--force", is_flag=True, help="Replace the checkpoint that stands at OUT.")
@click.option("--shard-size", type=SIZE, metavar="SIZE", help="Largest shard built from .bin files, as in 5GB.")
@click.option("--allow-converted", is_flag=True, help="Accept an IN that was converted before.")
@click.option("--allow-name", is_flag=True, help="Accept an OUT that stock LLaVA loads as another class.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Push OUT there once it is verified.")
@click.option("--no-card", is_flag=True, help="Leave README.md as IN's; write no model card.")
@click.option("--jobs", type=click.IntRange(min=1), help="Threads that write and check.  [default: 2 to 8]")
@click.option("-q", "--quiet", is_flag=True, help="Print only OUT's path.")
@_shared_options
def convert(
    source: str,
    out: Path,
    mask: str,
    mask_polarity: Any,
    rate: str | None,
    schedule: str | None,
    compensate: str,
    dry_run: bool,
    no_verify: bool,
    force: bool,
    shard_size: int | None,
    allow_converted: bool,
    allow_name: bool,
    no_card: bool,
    push_to_hub: str | None,
    jobs: int | None,
    quiet: bool,
    as_json: bool,
    verbose: int,
    **calibration: Any,
) -> None:
    """Convert the checkpoint IN, a directory or org/name[@revision] on the Hub, to OUT."""
    _set_up(verbose, quiet=quiet)
    from .hub.names import check_repo_id
    from .hub.push import check_access, push, push_command
    from .jobs.convert import carry_out, prepare

    if push_to_hub is not None and no_verify:
        raise click.UsageError("--push-to-hub pushes what was verified; leave --no-verify out, or push later")
    if push_to_hub is not None:
        (check_repo_id if dry_run else check_access)(push_to_hub)
    request = _moments_request(out, **calibration)
    with _ending_at_once("nothing was written; what was downloaded is kept"):
        conversion = prepare(
            source,
            out,
            mask,
            polarity=mask_polarity,
            schedule=_schedule(schedule, rate),
            compensation=compensate,
            moments=None if request is None else request.moments,
            shard_bytes=shard_size,
            force=force,
            allow_converted=allow_converted,
            allow_name=allow_name,
            card=not no_card,
            progress=not quiet,
        )
    if request is not None:
        request.check(conversion.checkpoint, conversion.plan.mask.touched_layers)
    if dry_run:
        click.echo(json.dumps(conversion.to_json(), indent=1) if as_json else conversion.to_text())
        return
    checkpoint, layers = conversion.checkpoint, conversion.plan.mask.touched_layers
    with contextlib.ExitStack() as stack:
        if request is not None:
            stack.enter_context(request.ready(checkpoint, layers, progress=not quiet))
        command = _public_command({str(source): checkpoint.source, str(out): "OUT"})
        report = carry_out(conversion, check_behaviour=not no_verify, jobs=jobs, command=command, progress=not quiet)
    result = {"out": str(out)} | report.to_json()
    if not as_json:
        _print_result(str(out) if quiet else f"{report.to_text()}\nwritten: {out}", out)
    try:
        if push_to_hub is not None:
            with _ending_at_once(f"{out} is whole; run again: {push_command(out, push_to_hub)}"):
                pushed = push(out, push_to_hub, progress=not quiet)
            result["pushed"] = pushed.to_json()
            if not (as_json or quiet):
                _print_result(pushed.to_text(), out)
    finally:  # a push that fails takes nothing from the conversion
        if as_json:
            _print_result(json.dumps(result, indent=1), out)


def _print_result(text: str, out: Path) -> None:
    try:
        click.echo(text)
    except OSError as error:
        _discard_stdout()
        raise StorageError(f"{out}: is written, but its report cannot be printed: {error.strerror}") from error


@cli.command()
@click.argument("checkpoint", metavar="CKPT")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the silent heads, as heads.png.")
@_shared_options
def inspect(checkpoint: str, plot: Path | None, as_json: bool, verbose: int) -> None:
    """Show a checkpoint's layout, geometry and silent heads."""
    _set_up(verbose)
    from .jobs.inspect import inspect_checkpoint

    inspection = inspect_checkpoint(checkpoint, plot=plot, progress=True)
    click.echo(json.dumps(inspection.to_json(), indent=1) if as_json else inspection.to_text())


@cli.command()
@click.argument("original")
@click.argument("converted")
@click.option("--mask", help="The mask.  [default: the one in CONVERTED's manifest]")
@_mask_file_options
@click.option(
    "--compensate", type=click.Choice(COMPENSATIONS), help="The compensation.  [default: as in the manifest, or scale]"
)
@click.option("--jobs", type=click.IntRange(min=1), help="Threads that check.  [default: 2 to 8]")
@_shared_options
def verify(
    original: str,
    converted: str,
    mask: str | None,
    mask_polarity: Any,
    rate: str | None,
    schedule: str | None,
    compensate: str | None,
    jobs: int | None,
    as_json: bool,
    verbose: int,
) -> None:
    """Check that CONVERTED is what its mask asks of ORIGINAL."""
    _set_up(verbose)
    from .jobs.verify import verify_conversion

    with _ending_at_once("nothing was written"):
        report = verify_conversion(
            original,
            converted,
            mask=mask,
            polarity=mask_polarity,
            schedule=_schedule(schedule, rate),
            compensation=compensate,
            jobs=jobs,
            progress=True,
        )
    click.echo(json.dumps(report.to_json(), indent=1) if as_json else report.to_text())


@cli.command()
@click.argument("checkpoint", metavar="[CKPT]", required=False)
@click.option("-o", "--output", "out", required=True, type=click.Path(path_type=Path), help="The mask to write.")
@click.option("--scores", type=click.Path(path_type=Path), help="Scores made before, instead of CKPT.")
@click.option("--metric", type=click.Choice(METRICS), help="What CKPT's heads are scored by.")
@click.option("--calibration", type=click.Path(path_type=Path), help="LLaVA's question file, or plain text.")
@click.option("--images", type=click.Path(path_type=Path), help="The directory of its images.")
@click.option("--num-samples", type=click.IntRange(min=1), help="Take the first N samples.  [default: all]")
@click.option("--gamma", type=float, default=0.4, show_default=True, help="Weight of the mean in cross-attention.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the metric random.")
@click.option("--device", default="cpu", show_default=True, help="Where the model runs: cpu or cuda.")
@click.option("--rate", metavar="RATE", help="The share of heads to prune, as 0.3; bands have their own.")
@click.option("--schedule", required=True, metavar=SCHEDULES, help="How many heads each layer loses.")
@click.option("--protect", metavar="LAYERS", help="Layers that lose no head (adaptive: fewer), as 0-5,31.")
@click.option("--protect-rate", metavar="RATE", help="What protected layers lose under adaptive.")
@click.option(
    "--granularity", type=click.Choice(GRANULARITIES), default="head", show_default=True, help="What is pruned whole."
)
@click.option("--num-kv-heads", type=click.IntRange(min=1), help="Kv heads of a layer, for --scores in groups.")
@click.option("--save-scores", type=click.Path(path_type=Path), help="Keep the scores, for other masks without CKPT.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw saliency and pruned heads, as mask.png.")
@click.option("--force", is_flag=True, help="Replace files that stand at the outputs.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the output's path.")
@_shared_options
def mask(out: Path, schedule: str, quiet: bool, as_json: bool, verbose: int, **options: Any) -> None:
    """Make a mask: a schedule says how many heads each layer loses, saliency says which.

    The heads of CKPT are scored by a metric; or give --scores made before.

    \b
    cross-attention  how text looks at the image: variance + gamma * mean (S4)
    energy           the head's share of the attention output
    reconstruction   what is lost for good when the head goes, after a least-squares refit
    magnitude        the norm of its weights; needs no calibration data
    random           seeded; needs no calibration data

    \b
    uniform    RATE of every layer
    adaptive   RATE of the model, early layers protected
    global     RATE of the model, wherever heads score lowest
    bands      a rate for each range of layers, as in bands:0-5:0,6-21:0.2,22-31:0.35
    """
    _set_up(verbose, quiet=quiet)
    from .jobs.mask import write_mask
    from .mask import parse_schedule

    rates = {name: options.pop(name) for name in ("protect", "protect_rate")}
    parsed = parse_schedule(schedule, options.pop("rate"), **rates)
    made = write_mask(out, parsed, **options, progress=not quiet)
    if as_json:
        click.echo(json.dumps({"out": str(out)} | made.to_json(), indent=1))
    else:
        click.echo(out if quiet else f"{made.to_text()}\nwritten: {out}")


@cli.command("push")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--private", is_flag=True, help="Make the repository private, where it has to be made.")
@click.option("--revision", metavar="BRANCH", help="Push to this branch, made where there is none.")
@click.option("--create-pr", is_flag=True, help="Push as a pull request.")
@click.option("--message", help="The commit's message.")
@click.option("--dry-run", is_flag=True, help="List what would go, without the Hub.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the URL.")
@_shared_options
def push_command_line(
    directory: Path, repo_id: str, dry_run: bool, quiet: bool, as_json: bool, verbose: int, **options: Any
) -> None:
    """Bring a conversion to the Hugging Face Hub.

    The files that DIR's s4convert.json lists go to the repository ORG/NAME, which is made if there is none, in one
    commit, and are compared with the list there. What the Hub has already is not sent again.
    """
    _set_up(verbose, quiet=quiet)
    from .hub.push import plan_push, push, push_command

    if dry_run:
        outgoing = plan_push(
            directory, repo_id, revision=options["revision"], create_pr=options["create_pr"], progress=not quiet
        )
        click.echo(json.dumps(outgoing.to_json(), indent=1) if as_json else outgoing.to_text())
        return
    again = {name: options[name] for name in ("private", "revision", "create_pr")}
    with _ending_at_once(f"{directory} is whole; run again: {push_command(directory, repo_id, **again)}"):
        pushed = push(directory, repo_id, progress=not quiet, **options)
    text = pushed.url if quiet else pushed.to_text()
    click.echo(json.dumps(pushed.to_json(), indent=1) if as_json else text)


@cli.command()
@click.argument("directory", default="s4convert-demo", type=click.Path(path_type=Path))
@_shared_options
def demo(directory: Path, as_json: bool, verbose: int) -> None:
    """Run the main job on a small trained LLaVA that ships with s4convert, in DIRECTORY."""
    _set_up(verbose)
    from .jobs.demo import demonstrate

    demonstration = demonstrate(directory, progress=True)
    click.echo(json.dumps(demonstration.to_json(), indent=1) if as_json else demonstration.to_text())


def _public_command(names: Mapping[str, str]) -> str:
    """The command line as a model card may state it: without a path of this machine, and with *names* for what is
    called otherwise there."""
    said = ["s4convert"]
    for argument in sys.argv[1:]:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        path = Path(value)
        is_local = path.is_absolute() or value.startswith((".", "~")) or path.exists()
        public = names.get(value) or names.get(str(path)) or (path.name if is_local else value)
        said.append(f"{option}{equals}{public}")
    return shlex.join(said)


def _schedule(text: str | None, rate: str | None) -> Schedule | None:
    """The schedule of a mask file of scores, where one is given."""
    if text is None and rate is None:
        return None
    from .mask import parse_schedule

    if text is None:
        raise click.UsageError(f"--rate needs a --schedule: {SCHEDULES}")
    return parse_schedule(text, rate)


def _set_up(verbose: int, *, quiet: bool = False) -> None:
    """Messages to stderr, one line each; SIGTERM and a connection that goes away clean up as Ctrl-C does."""
    level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("s4convert: %(message)s"))
    logging.basicConfig(level=logging.ERROR, handlers=[handler])
    logging.getLogger(__package__).setLevel(level)
    if quiet:
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # which the client looks at when it is imported
    if verbose > 1:
        os.environ["HF_HUB_VERBOSITY"] = "debug"
        for library in _HTTP_LIBRARIES:
            logging.getLogger(library).setLevel(logging.DEBUG)
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, _interrupt)


def _interrupt(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextlib.contextmanager
def _ending_at_once(then: str) -> Iterator[None]:
    """An interrupt ends the process on the spot: the Hub's client would first finish every file that it is at.

    For work that leaves nothing half-written; *then* says how things stand.
    """

    def end(signal_number: int, frame: object) -> NoReturn:
        with contextlib.suppress(OSError):
            os.write(2, f"s4convert: error: interrupted; {then}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    handlers = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if handlers[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def main() -> NoReturn:
    """Run the command line; every error is one line on stderr and an exit code."""
    debug = "--debug" in sys.argv[1:]
    try:
        # Not cli.main(): it ends a broken pipe with 1, which means a failed verification here.
        with cli.make_context("s4convert", sys.argv[1:]) as group_context:
            cli.invoke(group_context)
    except S4ConvertError as error:
        _fail(str(error), error.exit_code, debug)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f"; see {context.command_path} --help" if context is not None else ""
        _fail(error.format_message().rstrip(".") + hint, EXIT_USAGE, debug)
    except click.exceptions.Exit as done:  # --help and --version
        sys.exit(done.exit_code)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", EXIT_INTERRUPTED, debug)
    except BrokenPipeError:
        _discard_stdout()
        sys.exit(EXIT_STORAGE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", EXIT_STORAGE, debug)
    except Exception as error:  # a fault of ours: still one line, and the way to the traceback
        _fail(
            f"internal error: {type(error).__name__}: {error}; run again with --debug and report it",
            EXIT_INTERNAL,
            debug,
        )
    sys.exit(0)


def _fail(message: str, exit_code: int, debug: bool) -> NoReturn:
    with contextlib.suppress(OSError):  # stderr may be closed or full; the exit code says what happened
        if debug:
            click.echo(redact(traceback.format_exc()), err=True, nl=False)
        click.echo(f"s4convert: error: {redact(' '.join(message.split()))}", err=True)
    sys.exit(exit_code)


def _discard_stdout() -> None:
    """Whoever read our output has gone, or has no room: what Python still holds of it must not fail at the exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
