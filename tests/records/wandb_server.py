"""A W&B server of the size that the tests need: the real client talks to it, and it remembers what it was told."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


@dataclass
class Server:
    """What arrived: named GraphQL variables, streamed history, uploaded files, saved views."""

    url: str = ""
    requests: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)
    history: dict[int, str] = field(default_factory=dict)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    views: dict[str, dict[str, Any]] = field(default_factory=dict)
    exit_codes: list[int] = field(default_factory=list)
    """Of runs that said that they have ended, in turn."""
    refuses: str = ""
    """Part of a query that is answered with an error."""

    def answer(self, query: str, variables: dict[str, Any]) -> Any:
        """The data that the client needs to go on."""
        for part, reply in (
            ("UpsertBucket", self._run),
            ("Viewer", self._viewer),
            ("ArtifactType(", lambda _: {"project": {"artifact": None}}),
            ("CreateArtifact ", self._artifact),
            ("CreateRunFiles", self._files),
            ("ProjectInternalId", lambda _: {"project": {"id": "P", "internalId": "P1"}}),
            ("GetProjects", self._projects),
            ("upsertView", self._save),
            ("SpecificReport", lambda variables: {"view": self.views[variables["reportId"]]}),
        ):
            if part in query:
                return reply(variables)
        return {}

    def _run(self, variables: dict[str, Any]) -> Any:
        self.runs.append(variables)
        project = {"id": "P", "name": variables["project"], "entity": {"id": "E", "name": variables["entity"]}}
        bucket = {"id": "B", "name": variables["name"], "displayName": variables["displayName"], "project": project}
        return {"upsertBucket": {"bucket": bucket | {"config": "{}", "historyLineCount": 0}, "inserted": True}}

    def _viewer(self, _: dict[str, Any]) -> Any:
        viewer = {"id": "V", "entity": "lab", "username": "user", "email": "", "flags": "{}", "admin": False}
        return {"viewer": viewer | {"teams": {"edges": []}}}

    def _artifact(self, variables: dict[str, Any]) -> Any:
        self.artifacts.append(variables["input"])
        sequence = {"id": "S", "latestArtifact": {"id": "A"}}
        return {"createArtifact": {"artifact": {"id": "A", "state": "COMMITTED", "artifactSequence": sequence}}}

    def _files(self, variables: dict[str, Any]) -> Any:
        files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}

    def _projects(self, _: dict[str, Any]) -> Any:
        node = {"__typename": "Project", "id": "P", "name": "steering", "entityName": "lab", "isBenchmark": False}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edge = {"node": node | {"createdAt": "2026-01-01T00:00:00Z", "user": None}}
        return {"models": {"pageInfo": page, "edges": [edge]}}

    def _save(self, variables: dict[str, Any]) -> Any:
        identifier = variables["id"] or b64encode(f"View:{len(self.views) + 1}".encode()).decode().rstrip("=")
        project = {"id": "P", "name": variables["projectName"], "entityName": variables["entityName"]}
        taken = {name: variables[name] for name in ("name", "displayName", "description", "spec")}
        self.views[identifier] = {"id": identifier, "project": project, **taken}
        return {"upsertView": {"view": self.views[identifier], "inserted": not variables["id"]}}


class _Handler(BaseHTTPRequestHandler):
    server_state: Server

    def do_POST(self) -> None:
        content, state = self._content(), self.server_state
        if self.path != "/graphql":
            if self.path.endswith("/file_stream"):
                told = json.loads(content)
                stream = told.get("files", {}).get("wandb-history.jsonl", {"offset": 0, "content": []})
                state.history.update(enumerate(stream["content"], stream["offset"]))
                state.exit_codes += [told["exitcode"]] if told.get("complete") else []
            return self._reply({})
        asked = json.loads(content)
        if state.refuses and state.refuses in asked["query"]:
            return self._reply({"errors": [{"message": "permission denied"}]}, 403)
        return self._reply({"data": state.answer(asked["query"], asked.get("variables") or {})})

    def do_PUT(self) -> None:
        self.server_state.files[self.path.removeprefix("/upload/")] = self._content()
        self._reply({})

    def do_GET(self) -> None:
        self._reply({})

    def _content(self) -> bytes:
        self.server_state.requests += 1
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return gzip.decompress(content) if self.headers.get("Content-Encoding") == "gzip" else content

    def _reply(self, answer: Any, status: int = 200) -> None:
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Tests read the server's state, not its log."""


@contextmanager
def serving() -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    state = Server()
    handler = type("Handler", (_Handler,), {"server_state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield state
        server.shutdown()
        thread.join()
