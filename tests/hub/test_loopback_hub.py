"""The loopback Hub, through the real huggingface_hub client and, where that never errs, through plain HTTP."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.hub.client_process import NEW_CLIENT, ClientError, ClientProcess
from tests.hub.conftest import TOKEN, environment_for
from tests.hub.faults import Answer, CorruptBody, CutBody, CutRequest, Delay, LoseAnswer, ShortenBody
from tests.hub.repositories import GIT_ATTRIBUTES
from tests.hub.server import LoopbackHub

ROOT = Path(__file__).parents[2]
MODEL = "lab/model"
CARD = b"---\nlicense: mit\nbase_model: lab/base\npipeline_tag: image-text-to-text\ntags: [vision]\n---\nA model.\n"
WEIGHTS = bytes(range(256)) * 20
FILES = {"README.md": CARD, "config.json": b"{}\n", "model.safetensors": WEIGHTS, "assets/tokens.txt": b"a\nb\n"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FILES.items():
        (tmp_path / "model" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "model" / path).write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def model(hub: LoopbackHub) -> str:
    """A repository with ``FILES``; their commit."""
    hub.create_repo(MODEL)
    return hub.commit(MODEL, FILES)


@pytest.fixture
def download(client: ClientProcess, tmp_path: Path) -> Callable[..., Path]:
    """Downloads one file into a cache of the test's own."""

    def hf_hub_download(filename: str, id: str = MODEL, **options: Any) -> Path:  # noqa: A002
        return Path(client.call(fetch, id, filename, cache_dir=tmp_path / "cache", **options))

    return hf_hub_download


@pytest.fixture
def snapshot(client: ClientProcess, tmp_path: Path) -> Callable[..., Path]:
    """Downloads a repository into a cache of the test's own."""

    def snapshot_download(id: str = MODEL, **options: Any) -> Path:  # noqa: A002
        return Path(client.call(fetch_all, id, cache_dir=tmp_path / "cache", **options))

    return snapshot_download


def fetch(*arguments: Any, **options: Any) -> str:
    from huggingface_hub import hf_hub_download

    return str(hf_hub_download(*arguments, **options))


def fetch_all(*arguments: Any, **options: Any) -> str:
    from huggingface_hub import snapshot_download

    return str(snapshot_download(*arguments, **options))


def validate_card(card: str) -> None:
    from huggingface_hub import ModelCard

    ModelCard(card).validate()


def upload_folder(folder: Path) -> None:
    from huggingface_hub import HfApi

    HfApi().upload_folder(repo_id=MODEL, folder_path=folder)


def upload_open_files(folder: Path) -> None:
    """Upload open files instead of paths, which keeps huggingface_hub 2.x from Xet."""
    from huggingface_hub import CommitOperationAdd, HfApi

    with ExitStack() as stack:
        files = [CommitOperationAdd(name, stack.enter_context((folder / name).open("rb"))) for name in FILES]
        HfApi().create_commit(MODEL, files, commit_message="Upload open files")


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def asked(hub: LoopbackHub, method: str, server: str = "hub") -> list[str]:
    return [request.path for request in hub.requests if (request.method, request.server) == (method, server)]


