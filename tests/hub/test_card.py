"""The Hub's own validation of the model card that a conversion writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.client_process import ClientError, ClientProcess
from tests.hub.commands import CommandLine
from tests.hub.test_loopback_hub import NEW_CLIENT, validate_card
from tests.support.synthetic import Spec, write_checkpoint


@pytest.mark.skipif(not NEW_CLIENT, reason="the old client's validate() asks the public Hub whatever HF_ENDPOINT says")
@pytest.mark.parametrize("licence", [None, "apache-2.0", "no-such-licence"])
def test_the_card_is_valid_where_the_bases_metadata_is(
    tmp_path: Path, client: ClientProcess, s4convert: CommandLine, licence: str | None
) -> None:
    snapshot = tmp_path / "models--lab--llava-mini" / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    source = write_checkpoint(snapshot, Spec(num_layers=2, num_kv_heads=4, hidden_size=16))
    if licence is not None:
        (source / "README.md").write_text(f"---\nlicense: {licence}\ntags:\n- vision\n---\n\nThe base.\n")
    (tmp_path / "mask.json").write_text(json.dumps({"pruned_heads": {"1": [0, 2]}}))
    outcome = s4convert(source, tmp_path / "out", "--mask", tmp_path / "mask.json", "--no-verify")
    assert outcome.exit_code == 0, outcome.stderr
    card = (tmp_path / "out" / "README.md").read_text()
    if licence == "no-such-licence":
        with pytest.raises(ClientError, match="license"):
            client.call(validate_card, card)
    else:
        client.call(validate_card, card)
