"""What a push does when the Hub, the network, the disk or the user interrupts it: all of it arrives, or nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from loopback import READ_TOKEN, WRITE_TOKEN, Hub
from pushed_models import REPO, tiny_answerer
from transformers import BertForQuestionAnswering, PreTrainedTokenizerFast

from bert_cluster import HubError, SaveError, push_to_hub, save_pretrained
from bert_cluster.hub import faults

pytestmark = pytest.mark.usefixtures("login", "no_waiting")

CREATE, COMMIT, PREUPLOAD, TREE = "/api/repos/create", "/commit/", "/preupload/", "/tree/"
LARGE_BATCH, LARGE_FILE, INFO = "/info/lfs/objects/batch", "/_objects/up/", "/api/models/tester/answers$"
EMPTY = f"/{REPO} exists now and is empty."
UNTOUCHED = "Nothing was changed on the Hub."


def is_complete(hub: Hub) -> bool:
    return "model.safetensors" in hub.repos[REPO].files() and "README.md" in hub.repos[REPO].files()


def is_empty(hub: Hub) -> bool:
    return set(hub.repos[REPO].files()) == {".gitattributes"}


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize(("method", "path"), [("POST", CREATE), ("POST", COMMIT), ("GET", INFO)])
def test_a_busy_hub_is_asked_again(
    hub: Hub, model: BertForQuestionAnswering, method: str, path: str, status: int
) -> None:
    hub.fault(method, path, status=status, times=3)
    push_to_hub(model, REPO)
    assert is_complete(hub)
    assert len(hub.repos[REPO].commits) == 2  # the empty one, and ours


@pytest.mark.parametrize(
    ("method", "path"), [("POST", PREUPLOAD), ("POST", LARGE_BATCH), ("PUT", LARGE_FILE), ("GET", TREE)]
)
def test_a_busy_hub_is_asked_again_by_the_client_too(
    hub: Hub, model: BertForQuestionAnswering, method: str, path: str
) -> None:
    hub.fault(method, path, status=503)
    push_to_hub(model, REPO)
    assert is_complete(hub)


def test_the_hub_says_how_long_to_wait(
    hub: Hub, model: BertForQuestionAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(faults.time, "sleep", waited.append)
    monkeypatch.setattr(faults, "FIRST_PAUSE_SECONDS", 1.0)
    hub.fault("POST", CREATE, status=429, headers={"Retry-After": "17"})
    hub.fault("POST", COMMIT, status=429, headers={"RateLimit": '"api";r=0;t=23'})
    hub.fault("POST", COMMIT, status=503)
    push_to_hub(model, REPO)
    assert [pause for pause in waited if pause >= 1] == [17, 23, 2]


def test_a_wait_that_is_too_long_is_told(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.fault("POST", COMMIT, status=429, headers={"Retry-After": "3600"}, times=9)
    with pytest.raises(
        HubError, match=r"too many requests from you \(429: .*Wait 3600 seconds, then try again.*and is empty"
    ):
        push_to_hub(model, REPO)
    assert is_empty(hub)
    assert len(hub.requests("POST", COMMIT)) == 1


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize(
    ("path", "state"),
    [(CREATE, "Whether the repository was created can be seen at .*: if it was, it is empty."), (COMMIT, EMPTY)],
)
def test_a_hub_that_stays_broken(hub: Hub, model: BertForQuestionAnswering, path: str, state: str, status: int) -> None:
    hub.fault("POST", path, status=status, times=99)
    with pytest.raises(HubError, match=f"a fault of its own .{status}: planted fault., after 5 attempts.*{state}$"):
        push_to_hub(model, REPO)
    assert len(hub.requests("POST", path)) == 5
    assert hub.repos == {} or is_empty(hub)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (
            "hf_expired",
            r"does not accept the token \(401: .*`hf auth login`, set HF_TOKEN, or give a token \(token= in Python, --token of "
            r"bert-cluster push, --hub_token of squad-eval and glue-eval\)\. Nothing was",
        ),
        (
            READ_TOKEN,
            r"may not write to tester/answers \(403: .*role write.*\(create_pr=True in Python, bert-cluster push "
            r"--create_pr\)\. Nothing was changed",
        ),
    ],
)
def test_a_token_that_is_refused(hub: Hub, model: BertForQuestionAnswering, token: str, message: str) -> None:
    with pytest.raises(HubError, match=message):
        push_to_hub(model, REPO, token=token)
    assert hub.repos == {}
    hub.create(REPO)
    with pytest.raises(HubError, match=message):
        push_to_hub(model, REPO, token=token)
    assert hub.repos[REPO].files() == {}


def test_nobody_is_logged_in(hub: Hub, model: BertForQuestionAnswering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        HubError,
        match=r"Log in with `hf auth login`, set HF_TOKEN, or give a token \(token= .*--hub_token .*\)\. Nothing was changed",
    ):
        push_to_hub(model, REPO)


def test_a_pull_request_to_nothing(hub: Hub, model: BertForQuestionAnswering) -> None:
    with pytest.raises(
        HubError, match=r"may not write to somebody/model \(403: .*rights to create.*Nothing was changed"
    ):
        push_to_hub(model, "somebody/model", create_pr=True)
    hub.create(REPO)
    with pytest.raises(
        HubError, match="has no branch other, and a pull request needs one that exists. Leave revision out"
    ):
        push_to_hub(model, REPO, create_pr=True, revision="other")


def test_a_repository_that_vanishes(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.create(REPO)
    hub.fault("POST", PREUPLOAD, call=lambda: hub.repos.clear())
    with pytest.raises(
        HubError,
        match=r"There is no repository tester/answers, or the token cannot see it \(404.*HF_TOKEN, or the one given \(token= in Python, --token",
    ):
        push_to_hub(model, REPO)


@pytest.mark.parametrize("status", [409, 412])
def test_somebody_else_commits_in_between(hub: Hub, model: BertForQuestionAnswering, status: int) -> None:
    repo = hub.create(REPO, {"theirs.txt": "1"})

    def commit() -> None:
        repo.add("main", {"theirs.txt": hub.file("theirs.txt", b"2")})

    if status == 412:
        hub.fault("POST", COMMIT, call=commit)
    else:
        hub.fault("POST", COMMIT, status=409, message="another operation is in progress", call=commit)
    with pytest.raises(
        HubError,
        match="has moved: somebody else committed while this push ran. Push again to start from there. Nothing",
    ):
        push_to_hub(model, REPO)
    assert repo.files() == {"theirs.txt": b"2"}
    push_to_hub(model, REPO)
    assert repo.files()["theirs.txt"] == b"2"
    assert is_complete(hub)


def test_somebody_else_commits_before_a_second_attempt(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO, {"theirs.txt": "1"})
    hub.fault(
        "POST", COMMIT, status=503, call=lambda: repo.add("main", {"theirs.txt": hub.file("theirs.txt", b"2")}) and None
    )
    with pytest.raises(HubError, match="has moved.*Push again to start from there. Nothing was changed"):
        push_to_hub(model, REPO)
    assert repo.files() == {"theirs.txt": b"2"}
    assert len(hub.requests("POST", COMMIT)) == 1


def test_two_pushes_at_the_same_time(hub: Hub, tokenizer: PreTrainedTokenizerFast) -> None:
    """Both see the same head; one commit lands, the other says so, and pushing it again works."""
    hub.create(REPO)
    both = threading.Barrier(2)
    hub.fault("POST", COMMIT, call=both.wait, times=2)
    outcomes: list[Any] = []

    def push(model: BertForQuestionAnswering) -> None:
        try:
            outcomes.append(push_to_hub(model, REPO, tokenizer))
        except HubError as error:
            outcomes.append(str(error))

    models = [tiny_answerer(method="clustered", clusters=clusters) for clusters in (3, 4)]
    threads = [threading.Thread(target=push, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(refused) == 1
    assert "has moved: somebody else committed" in refused[0]
    assert len(hub.repos[REPO].commits) == 2
    settings = json.loads(hub.repos[REPO].files()["config.json"])["clustered_attention"]
    assert f"clusters = {settings['clusters']}" in hub.repos[REPO].files()["README.md"].decode()


@pytest.mark.parametrize("cut", ["before", "after"])
@pytest.mark.parametrize("create_pr", [False, True])
def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    hub: Hub, model: BertForQuestionAnswering, cut: str, create_pr: bool
) -> None:
    repo = hub.create(REPO)
    hub.fault("POST", COMMIT, cut=cut)
    pushed = push_to_hub(model, REPO, create_pr=create_pr)
    assert len(repo.commits) == 2
    ref = "refs/pr/1" if create_pr else "main"
    assert pushed.commit == repo.refs[ref]
    assert repo.pulls == int(create_pr)
    assert "model.safetensors" in repo.files(ref)
    assert pushed.url.endswith("/discussions/1" if create_pr else f"/commit/{pushed.commit}")


def test_an_error_after_the_commit_arrived(hub: Hub, model: BertForQuestionAnswering) -> None:
    """A gateway may answer 504 although the commit behind it was made."""
    repo = hub.create(REPO)
    plain = push_files(hub, model)
    hub.clear()
    repo = hub.create(REPO)
    hub.fault("POST", COMMIT, status=504, call=lambda: repo.add("main", plain) and None)
    pushed = push_to_hub(model, REPO)
    assert pushed.commit == repo.refs["main"]
    assert len(hub.requests("POST", COMMIT)) == 1


def push_files(hub: Hub, model: BertForQuestionAnswering) -> dict[str, Any]:
    push_to_hub(model, REPO)
    return dict(hub.repos[REPO].commits[hub.repos[REPO].refs["main"]])


@pytest.mark.parametrize("cut", ["upload", "before"])
@pytest.mark.parametrize("path", [LARGE_BATCH, LARGE_FILE, COMMIT])
def test_a_connection_cut_in_the_middle_of_an_upload(
    hub: Hub, model: BertForQuestionAnswering, path: str, cut: str
) -> None:
    hub.fault("PUT" if path == LARGE_FILE else "POST", path, cut=cut)
    push_to_hub(model, REPO)
    assert is_complete(hub)
    assert len(hub.repos[REPO].commits) == 2


def test_a_connection_that_stays_cut(hub: Hub, model: BertForQuestionAnswering) -> None:
    hub.fault("POST", COMMIT, cut="before", times=99)
    with pytest.raises(
        HubError, match=f"The connection to {hub.url} failed .*Check the network, then try again.*{EMPTY}"
    ):
        push_to_hub(model, REPO)
    assert is_empty(hub)
    hub.faults.clear()
    push_to_hub(model, REPO)
    assert is_complete(hub)


def test_a_network_that_goes_away_with_the_answer(hub: Hub, model: BertForQuestionAnswering) -> None:
    """The commit is there, and nobody can be asked: the message does not claim to know."""
    hub.create(REPO)

    def cut_everything() -> None:
        hub.fault("GET", "/api/", cut="before", times=99)

    hub.fault("POST", COMMIT, cut="after", call=cut_everything)
    with pytest.raises(HubError, match="Whether the commit arrived can be seen at .*whole or not at all"):
        push_to_hub(model, REPO)
    hub.faults.clear()
    assert push_to_hub(model, REPO).uploaded == ()


@pytest.mark.parametrize("fault", [{"status": 403, "message": "no"}, {"cut": "before", "times": 99}])
def test_a_branch_made_for_a_push_that_fails_is_removed(
    hub: Hub, model: BertForQuestionAnswering, fault: dict[str, Any]
) -> None:
    repo = hub.create(REPO)
    hub.fault("POST", COMMIT, **fault)
    with pytest.raises(HubError):
        push_to_hub(model, REPO, revision="faster")
    assert set(repo.refs) == {"main"}


def test_the_hub_refuses_the_card(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO, {"README.md": "---\ndatasets:\n- /data/mine\n---\n# Mine\n"})
    with pytest.raises(HubError, match="is not valid. Use a model id from the Hub.*Nothing was changed on the Hub"):
        push_to_hub(model, REPO)
    assert set(repo.files()) == {"README.md"}


def test_a_download_that_breaks_off_is_tried_again(hub: Hub, model: BertForQuestionAnswering) -> None:
    text = "# Mine\n" + "many words\n" * 1000
    hub.create(REPO, {"README.md": text})
    hub.fault("GET", "/resolve/.*README.md", cut="middle", times=2)
    push_to_hub(model, REPO)
    assert text.strip() in hub.repos[REPO].files()["README.md"].decode()


FULL_DISK = """
import resource, signal, sys
sys.path[:0] = {path!r}
from pushed_models import tiny_answerer
from bert_cluster import push_to_hub, save_pretrained
model = tiny_answerer()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
{call}
"""


@pytest.mark.parametrize("call", ["save_pretrained(model, 'model')", "push_to_hub(model, 'tester/answers')"])
def test_a_full_disk(
    hub: Hub, run_python: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, call: str
) -> None:
    """A limit on the size of files stands for it: the system refuses in the middle of the weights, as a full disk does."""
    folder = tmp_path / "elsewhere" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("before")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    result = run_python(FULL_DISK.format(path=sys.path, call=call), TMPDIR=str(temporary))
    assert result.returncode == 1
    assert "bert_cluster.errors.SaveError: The model could not be written into" in result.stderr
    assert "Make room or choose another place" in result.stderr
    assert [path.name for path in folder.parent.iterdir()] == ["model"]
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"config.json": "before"}
    assert list(temporary.iterdir()) == []
    assert hub.repos == {}


INTERRUPTED = """
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
sys.path[:0] = {path!r}
from bert_cluster.cli import main
sys.exit(main(["push", "model", "tester/answers"]))
"""


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("POST", CREATE, "Whether the repository was created can be seen at"),
        ("GET", TREE, EMPTY),
        ("POST", COMMIT, "Whether the commit arrived can be seen at"),
    ],
)
def test_ctrl_c(hub: Hub, tmp_path: Path, login: str, method: str, path: str, message: str) -> None:
    place = tmp_path / "elsewhere"
    save_pretrained(tiny_answerer(), place / "model")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    reached, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go_on.wait(60)

    hub.fault(method, path, call=hold, cut="before")
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED.format(path=sys.path)],
        cwd=place,
        env={**os.environ, "HF_HOME": str(tmp_path / "home"), "TMPDIR": str(temporary)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert reached.wait(120)
    process.send_signal(signal.SIGINT)
    threading.Timer(1.0, go_on.set).start()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "bert-cluster: interrupted. The push to tester/answers was interrupted." in errors
    assert message in errors
    assert hub.repos == {} or is_empty(hub)
    assert list(temporary.iterdir()) == []


def test_offline(run_python: Callable[..., subprocess.CompletedProcess[str]], hub: Hub) -> None:
    code = "import sys; sys.path[:0] = {path!r}\nfrom pushed_models import tiny_answerer\nimport bert_cluster\n{call}"
    call = "bert_cluster.push_to_hub(tiny_answerer(), 'tester/answers')"
    result = run_python(code.format(path=sys.path, call=call), HF_HUB_OFFLINE="1")
    assert "HubError: The environment says to stay offline (HF_HUB_OFFLINE=1). Unset it" in result.stderr
    assert hub.log == []


def test_info_offline(run_python: Callable[..., subprocess.CompletedProcess[str]], hub: Hub) -> None:
    code = "from bert_cluster.cli import main\nmain(['info', 'tester/never-asked'])"
    told = run_python(code, HF_HUB_OFFLINE="1").stderr
    assert "bert-cluster: tester/never-asked is no folder, and its config.json is not in the cache." in told
    assert "The Hub was not asked, for the environment says to stay offline (HF_HUB_OFFLINE=1). Unset it" in told
    assert hub.log == []


def test_saving_over_a_file_or_a_damaged_card(model: BertForQuestionAnswering, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SaveError, match="is a file. Give a folder"):
        save_pretrained(model, tmp_path / "file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "README.md").write_bytes(b"\xff\xfe")
    with pytest.raises(SaveError, match="is not UTF-8 text"):
        save_pretrained(model, tmp_path / "folder")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["README.md"]


def test_the_token_that_is_given_is_the_one_that_is_used(
    hub: Hub, model: BertForQuestionAnswering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    push_to_hub(model, REPO, token=WRITE_TOKEN)
    assert {request.token for request in hub.log if request.path.startswith("/api/models")} == {WRITE_TOKEN}


def test_a_branch_that_somebody_else_uses_is_not_removed(hub: Hub, model: BertForQuestionAnswering) -> None:
    """It was made for this push, and a commit of theirs came first."""
    repo = hub.create(REPO)
    theirs = {"theirs.txt": hub.file("theirs.txt", b"2")}
    hub.fault("POST", COMMIT, call=lambda: repo.add("faster", theirs) and None)
    with pytest.raises(HubError, match="has moved.*Nothing was changed on the Hub"):
        push_to_hub(model, REPO, revision="faster")
    assert repo.files("faster") == {"theirs.txt": b"2"}


def test_a_branch_that_somebody_else_makes_first(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO)
    hub.fault(
        "POST", "/branch/", call=lambda: repo.add("faster", {"theirs.txt": hub.file("theirs.txt", b"1")}) and None
    )
    hub.fault("POST", COMMIT, status=403)
    with pytest.raises(HubError, match="may not write to .*Nothing was changed on the Hub"):
        push_to_hub(model, REPO, revision="faster")
    assert repo.files("faster") == {"theirs.txt": b"1"}
    push_to_hub(model, REPO, revision="faster")
    assert repo.files("faster")["theirs.txt"] == b"1"


def test_a_branch_that_cannot_be_removed_is_told(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO)
    hub.fault("POST", COMMIT, status=403)
    hub.fault("DELETE", "/branch/", status=403)
    with pytest.raises(HubError, match="The branch faster may have been made in .*; it holds what main does"):
        push_to_hub(model, REPO, revision="faster")
    assert repo.refs["faster"] == repo.refs["main"]


def test_a_branch_whose_answer_is_lost_is_made_once(hub: Hub, model: BertForQuestionAnswering) -> None:
    repo = hub.create(REPO)
    hub.fault("POST", "/branch/", cut="after")
    hub.fault("POST", COMMIT, status=403)
    with pytest.raises(HubError, match="Nothing was changed on the Hub"):
        push_to_hub(model, REPO, revision="faster")
    assert set(repo.refs) == {"main"}


def test_a_repository_where_somebody_commits_right_now_is_asked_again(
    hub: Hub, model: BertForQuestionAnswering
) -> None:
    hub.create(REPO)
    hub.fault("POST", COMMIT, status=409, message="another operation is in progress", times=2)
    push_to_hub(model, REPO)
    assert is_complete(hub)
    hub.fault("POST", COMMIT, status=409, message="another operation is in progress", times=99)
    model.config.remark = "changed"
    with pytest.raises(HubError, match=r"is being changed by somebody else \(409: another operation is in progress\)"):
        push_to_hub(model, REPO)


def test_a_commit_is_no_branch(hub: Hub, model: BertForQuestionAnswering) -> None:
    head = hub.create(REPO).refs["main"]
    with pytest.raises(HubError, match="has no branch of this name .404.*Check revision: it names a branch"):
        push_to_hub(model, REPO, revision=head)


def test_a_cache_that_cannot_be_used(
    hub: Hub, model: BertForQuestionAnswering, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    hub.create(REPO, {"README.md": "# Mine"})
    with pytest.raises(
        SaveError, match="A file of the Hub's cache on this machine cannot be used: .*Nothing was changed"
    ):
        push_to_hub(model, REPO)
