"""`push_to_hub`: a patched model, its card and its results in one commit."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from bert_cluster.errors import HubError, SaveError
from bert_cluster.hub.contents import README, Contents, check_contents
from bert_cluster.hub.faults import MOVED, NETWORK_ERRORS, answer_of, explain, may_pass, retried, status_of
from bert_cluster.hub.results import ResultsLike
from bert_cluster.hub.saving import REPLACED

MAIN = "main"
MESSAGE = "Clustered attention, by bert-cluster"

Result = TypeVar("Result")


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        repo_id: with its owner.
        commit: id of the commit with these files: a new one, or the head where nothing had changed.
        url: where to see it; of the pull request where one was asked for.
        uploaded: files that were new or had changed; empty where nothing had, and then there is no new commit.
        removed: weights, plots and results of an earlier push that these do not replace.
        notes: what the card could not tell.
    """

    repo_id: str
    commit: str
    url: str
    uploaded: tuple[str, ...]
    removed: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        done = (
            f"{len(self.uploaded)} files in one commit"
            if self.uploaded or self.removed
            else "nothing had changed, nothing sent"
        )
        return "\n".join([f"{self.repo_id}: {done}: {self.url}", *(f"note: {note}" for note in self.notes)])


def push_to_hub(
    model: nn.Module,
    repo_id: str,
    tokenizer: Any = None,
    results: ResultsLike | Sequence[ResultsLike] | None = None,
    base_model: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str = MESSAGE,
    create_pr: bool = False,
    token: str | bool | None = None,
    benchmark: str | None = None,
    card: str | None = None,
) -> Pushed:
    """Push a patched model to the Hub in one commit: what `save_pretrained` writes, and nothing if it is there already.

    Model and results are checked, and everything is written to a temporary folder, before the first request. A card in the
    repository keeps what its author wrote. The commit names the head that it was made for, so a commit of somebody else in
    between is never overwritten.

    Args:
        model, tokenizer, results, base_model, benchmark: as for `save_pretrained`.
        repo_id: "owner/name", or a name under the token's user; created if it is not there.
        private: of a repository that is created; None for the owner's default. True refuses one that exists and is public.
        revision: branch; created if it is not there.
        commit_message: first line of the commit.
        create_pr: propose the change as a pull request instead.
        token: of the Hub; None for HF_TOKEN or the stored login.
        card: text of a README.md to start from where the repository has none.

    Returns:
        Repository, commit, files, and notes on what the card could not tell.

    Raises:
        NotPatchedError, UnsupportedModelError, SaveError: as for `save_pretrained`; nothing was sent.
        HubError: the Hub or the network refused after several attempts. The text says what is visible on the Hub.
    """
    check_repo_id(repo_id)
    if not commit_message.strip():
        raise SaveError("commit_message is empty. Say in a few words what the commit does.")
    contents = check_contents(model, tokenizer, results, base_model, benchmark, card, token)
    with tempfile.TemporaryDirectory(prefix="bert-cluster-") as folder:
        contents.write_files(Path(folder))
        push = Push(HfApi(token=token), repo_id, revision or MAIN, create_pr)
        try:
            return push.run(contents, Path(folder), commit_message, private)
        except SaveError as error:
            raise SaveError(f"{error} {push.visible()}") from error
        except KeyboardInterrupt as error:
            error.add_note(f"The push to {push.repo_id} was interrupted. {push.visible()}")
            raise


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        SaveError: with an example of a name.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SaveError(f"repo_id must be owner/name, or a name, got {repo_id!r}: {error}") from error


def require_login(repo_id: str, token: str | bool | None) -> None:
    """Ask the Hub who the token belongs to.

    Raises:
        HubError: nobody, or the Hub is out of reach.
    """
    api = HfApi(token=token)
    try:
        retried(api.whoami)
    except (OSError, *NETWORK_ERRORS) as error:
        raise HubError(explain(error, repo_id, api.endpoint)) from error


