"""Uploads the files of a conversion to the Hub in one commit, and compares what arrived with them."""

from __future__ import annotations

import hashlib
import logging
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import CONFIG_FILE, read_json_object
from ..checkpoint.families import find_family
from ..checkpoint.files import GIT_ATTRIBUTES_FILE
from ..checkpoint.loader_names import check_loader_name
from ..checkpoint.sidecars import perhaps_private
from ..disk import sha256_of
from ..errors import HubError, StorageError, UsageError, printable, reading
from ..version import __version__
from .client import hub_client
from .failures import hub_failures
from .names import check_branch, check_repo_id
from .outgoing import Outgoing, read_outgoing

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.hf_api import RepoFile

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushReport:
    """The Hub holds *outgoing* at *commit* of *repo_id*; *url* is that of the commit or of the pull request.

    *is_new* is False where the Hub held it before, and nothing was done.
    """

    outgoing: Outgoing
    repo_id: str
    commit: str
    url: str
    is_new: bool

    def to_json(self) -> dict[str, Any]:
        """The push for a script."""
        place = {"repo_id": self.repo_id, "commit": self.commit, "url": self.url, "is_new": self.is_new}
        return place | self.outgoing.to_json()

    def to_text(self) -> str:
        """The push for a person."""
        what = f"{len(self.outgoing.files)} files, {self.outgoing.num_bytes:,} bytes"
        state = "on the Hub as the manifest states them" if self.is_new else "were on the Hub already, nothing was done"
        return f"{what}: {state}\npushed: {printable(self.url)}"


@dataclass(frozen=True)
class _Head:
    """The *commit* of a revision, and its *files*."""

    commit: str
    files: dict[str, RepoFile]


def check_access(repo_id: str) -> None:
    """Ask the Hub whether the user may write to *repo_id*, before work that takes long.

    Raises:
        UsageError: *repo_id* is not the name of a repository.
        HubError: there is no token, it may not write there, or the Hub cannot be reached.
    """
    check_repo_id(repo_id)
    with hub_client(progress=False, then="nothing was written") as hub, hub_failures(repo_id):
        _require_token(repo_id)
        me = hub.whoami()
    token = (me.get("auth") or {}).get("accessToken") or {}
    roles = {me["name"]: "admin"} | {org["name"]: org.get("roleInOrg") for org in me.get("orgs", ())}
    organisation = repo_id.partition("/")[0]
    if token.get("role") == "read":
        raise HubError(f"{repo_id}: your token may only read; use one of role write")
    if organisation not in roles:
        raise HubError(
            f"{repo_id}: your token is {me['name']}'s, who is not in {organisation}; push to {me['name']}/..."
        )
    if roles[organisation] == "read":
        raise HubError(f"{repo_id}: {me['name']} may only read in {organisation}; push to {me['name']}/...")


def plan_push(
    directory: Path | str,
    repo_id: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    progress: bool = False,
) -> Outgoing:
    """What :func:`push` would send, without a request to the Hub; it raises the same errors."""
    check_repo_id(repo_id)
    if revision is not None:
        check_branch(revision)
    outgoing = read_outgoing(Path(directory), progress=progress)
    for name in outgoing.strays:
        _log.warning("%s: stays behind, the conversion did not write it", outgoing.directory / name)
    private = perhaps_private(outgoing.files)
    if private:
        _log.warning("%s: %s will be on the Hub; convert again without what is private", outgoing.directory, private)
    _advise_on_name(outgoing.directory, repo_id)
    if revision in (None, "main") and not create_pr and outgoing.source.partition("@")[0] == repo_id:
        raise UsageError(
            f"{repo_id}: is what {directory} was converted from; push to another repository, or with `revision` or "
            "`create_pr=True`"
        )
    return outgoing


def push(
    directory: Path | str,
    repo_id: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    message: str | None = None,
    progress: bool = False,
) -> PushReport:
    """Upload the conversion in *directory* to the repository *repo_id* in one commit, and check it there.

    A missing repository is created, *private* or public, and so is the branch *revision*. With *create_pr*, the commit
    is a pull request. *message* is the commit message.

    Raises:
        UsageError: *repo_id* or *revision* is no valid name, or *directory* is not what a conversion wrote.
        CheckpointError, StorageError: as in :func:`~s4convert.hub.outgoing.read_outgoing`.
        HubError: the Hub refused, holds other files there, or what arrived differs from what was sent.
    """
    outgoing = plan_push(directory, repo_id, revision=revision, create_pr=create_pr, progress=progress)
    directory = outgoing.directory
    kept = f"{directory} is whole"
    again = f"run again: {push_command(directory, repo_id, private, revision, create_pr)}"
    with (
        hub_client(progress=progress, then=f"{kept}; {again}") as hub,
        hub_failures(_place(repo_id, revision), kept=kept, again=again),
    ):
        _require_token(repo_id)
        head, is_new = _prepare(hub, outgoing, repo_id, private, revision, create_pr)
        if _difference(outgoing, head) is None:
            return PushReport(outgoing, repo_id, head.commit, f"{hub.endpoint}/{repo_id}/tree/{head.commit}", is_new)
        made = hub.create_commit(
            repo_id,
            [_addition(directory, name, *digest) for name, digest in outgoing.files.items()],
            commit_message=message or f"Upload a checkpoint that s4convert {__version__} wrote",
            revision=revision,
            create_pr=create_pr,
            parent_commit=head.commit,
        )
        difference = _difference(outgoing, _read_head(hub, repo_id, made.oid))
        if difference is not None:
            raise HubError(f"{repo_id}@{made.oid}: {difference}; {kept}; {again}")
    url = str(made.pr_url if create_pr and made.pr_url else made.commit_url)
    return PushReport(outgoing, repo_id, made.oid, url, True)