def http(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> HTTPResponse:
    """A plain request; an error is an answer like any other, and redirects are not followed."""

    class Opener(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *arguments: Any) -> None:
            return None

    request = urllib.request.Request(url, body, {key.replace("_", "-"): v for key, v in headers.items()}, method=method)
    try:
        answer: Any = urllib.request.build_opener(Opener, urllib.request.ProxyHandler({})).open(request)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        answer.content = answer.read()
    return answer


# --- accounts and repositories --------------------------------------------------------------------------------


def test_a_token_tells_who_one_is(hub: LoopbackHub, client: ClientProcess) -> None:
    answer = client.api("whoami")
    assert (answer["name"], [org["name"] for org in answer["orgs"]]) == ("alice", ["lab"])
    assert answer["auth"]["accessToken"]["role"] == "write"
    hub.add_user("bob", "hf_reader", can_write=False)
    assert client.api("whoami", token="hf_reader")["auth"]["accessToken"]["role"] == "read"


def test_an_unknown_token_is_refused(client: ClientProcess, model: str) -> None:
    for method, arguments in (("whoami", ()), ("model_info", (MODEL,)), ("create_repo", ("lab/new",))):
        with pytest.raises(ClientError) as error:
            client.api(method, *arguments, token="hf_unknown")
        assert error.value.status == 401


@pytest.mark.parametrize("private", [False, True])
def test_a_new_repository_holds_what_the_hubs_do(hub: LoopbackHub, client: ClientProcess, private: bool) -> None:
    url = client.api("create_repo", MODEL, private=private)
    assert str(url) == f"{hub.endpoint}/{MODEL}"
    assert client.api("model_info", MODEL).private is private
    assert client.api("list_repo_files", MODEL) == [".gitattributes"]
    assert b"*.safetensors filter=lfs" in hub.files(MODEL)[".gitattributes"]


def test_a_repository_is_created_once(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    with pytest.raises(ClientError) as error:
        client.api("create_repo", MODEL)
    assert error.value.status == 409
    assert str(client.api("create_repo", MODEL, exist_ok=True)) == f"{hub.endpoint}/{MODEL}"
    assert hub.files(MODEL) == {".gitattributes": GIT_ATTRIBUTES, **FILES}


def test_nobody_creates_or_writes_where_he_may_not(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    hub.add_user("bob", "hf_bob")
    hub.add_user("carol", "hf_reader", orgs=("lab",), can_write=False)
    for token in ("hf_bob", "hf_reader"):
        with pytest.raises(ClientError) as error:
            client.api("create_repo", "lab/new", token=token)
        assert error.value.status == 403
        with pytest.raises(ClientError) as error:
            client.api("upload_file", path_or_fileobj=b"1", path_in_repo="x.txt", repo_id=MODEL, token=token)
        assert error.value.status == 403
    assert "x.txt" not in hub.files(MODEL)


@pytest.mark.parametrize(("token", "status"), [(False, 401), ("hf_bob", 404)])
def test_a_repository_that_is_private_or_missing_is_not_found(
    hub: LoopbackHub, client: ClientProcess, download: Callable[..., Path], token: str | bool, status: int
) -> None:
    hub.add_user("bob", "hf_bob")
    hub.create_repo("lab/private", private=True)
    hub.commit("lab/private", FILES)
    assert client.api("repo_exists", "lab/private", token=token) is False
    for id_ in ("lab/private", "lab/missing", "missing"):
        with pytest.raises(ClientError) as error:
            client.api("model_info", id_, token=token)
        assert (error.value.kinds[0], error.value.status) == ("RepositoryNotFoundError", status)
        with pytest.raises(ClientError) as error:
            download("config.json", id_, token=token)
        assert (error.value.kinds[0], error.value.status) == ("RepositoryNotFoundError", status)
    assert download("config.json", "lab/private").read_bytes() == FILES["config.json"]


def test_a_gate_stands_before_the_files_alone(
    hub: LoopbackHub, client: ClientProcess, download: Callable[..., Path]
) -> None:
    hub.add_user("bob", "hf_bob")
    hub.create_repo(MODEL, gated=True)
    hub.commit(MODEL, FILES)
    for token, status in ((False, 401), ("hf_bob", 403)):
        assert client.api("model_info", MODEL, token=token).gated == "manual"
        with pytest.raises(ClientError) as error:
            download("config.json", token=token)
        assert "Access to model lab/model is restricted" in error.value.message
        assert error.value.status == status
    hub.grant(MODEL, "bob")
    assert download("config.json", token="hf_bob").read_bytes() == FILES["config.json"]


def test_a_renamed_repository_is_found_under_its_old_name(
    hub: LoopbackHub, client: ClientProcess, download: Callable[..., Path], model: str
) -> None:
    client.api("move_repo", MODEL, "lab/renamed")
    assert client.api("model_info", MODEL).id == "lab/renamed"
    for name in ("config.json", "model.safetensors"):
        assert download(name).read_bytes() == FILES[name]


def test_a_repository_is_deleted(client: ClientProcess, model: str) -> None:
    assert client.api("repo_exists", MODEL) is True
    client.api("delete_repo", MODEL)
    assert client.api("repo_exists", MODEL) is False


def test_settings_are_changed(client: ClientProcess, model: str) -> None:
    client.api("update_repo_settings", MODEL, private=True, gated="manual")
    info = client.api("model_info", MODEL)
    assert (info.private, info.gated) == (True, "manual")


# --- references -----------------------------------------------------------------------------------------------


def test_branches_tags_and_pull_requests_are_listed(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    client.api("create_branch", MODEL, branch="try/it")
    client.api("create_tag", MODEL, tag="v1")
    answer = client.api(
        "upload_file", path_or_fileobj=b"1", path_in_repo="x.txt", repo_id=MODEL, create_pr=True, revision="main"
    )
    assert (answer.pr_revision, answer.pr_url) == ("refs/pr/1", f"{hub.endpoint}/{MODEL}/discussions/1")
    refs = client.api("list_repo_refs", MODEL, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": model, "try/it": model}
    assert [(ref.ref, ref.target_commit) for ref in refs.tags] == [("refs/tags/v1", model)]
    assert [(ref.ref, ref.target_commit) for ref in refs.pull_requests] == [("refs/pr/1", answer.oid)]
    with pytest.raises(ClientError) as error:
        client.api("create_branch", MODEL, branch="try/it")
    assert error.value.status == 409
    client.api("create_branch", MODEL, branch="try/it", exist_ok=True)
    client.api("delete_branch", MODEL, branch="try/it")
    assert [ref.name for ref in client.api("list_repo_refs", MODEL).branches] == ["main"]


def test_a_commit_goes_to_its_branch_alone(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    client.api("create_branch", MODEL, branch="try/it", revision=model)
    client.api("upload_file", path_or_fileobj=b"1", path_in_repo="x.txt", repo_id=MODEL, revision="try/it")
    assert hub.files(MODEL, "try/it") == {**hub.files(MODEL), "x.txt": b"1"}
    titles = [commit.title for commit in client.api("list_repo_commits", MODEL, revision="try/it")]
    assert titles == ["Upload x.txt with huggingface_hub", "Add files", "initial commit"]


def test_anyone_may_open_a_pull_request_and_the_branch_stays(
    hub: LoopbackHub, client: ClientProcess, model: str
) -> None:
    hub.add_user("bob", "hf_bob")
    before = hub.files(MODEL)
    client.api(
        "upload_file", path_or_fileobj=WEIGHTS, path_in_repo="x.bin", repo_id=MODEL, create_pr=True, token="hf_bob"
    )
    assert hub.files(MODEL) == before
    assert hub.files(MODEL, "refs/pr/1") == {**before, "x.bin": WEIGHTS}


def test_a_revision_that_is_missing_is_named(client: ClientProcess, download: Callable[..., Path], model: str) -> None:
    calls = (
        lambda: client.api("model_info", MODEL, revision="nowhere"),
        lambda: client.api("list_repo_tree", MODEL, revision="nowhere"),
        lambda: client.api(
            "upload_file", path_or_fileobj=b"1", path_in_repo="x.txt", repo_id=MODEL, revision="nowhere"
        ),
        lambda: download("config.json", revision="nowhere"),
    )
    for call in calls:
        with pytest.raises(ClientError) as error:
            call()
        assert (error.value.kinds[0], error.value.status) == ("RevisionNotFoundError", 404)


def test_a_commit_on_a_head_that_has_moved_is_refused(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    hub.commit(MODEL, {"other.txt": b"theirs"})
    before = hub.files(MODEL)
    with pytest.raises(ClientError) as error:
        client.api("upload_file", path_or_fileobj=b"1", path_in_repo="x.txt", repo_id=MODEL, parent_commit=model)
    assert error.value.status == 412
    assert hub.files(MODEL) == before


# --- uploads --------------------------------------------------------------------------------------------------


def test_a_folder_is_uploaded_large_files_by_lfs(hub: LoopbackHub, client: ClientProcess, folder: Path) -> None:
    hub.create_repo(MODEL)
    commit = client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    files = hub.files(MODEL)
    del files[".gitattributes"]
    assert files == FILES
    assert commit.oid == hub.repositories.by_id[MODEL].branches["main"]
    uploaded = [request for request in hub.requests if request.method == "PUT"]
    assert [request.path.rpartition("/")[2] for request in uploaded] == [hashlib.sha256(WEIGHTS).hexdigest()]


def test_a_token_goes_to_the_hub_and_never_to_the_storage(
    hub: LoopbackHub, client: ClientProcess, folder: Path, snapshot: Callable[..., Path]
) -> None:
    hub.create_repo(MODEL, private=True)
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    snapshot()
    to_storage = [request for request in hub.requests if request.server == "storage"]
    assert {request.method for request in to_storage} == {"GET", "PUT"}
    assert not any("authorization" in request.headers for request in to_storage)
    assert {request.token for request in hub.requests if "/lab/model/" in request.path and request.server == "hub"} == {
        TOKEN
    }


def test_a_file_above_the_limit_goes_by_lfs_whatever_its_name(
    hub: LoopbackHub, client: ClientProcess, folder: Path
) -> None:
    hub.create_repo(MODEL)
    hub.api.large_file_size = 3
    client.api("upload_folder", repo_id=MODEL, folder_path=folder, ignore_patterns=["README.md"])
    large = {entry.path for entry in client.api("list_repo_tree", MODEL, recursive=True) if getattr(entry, "lfs", None)}
    assert large == {"model.safetensors", "assets/tokens.txt"}


def test_an_upload_may_go_in_parts(hub: LoopbackHub, client: ClientProcess, folder: Path) -> None:
    hub.create_repo(MODEL)
    hub.api.part_size = 2000
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert [path.rpartition("/")[2] for path in asked(hub, "PUT", "storage")] == ["1", "2", "3"]
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


def test_what_is_there_is_not_uploaded_again(hub: LoopbackHub, client: ClientProcess, folder: Path, model: str) -> None:
    commit = client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert commit.oid == model
    (folder / "copy.safetensors").write_bytes(WEIGHTS)
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert hub.files(MODEL)["copy.safetensors"] == WEIGHTS
    assert asked(hub, "PUT", "storage") == []


def test_files_and_folders_are_deleted(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    client.api("delete_file", "config.json", MODEL)
    client.api("delete_folder", "assets", MODEL)
    assert set(hub.files(MODEL)) == {".gitattributes", "README.md", "model.safetensors"}
    with pytest.raises(ClientError) as error:
        client.api("delete_file", "config.json", MODEL)
    assert (error.value.status, "EntryNotFoundError" in error.value.kinds) == (404, True)


def test_a_commit_that_points_to_what_was_never_uploaded_is_refused(hub: LoopbackHub, model: str) -> None:
    before = hub.files(MODEL)
    sha256, stored = "0" * 64, hashlib.sha256(WEIGHTS).hexdigest()
    for oid, size in ((sha256, 5120), (stored, 5119)):
        answer = commit_plainly(hub, "lfsFile", path="x.bin", algo="sha256", oid=oid, size=size)
        assert answer.status == 400
        assert b"pointed to a file that does not exist" in answer.content
    assert hub.files(MODEL) == before


def test_a_path_that_leaves_the_repository_is_refused(hub: LoopbackHub, model: str) -> None:
    before = hub.files(MODEL)
    for path in ("../x", "/x", "a/../x", "a//x", ".git/config", "config.json/x"):
        assert commit_plainly(hub, "file", path=path, content="").status == 400, path
    assert hub.files(MODEL) == before


def test_a_file_that_is_too_large_for_git_is_refused_there(hub: LoopbackHub, model: str) -> None:
    hub.api.large_file_size = 10
    assert commit_plainly(hub, "file", path="x.txt", content="x" * 11).status == 400
    assert commit_plainly(hub, "file", path="x.txt", content="x" * 10).status == 200


def commit_plainly(hub: LoopbackHub, key: str, **value: Any) -> Any:
    lines = ({"key": "header", "value": {"summary": "x"}}, {"key": key, "value": value})
    body = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return http(f"{hub.endpoint}/api/models/{MODEL}/commit/main", "POST", body, Authorization=f"Bearer {TOKEN}")


def upload_plainly(hub: LoopbackHub, content: bytes) -> Any:
    """The answer of the storage to *content* where ``WEIGHTS`` were announced."""
    asked = {"objects": [{"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}], "transfers": ["basic"]}
    url = f"{hub.endpoint}/{MODEL}.git/info/lfs/objects/batch"
    answer: Any = http(url, "POST", json.dumps(asked).encode(), Authorization=f"Bearer {TOKEN}")
    return http(json.loads(answer.content)["objects"][0]["actions"]["upload"]["href"], "PUT", content)


@pytest.mark.parametrize("content", [WEIGHTS[:-1], WEIGHTS[:-1] + b"x", b""], ids=["short", "altered", "empty"])
def test_an_object_that_is_not_the_one_announced_is_refused(hub: LoopbackHub, content: bytes) -> None:
    repository = hub.create_repo(MODEL)
    assert upload_plainly(hub, content).status == 400
    assert repository.objects == {}
    assert upload_plainly(hub, WEIGHTS).status == 200
    assert list(repository.objects.values()) == [WEIGHTS]


# --- the model card -------------------------------------------------------------------------------------------


def test_a_good_card_is_taken_and_its_metadata_shown(client: ClientProcess, model: str) -> None:
    info = client.api("model_info", MODEL)
    assert (info.card_data.license, info.card_data.base_model) == ("mit", "lab/base")
    assert (info.pipeline_tag, info.tags) == ("image-text-to-text", ["vision"])


@pytest.mark.parametrize(
    ("metadata", "complaint"),
    [
        ("license: home-made", '"license" must be one of'),
        ("license: mit\nlicense_link: LICENSE", '"license_link" needs'),
        ("base_model: a model", '"base_model" with value "a model" is not valid'),
        ("base_model: a/b/c", '"base_model" with value "a/b/c" is not valid'),
        ("base_model: [a/b, '']", '"base_model" with value "" is not valid'),
        ("base_model_relation: pruned", '"base_model_relation" must be one of [adapter, merge, quantized, finetune]'),
        ("pipeline_tag: [a]", '"pipeline_tag" must be a string'),
        ("tags: llava", '"tags" must be an array'),
        ("tags: [a, 1]", '"tags[1]" must be a string'),
        ("library_name: 5", '"library_name" must be a string'),
        ("model-index: {}", '"model-index" must be an array'),
        ("license: {", "Invalid YAML"),
        ("- a", "must be an object"),
    ],
)
def test_a_bad_card_is_refused_before_anything_is_uploaded(
    hub: LoopbackHub, client: ClientProcess, folder: Path, metadata: str, complaint: str
) -> None:
    hub.create_repo(MODEL)
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
    with pytest.raises(ClientError, match="ValueError") as error:
        client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert complaint in error.value.message
    assert asked(hub, "POST") == ["/api/validate-yaml"]
    answer: Any = commit_plainly(hub, "file", path="README.md", content=f"---\n{metadata}\n---\n")
    assert (answer.status, complaint in json.loads(answer.content)["error"]) == (400, True)


@pytest.mark.skipif(not NEW_CLIENT, reason="the old client's validate() asks the public Hub whatever HF_ENDPOINT says")
def test_the_clients_own_validation_of_a_card_comes_here(client: ClientProcess, hub: LoopbackHub) -> None:
    client.call(validate_card, CARD.decode())
    with pytest.raises(ClientError, match="license"):
        client.call(validate_card, "---\nlicense: home-made\n---\n")


def test_a_card_without_metadata_or_with_an_unknown_pipeline_is_taken_with_a_warning(hub: LoopbackHub) -> None:
    for card, warning in (("# A model\n", "empty or missing yaml"), ("---\npipeline_tag: x\n---\n", "official list")):
        for content_type, body in (
            ("application/json", json.dumps({"content": card, "repoType": "model"})),
            ("application/x-www-form-urlencoded", urllib.parse.urlencode({"content": card, "repoType": "model"})),
        ):
            answer: Any = http(f"{hub.endpoint}/api/validate-yaml", "POST", body.encode(), Content_Type=content_type)
            verdict = json.loads(answer.content)
            assert (answer.status, verdict["errors"]) == (200, [])
            assert warning in verdict["warnings"][0]["message"]


# --- what lists say -------------------------------------------------------------------------------------------


def test_lists_give_sizes_hashes_and_pages(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    hub.api.page_size = 2
    tree = {entry.path: entry for entry in client.api("list_repo_tree", MODEL, recursive=True)}
    assert set(tree) == {".gitattributes", "assets", *FILES}
    assert {path: tree[path].size for path in FILES} == {path: len(content) for path, content in FILES.items()}
    weights = tree["model.safetensors"]
    assert (weights.lfs.sha256, weights.lfs.size) == (hashlib.sha256(WEIGHTS).hexdigest(), len(WEIGHTS))
    assert tree["config.json"].lfs is None
    assert tree["config.json"].blob_id == hashlib.sha1(b"blob 3\0{}\n").hexdigest()
    assert len([path for path in asked(hub, "GET") if "/tree/" in path]) == 3

    flat = [entry.path for entry in client.api("list_repo_tree", MODEL)]
    assert flat == [".gitattributes", "README.md", "assets", "config.json", "model.safetensors"]
    assert [entry.path for entry in client.api("list_repo_tree", MODEL, "assets")] == ["assets/tokens.txt"]
    with pytest.raises(ClientError) as error:
        client.api("list_repo_tree", MODEL, "nowhere")
    assert error.value.status == 404

    paths = client.api("get_paths_info", MODEL, ["assets", "config.json", "missing", "model.safetensors"], expand=True)
    assert [entry.path for entry in paths] == ["assets", "config.json", "model.safetensors"]
    assert [entry.last_commit.oid for entry in paths] == [model] * 3
    siblings = client.api("model_info", MODEL, files_metadata=True).siblings
    assert {(file.rfilename, file.size, file.blob_id) for file in siblings} == {
        (entry.path, entry.size, entry.blob_id) for entry in tree.values() if entry.path != "assets"
    }


def test_the_last_commit_of_a_file_is_the_one_that_changed_it(
    hub: LoopbackHub, client: ClientProcess, model: str
) -> None:
    later = hub.commit(MODEL, {"config.json": b"{ }\n"})
    paths = client.api("get_paths_info", MODEL, ["config.json", "README.md"], expand=True)
    assert [entry.last_commit.oid for entry in paths] == [later, model]


# --- downloads ------------------------------------------------------------------------------------------------


def test_a_snapshot_is_downloaded_once(hub: LoopbackHub, snapshot: Callable[..., Path], model: str) -> None:
    directory = snapshot()
    assert directory.name == model
    assert contents(directory) == hub.files(MODEL)
    assert (directory / "model.safetensors").resolve().name == hashlib.sha256(WEIGHTS).hexdigest()
    hub.requests.clear()
    assert snapshot() == directory
    assert [path for path in asked(hub, "GET") if "/resolve/" in path] == []
    assert asked(hub, "GET", "storage") == []


def test_of_a_snapshot_only_what_is_asked_for_is_fetched(
    hub: LoopbackHub, snapshot: Callable[..., Path], model: str
) -> None:
    assert set(contents(snapshot(allow_patterns=["*.json"]))) == {"config.json"}
    assert asked(hub, "GET", "storage") == []
    assert {path.rpartition("/")[2] for path in asked(hub, "GET") if "/resolve/" in path} == {"config.json"}


def test_older_revisions_stay(hub: LoopbackHub, download: Callable[..., Path], model: str) -> None:
    hub.commit(MODEL, {"config.json": b"{ }\n"})
    assert download("config.json").read_bytes() == b"{ }\n"
    assert download("config.json", revision=model).read_bytes() == b"{}\n"


def test_a_file_that_is_missing_is_named(download: Callable[..., Path], model: str) -> None:
    with pytest.raises(ClientError) as error:
        download("missing.json")
    assert "EntryNotFoundError" in error.value.kinds


def test_a_large_file_is_redirected_to_an_address_that_is_signed(hub: LoopbackHub, model: str) -> None:
    answer: Any = http(f"{hub.endpoint}/{MODEL}/resolve/main/model.safetensors", "HEAD")
    sha256 = hashlib.sha256(WEIGHTS).hexdigest()
    assert answer.status == 302
    assert answer.headers["X-Repo-Commit"] == model
    assert (answer.headers["X-Linked-Etag"], answer.headers["X-Linked-Size"]) == (f'"{sha256}"', str(len(WEIGHTS)))
    location = answer.headers["Location"]
    assert not location.startswith(hub.endpoint)
    assert http(location).content == WEIGHTS  # type: ignore[attr-defined]
    assert http(location.partition("?")[0]).status == 403
    assert http(location, "PUT", WEIGHTS).status == 403
    assert http(location, Authorization=f"Bearer {TOKEN}").status == 400


@pytest.mark.parametrize("name", ["model.safetensors", "README.md"])
def test_a_range_of_a_file_is_sent_alone(hub: LoopbackHub, model: str, name: str) -> None:
    url = f"{hub.endpoint}/{MODEL}/resolve/main/{name}"
    url = http(url).headers.get("Location", url)
    content, size = FILES[name], len(FILES[name])
    for asked_for, expected in (("2-5", content[2:6]), (f"{size - 3}-", content[-3:]), ("-3", content[-3:])):
        answer: Any = http(url, Range=f"bytes={asked_for}")
        assert (answer.status, answer.content) == (206, expected)
    assert http(url, Range="bytes=2-5").headers["Content-Range"] == f"bytes 2-5/{size}"
    answer = http(url, Range=f"bytes={size}-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{size}")


# --- what goes wrong ------------------------------------------------------------------------------------------

FETCH_WEIGHTS = f"/{hashlib.sha256(WEIGHTS).hexdigest()}$"


def test_a_download_that_is_cut_goes_on_where_it_was(hub: LoopbackHub, download: Callable[..., Path]) -> None:
    chunk = 10 * 2**20  # bytes that the client writes at a time; it asks again for what is left of an unfinished one
    large = bytes(2 * chunk)
    hub.create_repo(MODEL)
    hub.commit(MODEL, {"large.safetensors": large})
    hub.fail("GET", f"/{hashlib.sha256(large).hexdigest()}$", CutBody(after=chunk + 1000))
    if not NEW_CLIENT:  # it leaves the next try to its caller
        with pytest.raises(ClientError, match="Connection broken"):
            download("large.safetensors")
    assert download("large.safetensors").read_bytes() == large
    ranges = [request.headers.get("range") for request in hub.requests if request.server == "storage"]
    assert ranges == [None, f"bytes={chunk}-"]


def test_a_download_that_is_too_short_is_noticed(hub: LoopbackHub, download: Callable[..., Path], model: str) -> None:
    hub.fail("GET", FETCH_WEIGHTS, ShortenBody(1000))
    with pytest.raises(ClientError, match="Consistency check failed"):
        download("model.safetensors")


def test_a_download_that_is_altered_is_not_noticed_by_the_client(
    hub: LoopbackHub, download: Callable[..., Path], model: str
) -> None:
    fault = hub.fail("GET", FETCH_WEIGHTS, CorruptBody())
    altered = download("model.safetensors").read_bytes()
    assert fault.hits == 1
    assert (altered[:-1], altered[-1:]) == (WEIGHTS[:-1], b"\xfe")


def test_an_upload_that_is_cut_is_tried_again(hub: LoopbackHub, client: ClientProcess, folder: Path) -> None:
    hub.create_repo(MODEL)
    fault = hub.fail("PUT", FETCH_WEIGHTS, CutRequest(after=1000))
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert (fault.hits, len(asked(hub, "PUT", "storage"))) == (1, 2)
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


def test_an_upload_that_meets_a_server_error_is_tried_again(
    hub: LoopbackHub, client: ClientProcess, folder: Path
) -> None:
    hub.create_repo(MODEL)
    hub.api.part_size = 2000
    hub.fail("PUT", "/parts/.*/2$", Answer(503, {"Retry-After": "0"}))
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert [path.rpartition("/")[2] for path in asked(hub, "PUT", "storage")] == ["1", "2", "2", "3"]
    assert hub.files(MODEL)["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("status", [401, 403, 409, 413, 500, 503])
def test_a_commit_that_is_answered_with_an_error_fails_and_goes_through_again(
    hub: LoopbackHub, client: ClientProcess, folder: Path, status: int
) -> None:
    hub.create_repo(MODEL)
    before = hub.files(MODEL)
    hub.fail("POST", "/commit/main$", Answer(status, body=b'{"error": "Not now."}'))
    with pytest.raises(ClientError, match=r"Not now\.") as error:
        client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert error.value.status == status
    assert hub.files(MODEL) == before
    client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert len(asked(hub, "PUT", "storage")) == 1
    assert hub.files(MODEL) == {**before, **FILES}


def test_a_request_over_the_rate_limit_is_told_when_to_come_back(
    hub: LoopbackHub, client: ClientProcess, folder: Path
) -> None:
    hub.create_repo(MODEL)
    hub.fail("PUT", FETCH_WEIGHTS, Answer(429, {"Retry-After": "0"}))
    if NEW_CLIENT:
        client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    else:
        with pytest.raises(ClientError) as error:  # the old client gives up at once
            client.api("upload_folder", repo_id=MODEL, folder_path=folder)
        assert error.value.status == 429


def test_a_commit_whose_answer_is_lost_is_made_all_the_same(
    hub: LoopbackHub, client: ClientProcess, folder: Path
) -> None:
    hub.create_repo(MODEL)
    hub.fail("POST", "/commit/main$", LoseAnswer())
    with pytest.raises(ClientError) as error:
        client.api("upload_folder", repo_id=MODEL, folder_path=folder)
    assert error.value.kinds[0] == ("RemoteProtocolError" if NEW_CLIENT else "ConnectionError")
    assert hub.files(MODEL) == {".gitattributes": GIT_ATTRIBUTES, **FILES}


def test_an_answer_comes_late(hub: LoopbackHub, client: ClientProcess, model: str) -> None:
    fault = hub.fail("GET", f"/api/models/{MODEL}$", Delay(0.3))
    with pytest.raises(ClientError) as error:
        client.api("model_info", MODEL, timeout=0.1)
    assert error.value.kinds[0] == "ReadTimeout"
    assert fault.hits == 1
    assert client.api("model_info", MODEL, timeout=10).sha == model


def test_a_fault_hits_the_requests_it_is_set_for(hub: LoopbackHub, model: str) -> None:
    url = f"{hub.endpoint}/{MODEL}/resolve/main/"
    fault = hub.fail("GET", r"\.json$", Answer(500), skip=1, times=2)
    statuses = [http(url + name).status for name in ("README.md", *["config.json"] * 5)]
    assert statuses == [200, 200, 500, 500, 200, 200]
    assert fault.hits == 2
    hub.fail("HEAD", ".", Answer(503), times=None)
    assert [http(url + "config.json", "HEAD").status for _ in range(3)] == [503] * 3


def test_a_hub_that_is_down_comes_back_as_it_was(
    hub: LoopbackHub, client: ClientProcess, download: Callable[..., Path], model: str
) -> None:
    endpoint = hub.endpoint
    client.api("model_info", MODEL)
    hub.stop()
    try:
        with pytest.raises(ClientError) as error:
            client.api("model_info", MODEL)
    finally:
        hub.start()
    assert error.value.kinds[0] == ("ConnectError" if NEW_CLIENT else "ConnectionError")
    assert hub.endpoint == endpoint
    assert client.api("model_info", MODEL).sha == model
    assert download("model.safetensors").read_bytes() == WEIGHTS


def test_mistakes_of_the_server_are_kept(running_hub: LoopbackHub) -> None:
    running_hub.reset()
    answer: Any = http(f"{running_hub.endpoint}/api/repos/create", "POST", b"no JSON")
    assert answer.status == 500
    assert "JSONDecodeError" in running_hub.errors[0]


# --- the client with Xet --------------------------------------------------------------------------------------


def test_a_hub_that_does_not_speak_xet_is_used_without(
    hub: LoopbackHub, client: ClientProcess, folder: Path, tmp_path: Path
) -> None:
    hub.create_repo(MODEL)
    environment = environment_for(hub.endpoint, tmp_path / "hf-home")
    del environment["HF_HUB_DISABLE_XET"]  # as it is where nobody has set it
    # The new client uploads paths by Xet, whatever the Hub says.
    client.call_under(environment, upload_open_files if NEW_CLIENT else upload_folder, folder)
    assert hub.files(MODEL) == {".gitattributes": GIT_ATTRIBUTES, **FILES}
    directory = Path(client.call_under(environment, fetch_all, MODEL))
    assert contents(directory) == hub.files(MODEL)


# --- alone ----------------------------------------------------------------------------------------------------


def test_it_runs_alone() -> None:
    command = [sys.executable, "-m", "tests.hub.server", "--user", "bob", "--token", "hf_bob"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        try:
            assert process.stdout is not None
            endpoint = process.stdout.readline().strip()
            answer: Any = http(f"{endpoint}/api/whoami-v2", Authorization="Bearer hf_bob")
            assert json.loads(answer.content)["name"] == "bob"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
