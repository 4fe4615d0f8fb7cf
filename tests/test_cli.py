"""The command line: what it prints, and where; what it imports; how it exits."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest

from s4convert import HeadMask, __version__, cli, convert, process, verify_conversion
from s4convert.errors import UsageError
from s4convert.mask import parse_schedule
from s4convert.output.card import CARD_FILES
from tests.conftest import MINI_LLAVA
from tests.support.command_line import COMMAND, ROOT, run, run_here
from tests.support.disk import digests, hidden_siblings, snapshot
from tests.support.environments import in_llavas_environment
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = in_llavas_environment

SPEC = Spec(num_layers=3, num_kv_heads=4, hidden_size=16, num_shards=2)
FRAMEWORKS = {"torch", "transformers"}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "in", SPEC)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    path = tmp_path / "mask.json"
    path.write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def converted(source: Path, mask: Path, out: Path) -> Path:
    convert(source, out, mask, check_behaviour=False)
    return out


def imported_by(*arguments: object) -> set[str]:
    """The top-level modules that the command imports."""
    finished = subprocess.run(
        [COMMAND[0], "-X", "importtime", *COMMAND[1:], *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    modules = re.findall(r"^import time:[^|]*\|[^|]*\| *([\w.]+)$", finished.stderr, re.MULTILINE)
    assert "s4convert.errors" in modules
    return {module.partition(".")[0] for module in modules}


# --- help and version -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        "--help",
        "-h",
    ],
)
def test_help_lists_the_main_jobs_options_and_the_commands(option: str) -> None:
    outcome = run_here(option)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert "IN OUT --mask MASK.json [OPTIONS]" in outcome.stdout
    listed = re.findall(r"^ +(?:-\w, )?(--[\w-]+)", outcome.stdout, re.MULTILINE)
    wanted = ["--mask", "--compensate", "--dry-run", "--no-verify", "--force", "--allow-converted", "--jobs"]
    assert set(listed) >= {*wanted, "--quiet", "--json", "--verbose", "--debug", "--help"}
    commands = re.findall(r"^  (\w+) ", outcome.stdout.partition("Commands:")[2], re.MULTILINE)
    assert set(commands) >= {"inspect", "verify", "demo"}
    assert "convert" not in commands  # the main job has no name


def test_help_imports_neither_numpy_nor_pillow_nor_a_framework() -> None:
    assert not imported_by("--help") & ({"numpy", "PIL"} | FRAMEWORKS)


def test_a_conversion_without_hidden_states_imports_no_framework(source: Path, out: Path, mask: Path) -> None:
    imported = imported_by(source, out, "--mask", mask, "--no-verify")
    assert "numpy" in imported
    assert not imported & FRAMEWORKS
    assert out.is_dir()


def test_a_dry_run_imports_no_framework(source: Path, out: Path, mask: Path) -> None:
    assert not imported_by(source, out, "--mask", mask, "--dry-run") & FRAMEWORKS


@pytest.mark.parametrize("command", ["inspect", "verify", "demo", "convert", "mask"])
def test_every_command_has_its_help(command: str) -> None:
    outcome = run_here(command, "--help")
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    assert outcome.stdout.startswith("Usage: ")
    assert "--debug" in outcome.stdout


def test_the_version_is_the_packages() -> None:
    outcome = run_here("--version")
    assert outcome.exit_code == 0
    assert outcome.stdout == f"s4convert, version {__version__}\n"


def test_the_bare_command_shows_its_help() -> None:
    outcome = run_here()
    shown = outcome.stdout + outcome.stderr
    assert "IN OUT --mask MASK.json [OPTIONS]" in shown
    assert all(len(line) <= 120 for line in shown.splitlines())


# --- the main job ---------------------------------------------------------------------------------------------


def test_results_go_to_stdout_and_messages_to_stderr(source: Path, out: Path, mask: Path) -> None:
    outcome = run_here(source, out, "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0
    assert outcome.stderr == f"s4convert: {mask}: listed heads, listed = pruned, 2 of 12 heads\n"
    lines = outcome.stdout.splitlines()
    assert lines[-1] == f"written: {out}"
    assert any(line.startswith("verdict: OK, 2 of 12 heads silenced in 1 of 3 layers") for line in lines)
    assert not any(line.startswith("s4convert:") for line in lines)
    assert hidden_siblings(out) == []


def test_the_report_shows_every_layers_hidden_states(out: Path, mask: Path) -> None:
    outcome = run_here(MINI_LLAVA, out, "--mask", mask)
    assert outcome.exit_code == 0
    rows = re.findall(r"^ +(\d) +(\d) +(\d\.\d+e[+-]\d+) +(\d+\.\d+)% ", outcome.stdout, re.MULTILINE)
    assert [(int(layer), int(pruned)) for layer, pruned, _, _ in rows] == [(n, 2 * (n == 1)) for n in range(8)]
    deltas = [float(delta) for _, _, delta, _ in rows]
    assert deltas[0] == 0
    assert min(deltas[1:]) > 0
    assert "3 text prompts, 2 image prompts" in outcome.stdout


def test_quiet_prints_only_the_path_of_out(source: Path, out: Path, mask: Path) -> None:
    outcome = run_here(source, out, "--mask", mask, "--no-verify", "-q")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, f"{out}\n", "")


def test_a_quiet_process_prints_only_the_path_of_out(source: Path, out: Path, mask: Path) -> None:
    outcome = run(source, out, "--mask", mask, "--no-verify", "-q")
    assert (outcome.exit_code, outcome.stdout, outcome.stderr) == (0, f"{out}\n", "")


def test_json_holds_the_figures_of_the_report(out: Path, mask: Path) -> None:
    outcome = run_here(MINI_LLAVA, out, "--mask", mask, "--json")
    assert outcome.exit_code == 0
    printed = json.loads(outcome.stdout)
    assert printed["out"] == str(out)
    assert printed["structure"]["edited_tensors"] == 4
    assert [layer["heads_pruned"] for layer in printed["behaviour"]["layers"]] == [0, 2, 0, 0, 0, 0, 0, 0]
    assert json.loads((out / "s4convert.json").read_text())["verification"] == {
        name: printed[name] for name in ("heads", "structure", "behaviour", "verdict")
    }


@pytest.mark.parametrize(
    ("name", "options", "how_read"),
    [
        ("mask.npy", ["--mask-polarity", "keep"], "NumPy array, 1 = keep"),
        ("scores.json", ["--rate", "0.25", "--schedule", "uniform"], "scores, uniform at 0.25"),
    ],
)
def test_masks_that_need_a_word_more_give_the_same_checkpoint(
    source: Path, out: Path, tmp_path: Path, name: str, options: list[str], how_read: str
) -> None:
    np.save(tmp_path / "mask.npy", np.array([[1, 1, 0, 1]] * 3))
    (tmp_path / "scores.json").write_text(json.dumps({"saliency_scores": [[3, 2, 1, 4]] * 3}))
    (tmp_path / "listed.json").write_text(json.dumps({str(layer): [2] for layer in range(3)}))
    outcome = run_here(source, out, "--mask", tmp_path / name, *options, "--no-verify")
    assert outcome.stderr == f"s4convert: {tmp_path / name}: {how_read}, 3 of 12 heads\n"
    convert(source, tmp_path / "expected", tmp_path / "listed.json", check_behaviour=False)
    for weights in sorted((tmp_path / "expected").glob("*.safetensors")):
        assert (out / weights.name).read_bytes() == weights.read_bytes()
    report = verify_conversion(
        source,
        out,
        mask=tmp_path / name,
        mask_polarity="keep" if name == "mask.npy" else None,
        schedule=None if name == "mask.npy" else parse_schedule("uniform", "0.25"),
        check_behaviour=False,
    )
    assert "3 of 12 heads" in report.to_text()


def test_what_is_said_about_a_mask_file_needs_a_mask_file(source: Path, converted: Path) -> None:
    outcome = run_here("verify", source, converted, "--mask-polarity", "keep")
    assert outcome.exit_code == 2
    assert "--mask-polarity, --rate and --schedule are about a --mask file; give that too" in outcome.error
    with pytest.raises(UsageError, match="are about a mask file, and this mask is none"):
        convert(source, converted, HeadMask(4, ((2,), (), ())), mask_polarity="keep")


def test_the_main_job_may_be_called_by_its_name(source: Path, out: Path, mask: Path) -> None:
    assert run_here("convert", source, out, "--mask", mask, "--no-verify", "-q").exit_code == 0
    assert out.is_dir()


def test_options_may_stand_before_the_arguments(source: Path, out: Path, mask: Path) -> None:
    assert run_here("--mask", mask, "--no-verify", "-q", source, out).exit_code == 0
    assert out.is_dir()


def test_relative_paths_are_those_of_the_working_directory(
    source: Path, out: Path, mask: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    outcome = run_here(".", "../out", "--mask", "../mask.json", "--no-verify", "-q")
    assert (outcome.exit_code, outcome.stdout) == (0, "../out\n")
    assert json.loads((out / "s4convert.json").read_text())["source"] == "in"


def test_without_compensation_kept_heads_stay_as_they_are(source: Path, out: Path, mask: Path) -> None:
    outcome = run_here(source, out, "--mask", mask, "--dry-run", "-v", "--compensate", "none")
    assert "the others times 1.0000" in outcome.stdout
    assert run_here(source, out, "--mask", mask, "--no-verify", "--compensate", "none").exit_code == 0
    assert json.loads((out / "s4convert.json").read_text())["compensation"] == "none"


def test_a_converted_in_is_accepted_where_one_insists(converted: Path, mask: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    refused = run_here(converted, again, "--mask", mask, "--no-verify")
    assert refused.exit_code == 2
    assert "--allow-converted" in refused.error
    assert run_here(converted, again, "--mask", mask, "--no-verify", "--allow-converted").exit_code == 0
    assert again.is_dir()


def test_weights_that_are_left_behind_are_named(source: Path, out: Path, mask: Path) -> None:
    (source / "pytorch_model.bin").write_bytes(b"unpruned")
    outcome = run_here(source, out, "--mask", mask, "--no-verify")
    assert outcome.exit_code == 0
    assert f"s4convert: {source / 'pytorch_model.bin'}: left behind" in outcome.stderr
    assert not (out / "pytorch_model.bin").exists()


# --- the plan alone -------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    source: Path, out: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=12_345, f_frsize=4096))
    before = snapshot(tmp_path)
    outcome = run_here(source, out, "--mask", mask, "--dry-run")
    assert outcome.stdout.startswith("layers     heads pruned\n0                     0\n1                     2\n")
    assert "_proj" not in outcome.stdout
    assert run_here(source, out, "--mask", mask, "--dry-run", "-q").stdout == ""
    outcome = run_here(source, out, "--mask", mask, "--dry-run", "-v")
    assert outcome.exit_code == 0
    assert snapshot(tmp_path) == before
    edits = re.findall(
        r"layers\.1\.self_attn\.(\w)_proj\.weight  (.*)  \[model-0000[12]-of-00002\.safetensors\]", outcome.stdout
    )
    assert sorted(edits) == sorted(
        [
            *[(name, f"rows {rows} become 0") for name in "qkv" for rows in ("0-3", "8-11")],
            ("o", "8 of 16 columns become 0, the others times 2.0000"),
        ]
    )
    # Six spans of four rows of 16 float16 weights, and a matrix of 16 x 16.
    assert "7 edits in spans of 1,280 bytes" in outcome.stdout
    size = sum(path.stat().st_size for path in source.rglob("*") if path.is_file())
    needed, free = re.search(r"([\d,]+) bytes needed, ([\d,]+) free", outcome.stdout).groups()
    assert int(needed.replace(",", "")) >= size
    assert int(free.replace(",", "")) == 12_345 * 4096
    assert "compensation scale, in 1 layers" in outcome.stdout


def test_a_dry_run_as_json_names_every_edit(source: Path, out: Path, mask: Path) -> None:
    outcome = run_here(source, out, "--mask", mask, "--dry-run", "--json")
    plan = json.loads(outcome.stdout)
    assert plan["heads"]["pruned"] == 2
    assert plan["compensation"] == "scale"
    assert plan["rewritten_bytes"] == sum(edit["end"] - edit["begin"] for edit in plan["edits"]) == 1280
    assert plan["needed_bytes"] > 0
    assert plan["free_bytes"] > 0
    assert {edit["shard"] for edit in plan["edits"]} <= {path.name for path in source.iterdir()}
    assert not out.exists()


# --- inspect --------------------------------------------------------------------------------------------------


def test_inspect_shows_the_geometry_of_an_original(source: Path) -> None:
    outcome = run_here("inspect", source)
    assert outcome.exit_code == 0
    assert outcome.stderr == ""
    shown = dict(re.findall(r"^(\w+(?: \w+)?) {2,}(.*)$", outcome.stdout, re.MULTILINE))
    assert shown["layout"] == "Hugging Face llava, llama"
    assert shown["geometry"] == "3 layers, 4 heads of 4, hidden size 16"
    assert shown["converted"] == "no"
    assert shown["silent heads"] == "0 of 12"


def test_inspect_shows_the_silent_heads_of_a_conversion(converted: Path) -> None:
    outcome = run_here("inspect", converted)
    assert outcome.exit_code == 0
    assert re.search(r"^converted +yes", outcome.stdout, re.MULTILINE)
    assert "silent heads  2 of 12\n" in outcome.stdout
    assert "    1 |x.x.|   2 ==\n" in outcome.stdout


def test_inspect_as_json_tells_the_same(source: Path, converted: Path) -> None:
    before, after = (json.loads(run_here("inspect", path, "--json").stdout) for path in (source, converted))
    assert before["silent_heads"] == {}
    assert after["silent_heads"] == {"1": [0, 2]}
    assert (before["converted"], after["converted"]) == (False, True)
    assert set(after["sidecars"]) - set(before["sidecars"]) == CARD_FILES
    same = ("num_layers", "num_heads", "num_kv_heads", "head_dim", "hidden_size", "shards", "dtype_bytes")
    assert all(before[name] == after[name] for name in same)


def test_inspect_shows_groups_of_heads_and_weights_that_no_loader_reads(tmp_path: Path) -> None:
    spec = Spec(num_kv_heads=2, heads_per_group=3, text_model="qwen2", layout="original", hidden_size=24)
    source = write_checkpoint(tmp_path / "in", spec)
    (source / "pytorch_model.bin").write_bytes(b"")
    outcome = run_here("inspect", source)
    assert "6 heads of 4, 2 kv heads (3 heads each)" in outcome.stdout
    assert "original llava_qwen, qwen2" in outcome.stdout
    assert "left behind   pytorch_model.bin" in outcome.stdout


# --- verify ---------------------------------------------------------------------------------------------------


@pytest.fixture
def mini_converted(mask: Path, out: Path) -> Path:
    convert(MINI_LLAVA, out, mask, check_behaviour=False)
    return out


def test_verify_takes_the_mask_of_the_manifest(mini_converted: Path) -> None:
    outcome = run_here("verify", MINI_LLAVA, mini_converted)
    assert outcome.exit_code == 0, outcome.stderr
    assert "verdict: OK, 2 of 64 heads silenced in 1 of 8 layers" in outcome.stdout


def test_verify_as_json_holds_the_figures(mini_converted: Path) -> None:
    outcome = run_here("verify", MINI_LLAVA, mini_converted, "--json")
    printed = json.loads(outcome.stdout)
    assert printed["structure"]["edited_tensors"] == 4
    assert len(printed["behaviour"]["layers"]) == 8
    assert printed["cause"] is None
    assert printed["mask"]["pruned"] == {"1": [0, 2]}
    assert printed["compensation"] == {"mode": "scale"}


def test_verify_without_a_manifest_reads_the_mask_off_the_weights_or_takes_one(
    mini_converted: Path, mask: Path
) -> None:
    (mini_converted / "s4convert.json").unlink()
    for options in ([], ["--mask", mask]):
        outcome = run_here("verify", MINI_LLAVA, mini_converted, *options)
        assert outcome.exit_code == 0, outcome.stderr
        assert "read off the weights: 2 heads are silent" in outcome.stdout
        assert (
            f"note: 2 files beside the weights are not the original's: {', '.join(sorted(CARD_FILES))}"
            in outcome.stdout
        )
        assert "verdict: OK" in outcome.stdout


def test_verify_of_one_checkpoint_compares_its_files_with_its_manifest(mini_converted: Path, tmp_path: Path) -> None:
    outcome = run_here("verify", mini_converted)
    assert outcome.exit_code == 0, outcome.stderr
    assert "verdict: OK, all 12 files are what s4convert.json says of them, and the 2 heads" in outcome.stdout
    refused = run_here("verify", mini_converted, "--compensate", "none")
    assert (refused.exit_code, refused.error.partition(";")[0]) == (2, "--compensate is about two checkpoints")
    assert run_here("verify", MINI_LLAVA).error == (
        f"{MINI_LLAVA}: has no s4convert.json to check it by; give the original before it"
    )
    assert run_here("verify", "a", "b", "c").exit_code == 2
    (mini_converted / "config.json").write_bytes((mini_converted / "config.json").read_bytes() + b"\n")
    changed = run_here("verify", mini_converted, "--json")
    assert changed.exit_code == 1
    assert "config.json: is not what s4convert.json says of it" in changed.error
    assert json.loads(changed.stdout)["cause"] == "damaged"


def test_verify_of_one_checkpoint_sees_that_another_mask_was_written_into_its_manifest(mini_converted: Path) -> None:
    manifest = mini_converted / "s4convert.json"
    content = json.loads(manifest.read_text())
    content["mask"]["pruned"]["1"] = [0, 3]
    manifest.write_text(json.dumps(content))
    outcome = run_here("verify", mini_converted)
    assert outcome.exit_code == 1
    assert "layer 1: head 3 is not silent, though the mask in s4convert.json prunes it" in outcome.error


def test_verify_runs_the_models_on_a_device_that_is_there(mini_converted: Path) -> None:
    assert run_here("verify", MINI_LLAVA, mini_converted, "--device", "cpu").exit_code == 0
    outcome = run_here("verify", MINI_LLAVA, mini_converted, "--device", "abacus")
    assert outcome.exit_code == 2
    assert outcome.error == "--device abacus: there is no such device; use cpu or cuda"


def test_verify_with_another_mask_or_compensation_fails(mini_converted: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"pruned_heads": {"1": [0, 3]}}))
    for options, message in (
        (["--mask", other], "than the one given: layer 1 has lost heads 0, 2, where the mask takes heads 0, 3"),
        (["--compensate", "none"], "of layer 1 is not what the mask asks for"),
    ):
        outcome = run_here("verify", MINI_LLAVA, mini_converted, *options)
        assert outcome.exit_code == 1
        assert message in outcome.error
        assert outcome.stdout == ""


def test_verify_ends_with_exit_code_1_where_a_file_was_changed(mini_converted: Path) -> None:
    (mini_converted / "generation_config.json").write_text("{}")
    outcome = run_here("verify", MINI_LLAVA, mini_converted)
    assert outcome.exit_code == 1
    assert "generation_config.json" in outcome.error
    assert outcome.stdout == ""


def test_verify_writes_nothing(mini_converted: Path, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    assert run_here("verify", MINI_LLAVA, mini_converted).exit_code == 0
    assert snapshot(tmp_path) == before


def test_two_unconverted_copies_do_not_verify(mask: Path) -> None:
    outcome = run_here("verify", MINI_LLAVA, MINI_LLAVA, "--mask", mask)
    assert outcome.exit_code == 1
    assert "in all 134 tensors: nothing was pruned; give the converted checkpoint" in outcome.error


# --- demo -----------------------------------------------------------------------------------------------------


def test_the_demo_converts_the_shipped_model_and_asks_it_eight_questions(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    outcome = run_here("demo", directory)
    assert outcome.exit_code == 0, outcome.stderr
    assert "verdict: OK, 16 of 64 heads silenced in 8 of 8 layers" in outcome.stdout
    answers = re.findall(r"^(\d\.png|text): .+\?? +([A-D]) +([A-D]) +([A-D])$", outcome.stdout, re.MULTILINE)
    assert len(answers) == 8
    assert all(original == right for _, right, original, _ in answers)
    assert digests(directory / "mini-llava") == digests(MINI_LLAVA)
    assert (directory / "mini-llava-pruned" / "s4convert.json").is_file()
    assert sorted(path.name for path in directory.iterdir()) == ["mask.json", "mini-llava", "mini-llava-pruned"]


def test_the_demo_refuses_a_directory_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("the only copy")
    before = snapshot(tmp_path)
    outcome = run_here("demo", tmp_path)
    assert outcome.exit_code == 2
    assert "is not empty; remove it, or give the demo another directory" in outcome.error
    assert snapshot(tmp_path) == before


# --- the process ----------------------------------------------------------------------------------------------


@pytest.fixture
def read_by_nobody(source: Path) -> tuple[int, str]:
    """Exit code and stderr of a command whose stdout is a pipe that was closed at its other end."""
    process = subprocess.Popen(
        [*COMMAND, "inspect", str(source)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.close()
    _, stderr = process.communicate()
    return process.returncode, stderr


def test_a_reader_that_goes_away_is_no_traceback(read_by_nobody: tuple[int, str]) -> None:
    assert read_by_nobody == (3, "")  # and no failed verification, which 1 would say


def test_an_output_that_takes_nothing_is_an_error_of_storage(source: Path) -> None:
    with Path("/dev/full").open("w") as full:
        finished = subprocess.run(
            [*COMMAND, "inspect", str(source)], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert finished.returncode == 3
    assert finished.stderr == "s4convert: error: No space left on device\n"


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_without_a_place_for_messages_the_exit_code_still_tells(
    source: Path, out: Path, mask: Path, closed: str
) -> None:
    def exit_code(*arguments: object) -> int:
        command = shlex.join(map(str, [*COMMAND, *arguments]))
        return subprocess.run(["/bin/sh", "-c", f"{command} {closed}"], cwd=ROOT, capture_output=True).returncode

    assert exit_code(source.with_name("nowhere"), out, "--mask", mask) == 2
    assert exit_code(source, out, "--mask", mask, "--no-verify") == 0
    assert out.is_dir()


def test_a_report_that_cannot_be_printed_does_not_deny_that_out_is_written(source: Path, out: Path, mask: Path) -> None:
    command = shlex.join(map(str, [*COMMAND, source, out, "--mask", mask, "--no-verify"]))
    finished = subprocess.run(["/bin/sh", "-c", f"{command} > /dev/full"], cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 3
    assert f"{out}: is written, but its report cannot be printed" in finished.stderr
    assert out.is_dir()


@pytest.mark.parametrize("flag", ["-v", "--json", "--debug"])
def test_a_flag_may_stand_before_the_command(source: Path, flag: str) -> None:
    before, after = run_here(flag, "inspect", source), run_here("inspect", source, flag)
    assert before.exit_code == 0
    assert before.stdout == after.stdout


@pytest.mark.parametrize(("word", "meant"), [("inspekt", "inspect"), ("verfy", "verify"), ("masc", "mask")])
def test_a_misspelt_command_is_told_so(source: Path, word: str, meant: str) -> None:
    outcome = run_here(word, source)
    assert outcome.exit_code == 2
    assert f"no such command or directory: '{word}'; did you mean {meant}?" in outcome.error


def test_a_word_that_is_neither_a_command_nor_a_checkpoint_is_told_so(source: Path, out: Path) -> None:
    outcome = run_here("-v", "undo", source, out, "--mask", "mask.json")
    assert outcome.exit_code == 2
    commands = "inspect, verify, evaluate, compare, sweep, report, reproduce, mask, push, demo"
    assert outcome.error.startswith(f"no such command or directory: 'undo'; the commands are {commands}")


def test_the_value_of_an_option_is_not_taken_for_a_misspelt_command(source: Path, out: Path) -> None:
    outcome = run_here("--mask", "masks.json", source, out, "--no-verify")
    assert outcome.error == "masks.json: no such file"


@pytest.mark.parametrize(("said", "shown"), [("it is so.", "it is so"), ("no such bands:...", "no such bands:...")])
def test_a_message_keeps_the_dots_of_a_value(
    said: str, shown: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise click.UsageError(said)

    monkeypatch.setattr(cli.cli, "invoke", refuse)
    with pytest.raises(SystemExit):
        process.run(cli.cli, ["demo"])
    assert capsys.readouterr().err == f"s4convert: error: {shown}; see s4convert --help\n"


def test_a_directory_whose_name_is_nearly_a_command_is_an_in(
    source: Path, mask: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source.rename(tmp_path / "inspekt")
    outcome = run_here("inspekt", "out", "--mask", mask, "--no-verify", "-q")
    assert (outcome.exit_code, outcome.stdout) == (0, "out\n")


def completions(*words: str) -> set[str]:
    """What bash offers for the last of *words*; a word of type dir is a request for the names of directories."""
    asked = {"COMP_WORDS": shlex.join(["s4convert", *words]), "COMP_CWORD": str(len(words))}
    outcome = run(environment=os.environ | asked | {"_S4CONVERT_COMPLETE": "bash_complete"})
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    return set(outcome.stdout.splitlines())


def test_the_shell_is_offered_commands_and_directories_where_either_may_stand() -> None:
    assert completions("") == {
        *(
            f"plain,{name}"
            for name in (
                *("compare", "demo", "evaluate", "inspect", "mask"),
                *("push", "report", "reproduce", "sweep", "verify"),
            )
        ),
        "dir,",
    }
    assert completions("ver") == {"plain,verify", "dir,ver"}


@pytest.mark.parametrize("words", [["--mask-"], ["in", "out", "--mask-"]], ids=["first", "behind IN and OUT"])
def test_the_shell_is_offered_the_main_jobs_options(words: list[str]) -> None:
    assert completions(*words) == {"plain,--mask-polarity"}


def test_the_shell_is_offered_a_commands_own_options_and_choices() -> None:
    assert completions("inspect", "--pl") == {"plain,--plot"}
    assert completions("mask", "--metric", "m") == {"plain,magnitude"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_own_script_names_the_command(shell: str) -> None:
    outcome = run(environment=os.environ | {"_S4CONVERT_COMPLETE": f"{shell}_source"})
    assert outcome.exit_code == 0
    assert f"_S4CONVERT_COMPLETE={shell}_complete" in outcome.stdout


@pytest.mark.parametrize("options", [("-q", "--json"), ("-q",), ("--json",), ()])
def test_a_quiet_dry_run_prints_nothing(source: Path, out: Path, mask: Path, options: tuple[str, ...]) -> None:
    outcome = run_here(source, out, "--mask", mask, "--dry-run", *options)
    assert outcome.exit_code == 0
    assert (outcome.stdout == "") == ("-q" in options)
    assert not out.exists()


def test_a_quiet_mask_prints_only_where_it_is(tmp_path: Path) -> None:
    options = ("--metric", "magnitude", "--schedule", "uniform", "--rate", "0.25")
    quiet = run_here("mask", MINI_LLAVA, "-o", tmp_path / "quiet.json", *options, "-q")
    assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, f"{tmp_path / 'quiet.json'}\n", "")
    as_json = run_here("mask", MINI_LLAVA, "-o", tmp_path / "as.json", *options, "--json", "--plot", tmp_path / "a.png")
    assert json.loads(as_json.stdout)["out"] == str(tmp_path / "as.json")
    assert (tmp_path / "a.png").is_file()


@pytest.mark.parametrize(("verbose", "is_told"), [((), False), (("-vv",), True)])
def test_twice_verbose_lets_libraries_speak(source: Path, verbose: tuple[str, ...], is_told: bool) -> None:
    told_later = "logging.getLogger('urllib3').debug('GET')"
    code = f"import logging, s4convert.cli as cli\ntry: cli.main()\nfinally: {told_later}"
    outcome = run("inspect", source, *verbose, command=(sys.executable, "-c", code))
    assert outcome.exit_code == 0
    assert outcome.stderr == ("s4convert: GET\n" if is_told else "")


def test_a_quiet_run_still_warns_of_what_it_leaves_behind(source: Path, out: Path, mask: Path) -> None:
    (source / "model.fp16.safetensors").write_bytes(b"x")
    outcome = run_here(source, out, "--mask", mask, "--no-verify", "-q")
    assert outcome.stdout == f"{out}\n"
    assert "model.fp16.safetensors: left behind" in outcome.stderr


def test_the_choices_on_the_command_line_are_those_of_the_library() -> None:
    from s4convert.compensation import MODES
    from s4convert.mask.making import GRANULARITIES
    from s4convert.saliency import METRICS

    assert set(cli.COMPENSATIONS) == set(MODES)
    assert set(cli.METRICS) == set(METRICS)
    assert set(cli.GRANULARITIES) == set(GRANULARITIES)