@dataclass
class Push:
    """One push: knows at any time what of it is visible on the Hub."""

    api: HfApi
    repo_id: str
    revision: str
    create_pr: bool
    creating: bool = field(default=False, init=False)
    created: bool = field(default=False, init=False)
    branched: bool = field(default=False, init=False)
    sending: bool = field(default=False, init=False)

    def run(self, contents: Contents, folder: Path, message: str, private: bool | None) -> Pushed:
        """Create what is missing, add the card, send what has changed."""
        try:
            return self._run(contents, folder, message, private)
        except BaseException:
            if self.branched and not self.sending:
                with suppress(Exception):
                    self.api.delete_branch(self.repo_id, branch=self.revision)
            raise

    def _run(self, contents: Contents, folder: Path, message: str, private: bool | None) -> Pushed:
        self._open_repository(private)
        head = self._head()
        files = self._files(head)
        existing = self._existing_card(head) if README in files else None
        shown = None if self.revision == MAIN or self.create_pr else self.revision
        notes = tuple(contents.write_card(folder, existing, self.repo_id, shown))
        wanted = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        changed = {name: path for name, path in wanted.items() if not _same(path, files.get(name))}
        stale = tuple(name for name in files if name not in wanted and REPLACED.fullmatch(name))
        if not changed and not stale:
            return Pushed(self.repo_id, head, self._url(head), (), (), notes)
        commit, url = self._commit(head, changed, stale, message)
        return Pushed(self.repo_id, commit, url, tuple(changed), stale, notes)

    def visible(self) -> str:
        """One sentence on what this push has changed on the Hub so far."""
        place = f"{self.api.endpoint}/{self.repo_id}"
        if self.sending:
            return f"Whether the commit arrived can be seen at {place}: it is there whole or not at all, and pushing again sends what is missing."
        if self.creating:
            return f"Whether the repository was created can be seen at {self.api.endpoint}: if it was, it is empty."
        if self.created:
            return f"The repository {place} exists now and is empty."
        return "Nothing was changed on the Hub."

    def _open_repository(self, private: bool | None) -> None:
        known = self._known()
        if known is None:
            self.repo_id = self._create(private)
            known = self._known()
            self.created = known is not None and [each.rfilename for each in known.siblings or []] in (
                [],
                [".gitattributes"],
            )
        if private and known is not None and not known.private:
            raise HubError(
                f"{self.repo_id} exists and is public, and private=True makes only new repositories private. Change its "
                f"visibility in its settings, or leave private out. {self.visible()}"
            )

    def _create(self, private: bool | None) -> str:
        """Make the repository; its full name."""
        self.creating = True
        try:
            name = retried(lambda: self.api.create_repo(self.repo_id, private=private, exist_ok=True)).repo_id
        except (OSError, *NETWORK_ERRORS) as error:
            self.creating = may_pass(error)  # else it was refused
            raise self._told(error) from error
        self.creating = False
        return name

    def _known(self) -> Any:
        """The repository, None where there is none that the token sees; its full name is in it."""
        if "/" not in self.repo_id:
            return None
        try:
            return retried(lambda: self.api.repo_info(self.repo_id))
        except HfHubHTTPError as error:
            if status_of(error) in (401, 403, 404):
                return None  # creating it tells why, or helps
            raise self._told(error) from error
        except NETWORK_ERRORS as error:
            raise self._told(error) from error

    def _head(self) -> str:
        """The commit that the branch points at; the branch is made if there is none."""
        try:
            return retried(self._read_head)
        except RevisionNotFoundError as error:
            if self.create_pr:
                raise self._told(error) from error
        except NETWORK_ERRORS as error:
            raise self._told(error) from error
        self._ask(lambda: self.api.create_branch(self.repo_id, branch=self.revision, exist_ok=True))
        self.branched = True
        return self._ask(self._read_head)

    def _read_head(self) -> str:
        info = self.api.repo_info(self.repo_id, revision=self.revision)
        assert info.sha is not None, "a revision has a commit"
        return info.sha

    def _files(self, commit: str) -> dict[str, RepoFile]:
        entries = self._ask(lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)))
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def _existing_card(self, commit: str) -> str | None:
        try:
            path = self._ask(lambda: self.api.hf_hub_download(self.repo_id, README, revision=commit))
            return Path(path).read_text(encoding="utf-8")
        except RemoteEntryNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise SaveError(
                f"The README.md in {self.repo_id} is not UTF-8 text: {error}. Repair or remove it."
            ) from error

    def _commit(self, head: str, changed: Mapping[str, Path], stale: Sequence[str], message: str) -> tuple[str, str]:
        pulls = self._ask(self._pull_requests) if self.create_pr else {}

        def send() -> tuple[str, str]:
            self.sending = True
            made = self.api.create_commit(
                self.repo_id,
                [
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in changed.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=head,
            )
            return made.oid, made.pr_url or made.commit_url

        def landed() -> tuple[str, str] | None:
            """The commit whose answer was lost, recognised by its files."""
            if self.create_pr:
                new = [(sha, ref) for ref, sha in self._ask(self._pull_requests).items() if ref not in pulls]
                found = next(((sha, ref) for sha, ref in new if self._holds(sha, changed, stale)), None)
                self.sending = False
                return None if found is None else (found[0], f"{self._url()}/discussions/{found[1].split('/')[-1]}")
            now = self._ask(self._read_head)
            arrived = now != head and self._holds(now, changed, stale)
            self.sending = False
            if now == head or arrived:
                return (now, self._url(now)) if arrived else None
            raise HubError(
                f"{self.repo_id} has moved: somebody else committed while this push ran. Nothing of this push is visible. Push again."
            )

        try:
            sent = retried(send, landed)
        except (OSError, RuntimeError, ValueError, *NETWORK_ERRORS) as error:
            if isinstance(error, HubError):
                raise
            if status_of(error) in MOVED and (arrived := self._arrived(landed)) is not None:
                return arrived  # the client repeated a commit that had arrived
            if not may_pass(error):
                self.sending = False  # refused
            raise self._told(error) from error
        self.sending = False
        return sent

    def _arrived(self, landed: Callable[[], Result | None]) -> Result | None:
        with suppress(HubError):
            return landed()
        return None

    def _pull_requests(self) -> dict[str, str]:
        refs = self.api.list_repo_refs(self.repo_id, include_pull_requests=True)
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def _holds(self, commit: str, changed: Mapping[str, Path], stale: Sequence[str]) -> bool:
        files = self._files(commit)
        return all(_same(path, files.get(name)) for name, path in changed.items()) and not set(stale) & set(files)

    def _url(self, commit: str | None = None) -> str:
        place = f"{self.api.endpoint}/{self.repo_id}"
        return place if commit is None else f"{place}/commit/{commit}"

    def _ask(self, call: Callable[[], Result]) -> Result:
        try:
            return retried(call)
        except RemoteEntryNotFoundError:
            raise
        except NETWORK_ERRORS as error:
            raise self._told(error) from error
        except OSError as error:
            if answer_of(error) is None and not may_pass(error):
                raise  # of this machine, not of the network
            raise self._told(error) from error

    def _told(self, error: BaseException) -> HubError:
        return HubError(f"{explain(error, self.repo_id, self.api.endpoint)} {self.visible()}")


def _same(path: Path, there: RepoFile | None) -> bool:
    """Whether the repository's file has the content of this one."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is not None:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id
