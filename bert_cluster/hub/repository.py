"""What a push asks a repository on the Hub: does it exist, where does the branch stand, which files are there."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi
from huggingface_hub.errors import LocalTokenNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from bert_cluster.errors import HubError, SaveError
from bert_cluster.hub.faults import NETWORK_ERRORS, explain, is_from_network, retried, status_of

Result = TypeVar("Result")


@dataclass
class Repository:
    """A model repository, and the branch in it that is pushed to. Every question is repeated while the Hub is busy.

    Every method raises HubError where the Hub or the network refuses for good.
    """

    api: HfApi
    repo_id: str
    revision: str

    @property
    def url(self) -> str:
        """Where it can be seen."""
        return f"{self.api.endpoint}/{self.repo_id}"

    def complete_name(self) -> None:
        """Put the token's user before a name without an owner."""
        if "/" not in self.repo_id:
            user = self.ask(self.api.whoami)
            self.repo_id = f"{user['name']}/{self.repo_id}"

    def describe(self) -> Any:
        """What the Hub knows of it; None where there is none that the token sees."""
        try:
            return retried(lambda: self.api.repo_info(self.repo_id))
        except NETWORK_ERRORS as error:
            if status_of(error) in (401, 403, 404):
                return None  # creating it tells why, or helps
            raise self.told(error) from error

    def head(self) -> str | None:
        """The commit that the branch points at, None where there is no such branch."""
        try:
            return retried(self._head)
        except RevisionNotFoundError:
            return None
        except NETWORK_ERRORS as error:
            raise self.told(error) from error

    def _head(self) -> str:
        info = self.api.repo_info(self.repo_id, revision=self.revision)
        assert info.sha is not None, "a revision has a commit"
        return info.sha

    def files(self, commit: str) -> dict[str, RepoFile]:
        """The files of a commit, by their paths."""
        entries = self.ask(lambda: list(self.api.list_repo_tree(self.repo_id, recursive=True, revision=commit)))
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def download(self, path: str, commit: str) -> Path:
        """One file of a commit, in the cache."""
        return Path(self.ask(lambda: self.api.hf_hub_download(self.repo_id, path, revision=commit)))

    def pull_requests(self) -> dict[str, str]:
        """The reference of every pull request, closed ones too, and the commit that it points at."""
        refs = self.ask(lambda: self.api.list_repo_refs(self.repo_id, include_pull_requests=True))
        return {ref.ref: ref.target_commit for ref in refs.pull_requests or []}

    def open_pull_requests(self) -> dict[str, str]:
        """The same for those that are open."""
        open_ones = self.ask(
            lambda: list(
                self.api.get_repo_discussions(self.repo_id, discussion_type="pull_request", discussion_status="open")
            )
        )
        references = {f"refs/pr/{one.num}" for one in open_ones}
        return {ref: commit for ref, commit in self.pull_requests().items() if ref in references}

    def pull_request_url(self, reference: str) -> str:
        """Where a pull request can be seen."""
        return f"{self.url}/discussions/{reference.split('/')[-1]}"

    def holds(self, commit: str, wanted: Mapping[str, Path], removed: Sequence[str]) -> bool:
        """Whether a commit has these files with this content, and none of the removed ones."""
        files = self.files(commit)
        return all(is_same(path, files.get(name)) for name, path in wanted.items()) and not set(removed) & set(files)

    def ask(self, call: Callable[[], Result]) -> Result:
        """Call, again while that may help."""
        try:
            return retried(call)
        except (LocalTokenNotFoundError, *NETWORK_ERRORS) as error:
            raise self.told(error) from error
        except OSError as error:
            if is_from_network(error):
                raise self.told(error) from error
            raise SaveError(f"A file of the Hub's cache on this machine cannot be used: {error}.") from error

    def told(self, error: BaseException) -> HubError:
        """An error of the Hub or the network, as one that says what to do."""
        return HubError(explain(error, self.repo_id, self.api.endpoint))


def is_same(path: Path, there: RepoFile | None) -> bool:
    """Whether the repository's file has the content of this one."""
    if there is None or there.size != path.stat().st_size:
        return False
    if there.lfs is not None:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == there.blob_id
