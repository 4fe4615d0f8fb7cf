"""The Hub's own validation of the model card that a conversion writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.client_process import NEW_CLIENT, ClientError, ClientProcess
from tests.hub.commands import CommandLine
from tests.hub.test_loopback_hub import validate_card
from tests.support.synthetic import Spec, write_checkpoint

pytestmark = pytest.mark.skipif(
    not NEW_CLIENT, reason="the old client's validate() asks the public Hub whatever HF_ENDPOINT says"
)


def write_card(s4convert: CommandLine, directory: Path, licence: str | None) -> str:
    """The card of a conversion whose base has a card that states *licence*, or has none."""
    snapshot = directory / "models--lab--llava-mini" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    source = write_checkpoint(snapshot, Spec(num_layers=2, num_kv_heads=4, hidden_size=16))
    if licence is not None:
        (source / "README.md").write_text(f"---\nlicense: {licence}\ntags:\n- vision\n---\n\nThe base.\n")
    (directory / "mask.json").write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    outcome = s4convert(source, directory / "out", "--mask", directory / "mask.json", "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    return (directory / "out" / "README.md").read_text()


@pytest.mark.parametrize("licence", [None, "apache-2.0"])
def test_the_card_is_valid_where_the_bases_metadata_is(
    tmp_path: Path, client: ClientProcess, s4convert: CommandLine, licence: str | None
) -> None:
    client.call(validate_card, write_card(s4convert, tmp_path, licence))


def test_the_card_states_the_bases_licence_even_where_the_hub_knows_none_of_that_name(
    tmp_path: Path, client: ClientProcess, s4convert: CommandLine
) -> None:
    card = write_card(s4convert, tmp_path, "no-such-licence")
    with pytest.raises(ClientError) as error:
        client.call(validate_card, card)
    (complaint,) = json.loads(error.value.message)["errors"]
    assert complaint["message"].startswith('"license" must be one of [')