def _addition(directory: Path, name: str, size: int, sha256: str) -> CommitOperationAdd:
    """The file *name* of a commit, with the hash that is known of it: made from its path, it would hash it again."""
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.lfs import UploadInfo

    path = directory / name
    with path.open("rb") as file:
        info = UploadInfo(size=size, sample=file.read(512), sha256=bytes.fromhex(sha256))
    addition = CommitOperationAdd(name, b"")
    addition.path_or_fileobj, addition.upload_info = str(path), info
    return addition


def _require_token(repo_id: str) -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise HubError(f"{repo_id}: pushing needs a token; set HF_TOKEN or run hf auth login")


def push_command(
    directory: Path, repo_id: str, private: bool = False, revision: str | None = None, create_pr: bool = False
) -> str:
    """The command line that pushes *directory* again."""
    options = [*(["--private"] if private else []), *([] if revision is None else ["--revision", revision])]
    return shlex.join(["s4convert", "push", str(directory), repo_id, *options, *(["--create-pr"] if create_pr else [])])


def _prepare(
    hub: HfApi, outgoing: Outgoing, repo_id: str, private: bool, revision: str | None, create_pr: bool
) -> tuple[_Head, bool]:
    """(the parent of the commit, whether its branch is new); creates repository and branch where they are missing."""
    from huggingface_hub.utils import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = hub.model_info(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        hub.create_repo(repo_id, private=private, exist_ok=True)
        info = hub.model_info(repo_id)
    if private and not info.private:
        raise HubError(f"{repo_id}: exists and is public; make it private in its settings, or leave `private` out")
    try:
        head = _read_head(hub, repo_id, revision)
    except RevisionNotFoundError:
        if revision is None or create_pr:
            raise
        head = _read_head(hub, repo_id, None)
        _refuse_other_files(outgoing, head, f"{repo_id} (where the branch {revision} would begin)")
        hub.create_branch(repo_id, branch=revision, revision=head.commit, exist_ok=True)
        return _read_head(hub, repo_id, revision), True
    _refuse_other_files(outgoing, head, _place(repo_id, revision))
    return head, False


def _read_head(hub: HfApi, repo_id: str, revision: str | None) -> _Head:
    from huggingface_hub.hf_api import RepoFile

    commit = hub.model_info(repo_id, revision=revision).sha or ""
    entries = hub.list_repo_tree(repo_id, recursive=True, revision=commit)
    return _Head(commit, {entry.path: entry for entry in entries if isinstance(entry, RepoFile)})


def _refuse_other_files(outgoing: Outgoing, head: _Head, where: str) -> None:
    others = sorted(head.files.keys() - outgoing.files.keys() - {GIT_ATTRIBUTES_FILE})
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise HubError(
            f"{where}: holds {others[0]}{more}, which is not of this conversion and might be loaded in its place; "
            "push to another repository, or remove it there"
        )


def _difference(outgoing: Outgoing, head: _Head) -> str | None:
    """The first difference of the files at *head* from *outgoing*, or None."""
    for name, (size, sha256) in outgoing.files.items():
        if name not in head.files:
            return f"{name} is not there"
        remote = head.files[name]
        if (remote.size if remote.lfs is None else remote.lfs.size) != size:
            return f"{name} has {remote.size:,} bytes, not {size:,}"
        if remote.lfs is None and remote.blob_id != _git_hash(outgoing.directory / name, sha256):
            return f"{name} is another blob, {remote.blob_id}"
        if remote.lfs is not None and remote.lfs.sha256 != sha256:
            return f"{name} has the sha256 {remote.lfs.sha256}, not {sha256}"
    others = head.files.keys() - outgoing.files.keys() - {GIT_ATTRIBUTES_FILE}
    return f"{min(others)} is there as well" if others else None


def _git_hash(path: Path, sha256: str) -> str:
    """The git hash of the file *path*, which is small: large files are in LFS."""
    with reading(path):
        if sha256_of(path) != sha256:
            raise StorageError(f"{path}: changed during the push; run again when it is at rest")
        content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _advise_on_name(directory: Path, repo_id: str) -> None:
    """Log a warning where stock LLaVA, which decides by names, would load the repository as another class."""
    config = directory / CONFIG_FILE
    try:
        check_loader_name(find_family(read_json_object(config), str(config)), directory, Path(repo_id))
    except UsageError as error:
        _log.warning("%s", str(error).replace("directory's name", "name").partition(", or insist")[0])


def _place(repo_id: str, revision: str | None) -> str:
    return repo_id if revision is None else f"{repo_id}@{revision}"
