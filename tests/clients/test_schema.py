"""The HTTP API is what `/openapi.json` says: schemathesis makes requests from it and checks the answers against it."""

from __future__ import annotations

import json
import re
import subprocess
import sys

from hub import admin

# Names in paths and bodies have to be of rooms and connections that there are, which no schema can say.
NOT_SAID = "positive_data_acceptance"
# An emptied history is still there, and empty.
STAYS = "use_after_free"


def test_the_api_keeps_to_its_own_description(start):
    hub = start()
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{hub.http_url}/openapi.json"]
    command += ["-H", f"Authorization: Bearer {admin()}", "--max-examples", "30", "--workers", "1", "--request-timeout", "35"]
    command += ["--exclude-checks", f"{NOT_SAID},{STAYS}", "--no-color", "--generation-database", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert generated and int(generated[2]) > 500, done.stdout[-2000:]


def test_the_description_is_served_and_names_every_call(hub):
    status, headers, body = hub.get("/openapi.json")
    assert status == 200 and headers["content-type"] == "application/json"
    paths = json.loads(body)["paths"]
    for path in ["/api/v1/publish", "/api/v1/connections/{client_id}", "/api/v1/rooms/{room}/history", "/ready", "/metrics"]:
        assert path in paths, path
