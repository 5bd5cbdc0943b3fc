"""Rooms over several shards: every subscriber sees one order, whatever shard it and the publishers are on."""

import asyncio
import contextlib

from hub import admin, token
from peer import joined

# With 24 connections spread by the kernel, all on one of two shards has a chance of one in eight million.
SPREAD = 24


@contextlib.asynccontextmanager
async def crowd(hub, count, user="member"):
    async with contextlib.AsyncExitStack() as stack:
        yield await asyncio.gather(*[stack.enter_async_context(joined(hub, token(f"{user}-{index}"))) for index in range(count)])


async def test_all_subscribers_see_the_same_order_of_all_publishers(hub, room):
    async with crowd(hub, SPREAD) as members, crowd(hub, 8, "publisher") as publishers:
        for member in members:
            await member.subscribe(room)
        per_publisher = 50

        async def publish(peer, who):
            for number in range(per_publisher):
                await peer.send("publish", {"room": room, "type": "n", "data": [who, number]})

        await asyncio.gather(*[publish(peer, who) for who, peer in enumerate(publishers)])
        total = per_publisher * len(publishers)
        histories = await asyncio.gather(*[member.events(room, total) for member in members])
        first = histories[0]
        assert [event["seq"] for event in first] == list(range(1, total + 1))
        assert all(history == first for history in histories)
        for who in range(len(publishers)):
            assert [event["data"][1] for event in first if event["data"][0] == who] == list(range(per_publisher))


async def test_many_rooms_have_orders_of_their_own(hub, room):
    rooms = [f"{room}-{index}" for index in range(20)]
    async with crowd(hub, SPREAD) as members, joined(hub) as publisher:
        for member in members:
            data = await member.done("subscribe", {"rooms": rooms})
            assert not [result for result in data["results"] if "error" in result]
        for number in range(10):
            for name in rooms:
                await publisher.send("publish", {"room": name, "type": "n", "data": number})
        for member in members:
            for name in rooms:
                events = await member.events(name, 10)
                assert [(event["seq"], event["data"]) for event in events] == [(n + 1, n) for n in range(10)]


async def test_joining_and_leaving_while_events_flow_leaves_no_hole(hub, room):
    async with joined(hub) as publisher, crowd(hub, SPREAD) as members:
        stop = asyncio.Event()

        async def publish():
            number = 0
            while not stop.is_set():
                await publisher.done("publish", {"room": room, "type": "n", "data": number})
                number += 1

        async def come_and_go(member):
            for _ in range(5):
                joined_at = (await member.subscribe(room))["seq"]
                events = await member.events(room, 5)
                assert [event["seq"] for event in events] == list(range(joined_at + 1, joined_at + 6))
                await member.done("unsubscribe", {"room": room})
                member.inbox.clear()

        publishing = asyncio.create_task(publish())
        try:
            await asyncio.gather(*[come_and_go(member) for member in members])
        finally:
            stop.set()
            await publishing


async def test_a_user_on_several_shards_gets_each_message_everywhere(hub):
    async with contextlib.AsyncExitStack() as stack:
        phones = [await stack.enter_async_context(joined(hub, token("hilda"))) for _ in range(SPREAD)]
        sender = await stack.enter_async_context(joined(hub, admin()))
        sent = await sender.done("send", {"to": {"user": "hilda"}, "type": "hello", "data": 1})
        assert sent["delivered"] == SPREAD
        for phone in phones:
            await phone.next("hello")


async def test_client_ids_are_unique_over_all_shards(hub):
    from peer import Bare, upgrade_request

    async with joined(hub, query="client_id=one-of-all"):
        for _ in range(SPREAD):
            async with await Bare.dial(hub) as bare:
                await bare.say(upgrade_request("/ws?client_id=one-of-all", {"Authorization": f"Bearer {token()}"}))
                assert (await bare.head()).status == 409


async def test_broadcasts_into_global_reach_everyone(hub):
    async with crowd(hub, SPREAD) as members:
        status, answer = hub.publish("global", "news.flash", {"n": 1})
        assert status == 200, answer
        for member in members:
            while (await member.next("news.flash"))["id"] != answer["id"]:
                pass
