"""GitHub's webhooks, with payloads in the shape that GitHub documents, cut to size."""

from __future__ import annotations

import hashlib
import hmac
import json
import uuid

import pytest

from hub import admin, token
from peer import joined

SECRET = "a secret of the hook"
REPOSITORY = {
    "id": 1296269,
    "name": "Hello-World",
    "full_name": "octocat/Hello-World",
    "private": False,
    "owner": {"login": "octocat", "id": 1, "type": "User"},
    "html_url": "https://github.com/octocat/Hello-World",
    "default_branch": "master",
}
PULL_REQUEST = {
    "url": "https://api.github.com/repos/octocat/Hello-World/pulls/1347",
    "id": 1,
    "html_url": "https://github.com/octocat/Hello-World/pull/1347",
    "number": 1347,
    "state": "open",
    "locked": True,
    "title": "Amazing new feature",
    "user": {"login": "octocat", "id": 1, "type": "User"},
    "body": "Please pull these awesome changes in!",
    "labels": [{"id": 208045946, "name": "bug", "color": "f29513", "default": True}],
    "created_at": "2011-01-26T19:01:12Z",
    "updated_at": "2011-01-26T19:01:12Z",
    "closed_at": None,
    "merged_at": None,
    "head": {"label": "octocat:new-topic", "ref": "new-topic", "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e"},
    "base": {"label": "octocat:master", "ref": "master", "sha": "6dcb09b5b57875f334f61aebed695e2e4193db5e"},
    "draft": False,
    "merged": False,
    "commits": 3,
}
ISSUE = {
    "url": "https://api.github.com/repos/octocat/Hello-World/issues/1347",
    "html_url": "https://github.com/octocat/Hello-World/issues/1347",
    "id": 1,
    "number": 1347,
    "title": "Found a bug",
    "user": {"login": "octocat", "id": 1},
    "labels": [{"id": 1, "name": "bug"}],
    "state": "open",
    "comments": 0,
    "updated_at": "2011-04-22T13:33:48Z",
}


def deliver(hub, event: str, payload: object, *, secret: str = SECRET, delivery: str | None = None, body: bytes | None = None, **headers):
    body = body if body is not None else json.dumps(payload).encode()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    sent = {
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery or str(uuid.uuid4()),
        "X-Hub-Signature-256": f"sha256={signature}",
        "X-GitHub-Hook-ID": "292430182",
        "User-Agent": "GitHub-Hookshot/044aadd",
        "Content-Type": "application/json",
    } | headers
    status, _, answer = hub.get("/webhooks/github", {name: value for name, value in sent.items() if value is not None}, method="POST", body=body)
    return status, json.loads(answer)


@pytest.fixture
def hook(start):
    return start({"webhooks.github_secret": [SECRET, "the next secret"]})


async def test_pull_requests_and_issues_become_events_of_their_project(hook):
    async with joined(hook, admin()) as peer:
        await peer.subscribe("project:octocat/Hello-World")
        expected = []
        for event, subject, action, kind in [
            ("pull_request", "pull_request", "opened", "pr.created"),
            ("pull_request", "pull_request", "synchronize", "pr.updated"),
            ("pull_request", "pull_request", "reopened", "pr.updated"),
            ("pull_request", "pull_request", "closed", "pr.closed"),
            ("issues", "issue", "opened", "issue.created"),
            ("issues", "issue", "edited", "issue.updated"),
            ("issues", "issue", "closed", "issue.closed"),
        ]:
            payload = {"action": action, "number": 1347, subject: PULL_REQUEST if event == "pull_request" else ISSUE}
            status, answer = deliver(hook, event, payload | {"repository": REPOSITORY, "sender": {"login": "octocat"}})
            assert status == 200 and answer["type"] == kind and answer["room"] == "project:octocat/Hello-World", answer
            expected.append((kind, action))
        events = await peer.events("project:octocat/Hello-World", len(expected))
        assert [(event["type"], event["data"]["action"]) for event in events] == expected
        first = events[0]["data"]
        assert first["number"] == 1347 and first["title"] == "Amazing new feature" and first["author"] == "octocat"
        assert first["url"] == PULL_REQUEST["html_url"] and first["labels"] == ["bug"] and first["head"]["ref"] == "new-topic"
        assert "merged" not in events[-1]["data"]


def test_a_ping_is_answered_and_other_events_are_ignored(hook):
    assert deliver(hook, "ping", {"zen": "Design for failure.", "hook_id": 1}) == (200, {"pong": True})
    assert deliver(hook, "push", {"ref": "refs/heads/main"}) == (202, {"ignored": True})


def test_what_is_not_githubs_or_not_new_is_refused(hook):
    payload = {"action": "opened", "issue": ISSUE, "repository": REPOSITORY}
    once = str(uuid.uuid4())
    assert deliver(hook, "issues", payload, delivery=once)[0] == 200
    assert deliver(hook, "issues", payload, delivery=once)[0] == 409, "a delivery is taken once"
    assert deliver(hook, "issues", payload, secret="the next secret")[0] == 200, "secrets can be changed without a gap"
    refused = [
        (401, dict(secret="wrong")),
        (401, {"X-Hub-Signature-256": None}),
        (401, {"X-Hub-Signature-256": "sha256=00"}),
        (400, {"X-GitHub-Delivery": None}),
        (400, dict(body=b"{}")),
        (400, dict(body=b"{")),
        (415, {"Content-Type": "application/x-www-form-urlencoded"}),
    ]
    for status, how in refused:
        got, answer = deliver(hook, "issues", payload, **how)
        assert (got, bool(answer["error"]["message"])) == (status, True), (how, answer)
    assert SECRET not in hook.log()


def test_without_a_secret_there_is_no_hook(hub):
    assert deliver(hub, "ping", {})[0] == 404
    assert hub.get("/webhooks/github", {"Authorization": f"Bearer {token()}"})[0] == 405
