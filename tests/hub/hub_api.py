"""The Hub's HTTP API, as far as huggingface_hub uses it for models: each route a few lines on the repositories."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlencode

import yaml

from tests.hub.card_metadata import check_card, metadata_of
from tests.hub.messages import RefusalError, Request, Response, of_range
from tests.hub.object_storage import ObjectStorage
from tests.hub.repositories import (
    LARGE_FILE_SIZE,
    REPOSITORY_ID,
    Commit,
    LargeFile,
    Repositories,
    Repository,
    RevisionNotFoundError,
    StoredFile,
    User,
    goes_by_lfs,
)

Route = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []

REPOSITORY = r"(?P<id>[^/]+/[^/]+)"
MODEL = rf"/api/models/{REPOSITORY}"
REVISION = r"(?P<revision>[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    """Let a method of :class:`HubApi` answer requests to paths of *pattern*, whose groups become its arguments."""

    def register(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return register


class HubApi:
    """Answers requests to the Hub from *repositories*.

    Files of more than *large_file_size* bytes go by LFS, objects of more than *part_size* bytes in parts of that size,
    and lists come in pages of *page_size*.
    """

    def __init__(self, repositories: Repositories, storage: ObjectStorage) -> None:
        self.endpoint = ""
        self.repositories = repositories
        self.storage = storage
        self.large_file_size = LARGE_FILE_SIZE
        self.part_size = 5 * 10**9
        self.page_size = 1000

    def answer(self, request: Request) -> Response:
        """What the Hub answers; :class:`RefusalError` where it refuses."""
        method = "GET" if request.method == "HEAD" else request.method
        for known, pattern, function in ROUTES:
            if known == method and (match := pattern.fullmatch(request.path)):
                arguments = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                if (old := arguments.get("id")) in self.repositories.moved:
                    return self._moved(request, old)
                try:
                    return function(self, request, **arguments)
                except RevisionNotFoundError as error:
                    raise RefusalError(404, f"Invalid rev id: {error}", "RevisionNotFound") from error
        if unknown := re.match(r"/api/(models|datasets|spaces)/([^/]+(/[^/]+)?)|/[^/]+/resolve/", request.path):
            self._visible(request, unknown[2] if unknown[1] == "models" else "")
        raise RefusalError(404, "Sorry, we can't find the page you are looking for.")

    def _moved(self, request: Request, old: str) -> Response:
        path = request.path.replace(f"/{old}", f"/{self.repositories.moved[old]}", 1)
        query = f"?{urlencode(request.query)}" if request.query else ""
        return Response(307, {"Location": path + query})

    # --- who may do what -----------------------------------------------------------------------------------------

    def _user(self, request: Request) -> User | None:
        if request.token is None:
            return None
        if request.token not in self.repositories.users:
            raise RefusalError(401, "Invalid credentials in Authorization header", headers=AUTHENTICATE)
        return self.repositories.users[request.token]

    def _signed_in(self, request: Request) -> User:
        user = self._user(request)
        if user is None:
            raise RefusalError(401, "Invalid username or password.", headers=AUTHENTICATE)
        return user

    def _visible(self, request: Request, id: str) -> Repository:  # noqa: A002
        """The repository; one that is private to others is answered as one that does not exist."""
        user = self._user(request)
        repository = self.repositories.by_id.get(id)
        if repository is None or (
            repository.private and not (user is not None and user.belongs_to(repository.namespace))
        ):
            if user is None:
                raise RefusalError(401, "Repository not found", "RepoNotFound", AUTHENTICATE)
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        return repository

    def _readable(self, request: Request, id: str) -> Repository:  # noqa: A002
        """The repository, its files included: a gate stands before those alone."""
        repository, user = self._visible(request, id), self._user(request)
        if not repository.gated:
            return repository
        if user is None:
            raise RefusalError(
                401,
                f"Access to model {id} is restricted. You must have access to it and be authenticated to access it. "
                "Please log in.",
                "GatedRepo",
                AUTHENTICATE,
            )
        if not user.belongs_to(repository.namespace) and user.name not in repository.granted:
            raise RefusalError(
                403,
                f"Access to model {id} is restricted and you are not in the authorized list. "
                f"Visit {self.endpoint}/{id} to ask for access.",
                "GatedRepo",
            )
        return repository

    def _writable(self, request: Request, id: str, *, create_pr: bool = False) -> Repository:  # noqa: A002
        repository, user = self._visible(request, id), self._signed_in(request)
        if not user.can_write:
            raise RefusalError(403, "Authorization error.")
        if not create_pr and not user.belongs_to(repository.namespace):
            raise RefusalError(403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")
        return repository

    def _owned(self, request: Request, namespace: str) -> User:
        user = self._signed_in(request)
        if not user.can_write or not user.belongs_to(namespace):
            raise RefusalError(403, f'You don\'t have the rights to create a model under the namespace "{namespace}"')
        return user

    # --- accounts ------------------------------------------------------------------------------------------------

    @route("GET", r"/api/whoami-v2")
    def whoami(self, request: Request) -> Response:
        user = self._signed_in(request)
        role = "write" if user.can_write else "read"
        return Response.of_json(
            {
                "type": "user",
                "id": hashlib.md5(user.name.encode()).hexdigest()[:24],
                "name": user.name,
                "fullname": user.name,
                "isPro": False,
                "orgs": [{"type": "org", "name": name, "roleInOrg": role} for name in user.organisations],
                "auth": {"type": "access_token", "accessToken": {"displayName": "token", "role": role}},
            }
        )

    # --- repositories --------------------------------------------------------------------------------------------

    @route("POST", r"/api/repos/create")
    def create_repo(self, request: Request) -> Response:
        asked = request.json()
        user = self._signed_in(request)
        id_ = f"{asked.get('organization') or user.name}/{asked['name']}"
        if asked.get("type") not in (None, "model"):
            raise RefusalError(400, "only repositories of models are kept here")
        if not REPOSITORY_ID.fullmatch(id_) or "--" in id_ or ".." in id_:
            raise RefusalError(400, f'"name" with value "{asked["name"]}" is not valid')
        self._owned(request, id_.split("/")[0])
        if id_ in self.repositories.by_id:
            message = "You already created this model repo"
            return Response.of_json(
                {"error": message, "url": f"{self.endpoint}/{id_}"}, 409, {"X-Error-Message": message}
            )
        repository = self.repositories.create(id_, private=_is_private(asked))
        return Response.of_json(
            {"url": f"{self.endpoint}/{id_}", "name": id_, "id": id_, "private": repository.private}
        )

    @route("DELETE", r"/api/repos/delete")
    def delete_repo(self, request: Request) -> Response:
        asked = request.json()
        id_ = f"{asked.get('organization') or self._signed_in(request).name}/{asked['name']}"
        repository = self._visible(request, id_)
        self._owned(request, repository.namespace)
        del self.repositories.by_id[id_]
        return Response.of_json({})

    @route("POST", r"/api/repos/move")
    def move_repo(self, request: Request) -> Response:
        asked = request.json()
        repository = self._visible(request, asked["fromRepo"])
        for id_ in (repository.id, asked["toRepo"]):
            self._owned(request, id_.split("/")[0])
        if asked["toRepo"] in self.repositories.by_id:
            raise RefusalError(409, f"A repository named {asked['toRepo']} exists already")
        self.repositories.move(repository, asked["toRepo"])
        return Response.of_json({})

    @route("PUT", rf"{MODEL}/settings")
    def update_settings(self, request: Request, id: str) -> Response:  # noqa: A002
        repository, asked = self._writable(request, id), request.json()
        if asked.keys() & {"private", "visibility"}:
            repository.private = _is_private(asked)
        if "gated" in asked:
            repository.gated = bool(asked["gated"])
        return Response.of_json({"private": repository.private, "gated": repository.gated})

    @route("GET", rf"{MODEL}/auth-check(?P<write>/write)?")
    def auth_check(self, request: Request, id: str, write: str = "") -> Response:  # noqa: A002
        self._readable(request, id)
        if write:
            self._writable(request, id)
        return Response.of_json({})

    @route("GET", rf"{MODEL}(/revision/{REVISION})?")
    def model_info(self, request: Request, id: str, revision: str = "main") -> Response:  # noqa: A002
        repository = self._visible(request, id)
        commit = repository.resolve(revision)
        card = commit.files.get("README.md")
        try:
            card_data = metadata_of(repository.content(card).decode()) if card else None
        except yaml.YAMLError:
            card_data = None
        if not isinstance(card_data, dict):
            card_data = {}
        blobs = request.query.get("blobs", "").lower() in ("true", "1")
        return Response.of_json(
            {
                "_id": hashlib.md5(repository.id.encode()).hexdigest()[:24],
                "id": repository.id,
                "modelId": repository.id,
                "author": repository.namespace,
                "sha": commit.oid,
                "private": repository.private,
                "gated": "manual" if repository.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "createdAt": _date(repository.created),
                "lastModified": _date(commit.date),
                "tags": card_data.get("tags", []),
                "siblings": [_sibling(path, file, blobs) for path, file in commit.files.items()],
                **({"cardData": card_data} if card_data else {}),
                **{key: card_data[key] for key in ("pipeline_tag", "library_name") if key in card_data},
            }
        )

    # --- references ----------------------------------------------------------------------------------------------

    @route("GET", rf"{MODEL}/refs")
    def list_refs(self, request: Request, id: str) -> Response:  # noqa: A002
        repository = self._visible(request, id)
        kinds: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
        names = {"heads": "branches", "tags": "tags", "pr": "pullRequests"}
        for ref, oid in repository.references():
            _, kind, name = ref.split("/", 2)
            kinds[names[kind]].append({"name": name, "ref": ref, "targetCommit": oid})
        if "include_prs" not in request.query:
            del kinds["pullRequests"]
        return Response.of_json(kinds)

    @route("POST", rf"{MODEL}/branch/(?P<branch>[^/]+)")
    def create_branch(self, request: Request, id: str, branch: str) -> Response:  # noqa: A002
        repository = self._writable(request, id)
        start = repository.resolve(request.json().get("startingPoint", "main"))
        if branch in repository.branches:
            raise RefusalError(409, f"Reference already exists: refs/heads/{branch}")
        repository.branches[branch] = start.oid
        return Response.of_json({})

    @route("DELETE", rf"{MODEL}/branch/(?P<branch>[^/]+)")
    def delete_branch(self, request: Request, id: str, branch: str) -> Response:  # noqa: A002
        repository = self._writable(request, id)
        if branch not in repository.branches:
            raise RevisionNotFoundError(branch)
        if branch == "main":
            raise RefusalError(403, "Cannot delete the main branch")
        del repository.branches[branch]
        return Response.of_json({})

    @route("POST", rf"{MODEL}/tag/{REVISION}")
    def create_tag(self, request: Request, id: str, revision: str) -> Response:  # noqa: A002
        repository, tag = self._writable(request, id), request.json()["tag"]
        target = repository.resolve(revision)
        if tag in repository.tags:
            raise RefusalError(409, f"Reference already exists: refs/tags/{tag}")
        repository.tags[tag] = target.oid
        return Response.of_json({})

    @route("GET", rf"{MODEL}/commits/{REVISION}")
    def list_commits(self, request: Request, id: str, revision: str) -> Response:  # noqa: A002
        repository = self._visible(request, id)
        commits = [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.description,
                "date": _date(commit.date),
                "authors": [{"user": commit.author}],
            }
            for commit in repository.history(repository.resolve(revision))
        ]
        return self._page(request, commits)

    # --- files ---------------------------------------------------------------------------------------------------

    @route("GET", rf"{MODEL}/tree/{REVISION}(/(?P<path>.+))?")
    def list_tree(self, request: Request, id: str, revision: str, path: str = "") -> Response:  # noqa: A002
        repository = self._visible(request, id)
        commit = repository.resolve(revision)
        if path not in commit.trees:
            raise RefusalError(404, f'"{path}" does not exist on "{revision}"', "EntryNotFound")
        recursive, expand = (request.query.get(key, "").lower() in ("true", "1") for key in ("recursive", "expand"))
        inside = f"{path}/" if path else ""
        paths = [
            entry
            for entry in sorted({*commit.files, *commit.trees} - {""})
            if entry.startswith(inside) and entry != path and (recursive or "/" not in entry[len(inside) :])
        ]
        return self._page(request, [_entry(repository, commit, entry, expand) for entry in paths])

    @route("POST", rf"{MODEL}/paths-info/{REVISION}")
    def paths_info(self, request: Request, id: str, revision: str) -> Response:  # noqa: A002
        repository = self._visible(request, id)
        commit, fields = repository.resolve(revision), request.fields()
        expand = str(fields.get("expand", [False])[0]).lower() in ("true", "1")
        paths = (path.strip("/") for path in fields.get("paths", []))
        known = [path for path in paths if path in commit.files or path in commit.trees]
        return Response.of_json([_entry(repository, commit, path, expand) for path in known])

    @route("GET", rf"/{REPOSITORY}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, id: str, revision: str, path: str) -> Response:  # noqa: A002
        repository = self._readable(request, id)
        commit = repository.resolve(revision)
        file = commit.files.get(path)
        headers = {"X-Repo-Commit": commit.oid}
        if file is None:
            raise RefusalError(404, "Entry not found", "EntryNotFound", headers)
        if file.large is None:
            headers |= {"ETag": f'"{file.oid}"', "Content-Type": "text/plain; charset=utf-8"}
            headers["Content-Disposition"] = f'inline; filename="{quote(PurePosixPath(path).name)}"'
            return of_range(request, file.blob, headers)
        linked = {"X-Linked-Size": str(file.size), "X-Linked-ETag": f'"{file.large.sha256}"'}
        location = self.storage.download_address(repository, file.large)
        return Response(302, {**headers, **linked, "Accept-Ranges": "bytes", "Location": location})

    # --- uploads -------------------------------------------------------------------------------------------------

    @route("POST", rf"{MODEL}/preupload/{REVISION}")
    def preupload(self, request: Request, id: str, revision: str) -> Response:  # noqa: A002
        repository = self._writable(request, id, create_pr="create_pr" in request.query)
        commit = repository.resolve(revision)
        files = []
        for asked in request.json()["files"]:
            present = commit.files.get(asked["path"])
            large = goes_by_lfs(asked["path"], asked["size"], commit, self.large_file_size)
            files.append(
                {
                    "path": asked["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    **({"oid": present.etag} if present else {}),
                }
            )
        return Response.of_json({"files": files, "commitOid": commit.oid})

    @route("POST", rf"/{REPOSITORY}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, id: str) -> Response:  # noqa: A002
        repository = self._writable(request, id, create_pr=True)
        asked = request.json()
        large = [LargeFile(each["oid"], each["size"]) for each in asked["objects"]]
        in_parts = "multipart" in asked["transfers"] and any(each.size > self.part_size for each in large)
        return Response.of_json(
            {
                "transfer": "multipart" if in_parts else "basic",
                "objects": [self._upload_actions(repository, each) for each in large],
            }
        )

    def _upload_actions(self, repository: Repository, large: LargeFile) -> dict[str, Any]:
        answer: dict[str, Any] = {"oid": large.sha256, "size": large.size, "authenticated": True}
        if large.sha256 in repository.objects:
            return answer
        if large.size > self.part_size:
            id_, parts = self.storage.begin_multipart(repository, large, self.part_size)
            upload = {
                "href": f"{self.endpoint}/api/complete_multipart?upload={id_}",
                "header": {"chunk_size": str(self.part_size), **parts},
            }
        else:
            upload = {"href": self.storage.upload_address(repository, large)}
        verify = {"href": f"{self.endpoint}/{repository.id}.git/info/lfs/verify"}
        return {**answer, "actions": {"upload": upload, "verify": verify}}

    @route("POST", r"/api/complete_multipart")
    def complete_multipart(self, request: Request) -> Response:
        self.storage.complete_multipart(request.query["upload"], request.json()["parts"])
        return Response.of_json({"success": True})

    @route("POST", rf"/{REPOSITORY}\.git/info/lfs/verify")
    def lfs_verify(self, request: Request, id: str) -> Response:  # noqa: A002
        repository, asked = self._writable(request, id, create_pr=True), request.json()
        content = repository.objects.get(asked["oid"])
        if content is None or len(content) != asked["size"]:
            raise RefusalError(404, "The object has not been uploaded, or has another size")
        return Response.of_json({})

    @route("POST", r"/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Response:
        verdict = check_card(request.fields()["content"][0])
        return Response.of_json(verdict.to_json(), 400 if verdict.errors else 200)

    @route("POST", rf"{MODEL}/commit/{REVISION}")
    def commit(self, request: Request, id: str, revision: str) -> Response:  # noqa: A002
        create_pr = "create_pr" in request.query
        repository = self._writable(request, id, create_pr=create_pr)
        head = repository.resolve(revision)
        header, *operations = [json.loads(line) for line in request.body.splitlines() if line.strip()]
        if header["key"] != "header" or not header["value"].get("summary"):
            raise RefusalError(400, '"summary" is required')
        if header["value"].get("parentCommit", head.oid) != head.oid:
            raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            self._apply(repository, files, operation["key"], operation["value"])
        self._check_files(repository, head, files)
        author = self._signed_in(request).name
        summary, description = header["value"]["summary"], header["value"].get("description", "")
        commit = repository.add(files, head.oid, author, summary, description)
        answer = {
            "success": True,
            "commitOid": commit.oid,
            "commitUrl": f"{self.endpoint}/{repository.id}/commit/{commit.oid}",
            "hookOutput": "",
        }
        if create_pr:
            number = len(repository.pull_requests) + 1
            repository.pull_requests[number] = commit.oid
            answer["pullRequestUrl"] = f"{self.endpoint}/{repository.id}/discussions/{number}"
        else:
            repository.advance(revision, commit.oid)
        return Response.of_json(answer)

    def _apply(self, repository: Repository, files: dict[str, StoredFile], key: str, value: dict[str, Any]) -> None:
        """Carry out one line of a commit's body on *files*."""
        path = value["path"]
        if key == "file":
            _check_path(path)
            content = value["content"]
            blob = base64.b64decode(content) if value.get("encoding") == "base64" else content.encode()
            files[path] = StoredFile(blob)
        elif key == "lfsFile":
            _check_path(path)
            content = repository.objects.get(value["oid"])
            if content is None or value.get("size", len(content)) != len(content):
                raise RefusalError(
                    400,
                    "Your push was rejected because an LFS pointer pointed to a file that does not exist. "
                    f"Offending file: {path}",
                )
            files[path] = StoredFile.pointing_to(LargeFile(value["oid"], len(content)))
        elif key in ("deletedFile", "deletedFolder"):
            inside = f"{path.rstrip('/')}/"
            gone = [known for known in files if known == path or (key == "deletedFolder" and known.startswith(inside))]
            if not gone:
                raise RefusalError(404, "A file with this name doesn't exist", "EntryNotFound")
            for known in gone:
                del files[known]
        else:
            raise RefusalError(400, f"unknown operation: {key}")

    def _check_files(self, repository: Repository, head: Commit, files: dict[str, StoredFile]) -> None:
        """Refuse new files that the Hub does not take."""
        for path, file in files.items():
            if head.files.get(path) == file:
                continue
            if file.large is None and file.size > self.large_file_size:
                raise RefusalError(
                    400,
                    "Your push was rejected because it contains files larger than "
                    f"{self.large_file_size} bytes. Offending file: {path}",
                )
            if path == "README.md" and (errors := check_card(repository.content(file).decode()).errors):
                raise RefusalError(400, "Invalid metadata in README.md: " + "; ".join(errors))
            if any(str(folder) in files for folder in PurePosixPath(path).parents):
                raise RefusalError(400, f"{path} lies in a file")

    def _page(self, request: Request, values: list[Any]) -> Response:
        """The page of *values* that *request* asks for, with the address of the next."""
        start = int(request.query.get("cursor", 0))
        end = start + self.page_size
        headers = {}
        if end < len(values):
            query = urlencode({**request.query, "cursor": end})
            headers["Link"] = f'<{self.endpoint}{request.path}?{query}>; rel="next"'
        return Response.of_json(values[start:end], headers=headers)


