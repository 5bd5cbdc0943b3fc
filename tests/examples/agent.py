#!/usr/bin/env python3
"""An agent that lets others watch it think, in Python with `websockets`.

    RINGHUB_TOKEN=… python3 agent.py a1

It looks for the cause of a fault: it believes in several causes more or less, makes one observation after the other, and
tells with each what it believes now. Who watches is in the room `agent:a1`:

    ringhub tail agent:a1
    {"type":"subscribe","data":{"type":"epistemic_updates","agent_id":"a1","filters":{"confidence_level":{"min":0.8}}}}

Steps that were not acknowledged when the connection was lost are published again on the next one, each under its key, so
that every step is there once and in order. The token has to grant `websocket:connect`, `websocket:publish` and
`agent:a1:write`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import uuid
from collections.abc import Iterator

import websockets
from websockets.asyncio.client import connect

# How much each cause is believed in at first, and how likely each observation would be if it were the one.
CAUSES = {"disk full": 0.2, "slow query": 0.4, "network loss": 0.3, "bad deploy": 0.1}
OBSERVATIONS = {
    "errors began at 09:14, a minute after a release": {"disk full": 0.1, "slow query": 0.2, "network loss": 0.1, "bad deploy": 0.9},
    "disk has 60 % left": {"disk full": 0.01, "slow query": 0.9, "network loss": 0.9, "bad deploy": 0.9},
    "no packet is lost between the services": {"disk full": 0.9, "slow query": 0.9, "network loss": 0.05, "bad deploy": 0.9},
    "queries take as long as yesterday": {"disk full": 0.5, "slow query": 0.05, "network loss": 0.5, "bad deploy": 0.8},
    "the old release has no errors": {"disk full": 0.1, "slow query": 0.1, "network loss": 0.1, "bad deploy": 0.95},
}
SURE = 0.95


def reason(agent_id: str) -> Iterator[tuple[str, dict]]:
    """The events of one investigation: type and data, in the shapes that the hub knows."""
    belief = dict(CAUSES)
    yield "agent.connected", {"agent_id": agent_id, "name": "fault finder"}
    yield "agent.status_changed", {"agent_id": agent_id, "status": "working"}
    for step, (observation, likelihood) in enumerate(OBSERVATIONS.items(), 1):
        weights = {cause: belief[cause] * likelihood[cause] for cause in belief}
        belief = {cause: round(weight / sum(weights.values()), 4) for cause, weight in weights.items()}
        cause = max(belief, key=belief.__getitem__)
        update = {"agent_id": agent_id, "step": step, "observation": observation, "belief": belief, "hypothesis": cause}
        yield "epistemic_update", {**update, "confidence_level": belief[cause]}
        if step == 1:
            yield "pattern_alert", {"agent_id": agent_id, "severity": "info", "patterns": ["errors follow a release"]}
        if belief[cause] >= SURE:
            break
    yield "prediction_update", {"agent_id": agent_id, "prediction": f"undoing it ends the fault: {cause}", "confidence_level": belief[cause]}
    yield "agent.status_changed", {"agent_id": agent_id, "status": "done", "conclusion": cause}
    yield "agent.disconnected", {"agent_id": agent_id}


class Refused(Exception):
    """The hub does not take an event."""


class Agent:
    """Publishes what it thinks into its room, and waits for nothing while it thinks."""

    def __init__(self, url: str, token: str, agent_id: str):
        self.url, self.token, self.room = url, token, f"agent:{agent_id}"
        self.run = uuid.uuid4().hex[:8]
        self.steps = 0
        # Told, and not yet acknowledged by the hub: commands by their keys, in order.
        self.waiting: dict[str, str] = {}
        self.changed = asyncio.Condition()

    async def tell(self, kind: str, data: dict) -> None:
        """Adds a step. It is sent as soon as there is a connection."""
        self.steps += 1
        key = f"{self.run}-{self.steps}"
        event = {"room": self.room, "type": kind, "data": data, "key": key}
        async with self.changed:
            self.waiting[key] = json.dumps({"type": "publish", "id": key, "data": event})
            self.changed.notify_all()

    async def heard(self) -> None:
        """Waits until the hub has all that was told."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self.waiting)

    async def publish(self) -> None:
        """Publishes until it is cancelled, over as many connections as it takes. `connect` pauses in between, longer each
        time, and ends with an exception where the hub refuses the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async for connection in connect(self.url, additional_headers=headers, subprotocols=["ringhub.v1.json"]):
            try:
                await self.converse(connection)
            except websockets.ConnectionClosed:
                continue
            finally:
                await connection.close()

    async def converse(self, connection) -> None:
        """One connection: sends what waits, and drops what the hub has acknowledged."""
        sending = asyncio.create_task(self.send(connection))
        try:
            async for text in connection:
                message = json.loads(text)
                ref, data = message.get("ref"), message["data"]
                if message["type"] == "error" and ref:
                    raise Refused(f"{ref}: {data['code']}: {data['message']}")
                if message["type"] == "published":
                    print(f"{data['room']} {data['seq']}", flush=True)
                    async with self.changed:
                        self.waiting.pop(ref, None)
                        self.changed.notify_all()
        finally:
            sending.cancel()

    async def send(self, connection) -> None:
        sent: set[str] = set()
        # Whoever reads notices the end as well, and says so.
        with contextlib.suppress(websockets.ConnectionClosed):
            while True:
                async with self.changed:
                    await self.changed.wait_for(lambda: not sent.issuperset(self.waiting))
                    new = {key: text for key, text in self.waiting.items() if key not in sent}
                for key, text in new.items():
                    await connection.send(text)
                    sent.add(key)


async def main() -> None:
    agent_id = sys.argv[1]
    pause_s = float(sys.argv[2]) if len(sys.argv) > 2 else 1.0
    url = os.environ.get("RINGHUB_URL", "http://127.0.0.1:8000").replace("http", "ws", 1).rstrip("/") + "/ws"
    agent = Agent(url, os.environ["RINGHUB_TOKEN"], agent_id)
    async with asyncio.TaskGroup() as group:
        publishing = group.create_task(agent.publish())
        for kind, data in reason(agent_id):
            await agent.tell(kind, data)
            await asyncio.sleep(pause_s)
        await agent.heard()
        publishing.cancel()


if __name__ == "__main__":
    asyncio.run(main())
