"""`push_to_hub`: a patched model, its card and its results in one commit."""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.utils import HFValidationError, validate_repo_id
from torch import nn

from bert_cluster.errors import HubError, SaveError
from bert_cluster.hub.contents import README, Contents, check_contents, check_text, read_card
from bert_cluster.hub.faults import MOVED, NETWORK_ERRORS, may_pass, retried, status_of
from bert_cluster.hub.repository import Repository, is_same
from bert_cluster.hub.results import ResultsLike
from bert_cluster.hub.saving import REPLACED, refuse_other_kinds

MAIN = "main"
MESSAGE = "Clustered attention, by bert-cluster"


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
    check_text("revision", revision, MAIN)
    if not isinstance(commit_message, str) or not commit_message.strip():
        raise SaveError("commit_message is empty. Say in a few words what the commit does.")
    contents = check_contents(model, tokenizer, results, base_model, benchmark, card, token)
    with tempfile.TemporaryDirectory(prefix="bert-cluster-") as folder:
        contents.write_files(Path(folder))
        push = Push(Repository(HfApi(token=token), repo_id, revision or MAIN), contents, Path(folder), create_pr)
        try:
            return push.run(commit_message, private)
        except (HubError, SaveError) as error:
            raise type(error)(f"{error} {push.visible()}") from error
        except KeyboardInterrupt as error:
            error.add_note(f"The push to {push.repository.repo_id} was interrupted. {push.visible()}")
            raise


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository can have.

    Raises:
        SaveError: with an example of a name.
    """
    if repo_id is None:  # the Hub's own check lets it pass
        raise SaveError("repo_id must be owner/name, or a name, got None.")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise SaveError(f"repo_id must be owner/name, or a name, got {repo_id!r}: {error}") from error


def require_login(repo_id: str, token: str | bool | None) -> None:
    """Ask the Hub who the token belongs to.

    Raises:
        HubError: nobody, it can only read, or the Hub is out of reach.
    """
    api = HfApi(token=token)
    user = Repository(api, repo_id, MAIN).ask(api.whoami)
    role = (user.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise HubError(f"The token of {user['name']} can only read. Use one with the role write.")


@dataclass
class Push:
    """One push: knows at any time what of it is visible on the Hub.

    Attributes:
        folder: everything but the card, written; the card is added when that of the repository is known.
        creating, sending: a request whose outcome is not known was sent: to create the repository, to commit.
        created: the repository is new.
        branch_from: the commit that a branch was made from for this push; None where none was.
    """

    repository: Repository
    contents: Contents
    folder: Path
    create_pr: bool
    creating: bool = field(default=False, init=False)
    created: bool = field(default=False, init=False)
    sending: bool = field(default=False, init=False)
    branch_from: str | None = field(default=None, init=False)

    def run(self, message: str, private: bool | None) -> Pushed:
        """Create what is missing, add the card, send what has changed. What fails leaves no branch behind."""
        try:
            return self._run(message, private)
        except BaseException:
            if self.branch_from is not None and not self.sending:
                with suppress(Exception):
                    self._remove_branch()
            raise

    def visible(self) -> str:
        """One sentence on what this push has changed on the Hub so far."""
        place = self.repository.url
        if self.sending:
            return (
                f"Whether the commit arrived can be seen at {place}: it is there whole or not at all, and pushing again sends "
                f"what is missing."
            )
        if self.creating:
            return f"Whether the repository was created can be seen at {place}: if it was, it is empty."
        if self.branch_from is not None:
            return f"The branch {self.repository.revision} may have been made in {place}; it holds what {MAIN} does."
        if self.created:
            return f"The repository {place} exists now and is empty."
        return "Nothing was changed on the Hub."

    def _run(self, message: str, private: bool | None) -> Pushed:
        repository = self.repository
        self._open_repository(private)
        head = self._open_branch()
        files = repository.files(head)
        refuse_other_kinds(repository.repo_id, self.contents.kind, files)
        existing = read_card(repository.download(README, head)) if README in files else None
        shown = None if repository.revision == MAIN or self.create_pr else repository.revision
        notes = tuple(self.contents.write_card(self.folder, existing, repository.repo_id, shown))
        wanted = {
            path.relative_to(self.folder).as_posix(): path for path in sorted(self.folder.rglob("*")) if path.is_file()
        }
        changed = {name: path for name, path in wanted.items() if not is_same(path, files.get(name))}
        stale = tuple(name for name in files if name not in wanted and REPLACED.fullmatch(name))
        if not changed and not stale:
            return Pushed(repository.repo_id, head, f"{repository.url}/commit/{head}", (), (), notes)
        if self.create_pr:
            for reference, commit in repository.open_pull_requests().items():
                if repository.holds(commit, changed, stale):
                    return Pushed(repository.repo_id, commit, repository.pull_request_url(reference), (), (), notes)
        commit, url = self._commit(head, changed, stale, message)
        return Pushed(repository.repo_id, commit, url, tuple(changed), stale, notes)

    def _open_repository(self, private: bool | None) -> None:
        repository = self.repository
        repository.complete_name()
        known = repository.describe()
        if known is None:
            self.creating = True
            try:
                retried(lambda: repository.api.create_repo(repository.repo_id, private=private, exist_ok=True))
            except (OSError, *NETWORK_ERRORS) as error:
                self.creating = may_pass(error)  # else it was refused
                raise repository.told(error) from error
            self.creating, self.created = False, True
        elif private and not known.private:
            raise HubError(
                f"{repository.repo_id} exists and is public, and a push makes only new repositories private. Change its "
                f"visibility in its settings, or leave private out (in a command --private or --hub_private_repo)."
            )

    def _open_branch(self) -> str:
        """The commit that the branch points at; the branch is made from the main one if there is none."""
        repository = self.repository
        head = repository.head()
        if head is not None:
            return head
        if self.create_pr:
            raise HubError(
                f"{repository.repo_id} has no branch {repository.revision}, and a pull request needs one that exists. Leave revision "
                f"out for {MAIN}."
            )
        self.branch_from = dataclasses.replace(repository, revision=MAIN).head()
        tried = 0

        def make() -> None:
            nonlocal tried
            tried += 1
            repository.api.create_branch(repository.repo_id, branch=repository.revision)

        try:
            retried(make)
        except NETWORK_ERRORS as error:
            if not may_pass(error) and tried == 1:
                self.branch_from = None  # refused, or somebody else made it just now: then it is theirs
            if status_of(error) != 409:
                raise repository.told(error) from error
        head = repository.head()
        if head is None:
            raise HubError(
                f"{repository.repo_id} has no branch {repository.revision} although it was made. Push again."
            )
        return head

    def _remove_branch(self) -> None:
        """Unless somebody committed to it meanwhile."""
        repository = self.repository
        if repository.head() == self.branch_from:
            repository.api.delete_branch(repository.repo_id, branch=repository.revision)
        self.branch_from = None

    def _commit(self, head: str, changed: Mapping[str, Path], stale: Sequence[str], message: str) -> tuple[str, str]:
        """Id and address of the commit or pull request, which is made once, whatever becomes of the answers."""
        repository = self.repository
        before = set(repository.pull_requests()) if self.create_pr else set()

        def send() -> tuple[str, str]:
            self.sending = True
            made = repository.api.create_commit(
                repository.repo_id,
                [
                    *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in changed.items()),
                    *(CommitOperationDelete(path_in_repo=name) for name in stale),
                ],
                commit_message=message,
                revision=repository.revision,
                create_pr=self.create_pr,
                parent_commit=head,
            )
            return made.oid, made.pr_url or made.commit_url

        def landed() -> tuple[str, str] | None:
            """The commit whose answer was lost, recognised by its files."""
            if self.create_pr:
                new = {ref: commit for ref, commit in repository.pull_requests().items() if ref not in before}
                found = next((ref for ref, commit in new.items() if repository.holds(commit, changed, stale)), None)
                self.sending = False
                return None if found is None else (new[found], repository.pull_request_url(found))
            now = repository.head()
            arrived = now is not None and now != head and repository.holds(now, changed, stale)
            self.sending = False
            if now is not None and arrived:
                return now, f"{repository.url}/commit/{now}"
            if now != head:
                raise HubError(
                    f"{repository.repo_id} has moved: somebody else committed while this push ran. Push again to start from there."
                )
            return None

        try:
            sent = retried(send, landed, also=MOVED)
        except (OSError, RuntimeError, ValueError, *NETWORK_ERRORS) as error:
            if isinstance(error, HubError):
                raise
            self.sending = self.sending and may_pass(error)  # else it was refused
            raise repository.told(error) from error
        self.sending = False
        return sent