AUTHENTICATE = {"WWW-Authenticate": 'Bearer realm="Authentication required", charset="UTF-8"'}


def _is_private(asked: dict[str, Any]) -> bool:
    # huggingface_hub 2.x says "visibility" where 0.x says "private".
    return asked.get("visibility") == "private" or asked.get("private") is True


def _check_path(path: str) -> None:
    parts = path.split("/")
    if not all(parts) or {".", "..", ".git"} & set(parts):
        raise RefusalError(400, f"Invalid path: {path}")


def _date(date: Any) -> str:
    return f"{date:%Y-%m-%dT%H:%M:%S}.000Z"


def _sibling(path: str, file: StoredFile, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    sibling: dict[str, Any] = {"rfilename": path, "blobId": file.oid, "size": file.size}
    if file.large:
        sibling["lfs"] = {"sha256": file.large.sha256, "size": file.large.size, "pointerSize": len(file.blob)}
    return sibling


def _entry(repository: Repository, commit: Commit, path: str, expand: bool) -> dict[str, Any]:
    """The file or folder at *path* as lists give it."""
    file = commit.files.get(path)
    if file is None:
        entry: dict[str, Any] = {"type": "directory", "oid": commit.trees[path], "size": 0, "path": path}
    else:
        entry = {"type": "file", "oid": file.oid, "size": file.size, "path": path}
        if file.large:
            entry["lfs"] = {"oid": file.large.sha256, "size": file.large.size, "pointerSize": len(file.blob)}
    if expand:
        last = repository.last_change(commit, path)
        entry["lastCommit"] = {"id": last.oid, "title": last.title, "date": _date(last.date)}
    return entry


def stored(
    repository: Repository, head: Commit, files: Iterable[tuple[str, bytes]], large_file_size: int
) -> dict[str, StoredFile]:
    """*files*, by path, as the Hub would keep them after *head*; large ones go to the repository's objects."""
    return {
        path: StoredFile.pointing_to(repository.store(content))
        if goes_by_lfs(path, len(content), head, large_file_size)
        else StoredFile(content)
        for path, content in files
    }
