"""The checker of histories finds what is planted in them, and nothing in those that are as they should be."""

import copy
import itertools
import json
import random

import pytest

from history import ACKNOWLEDGED, IN_DOUBT, REFUSED, Began, Delivery, Gap, History, Lock, Log, Promise, Publish, check

ROOM = "project:1"
NODES = ["node-1", "node-2", "node-3"]
EVENTS = 30


def made(seed: int = 0, *, epochs: int = 1) -> History:
    """A history as it should be: publishers at three nodes, some of whose answers are lost; readers that come and go."""
    drawn = random.Random(seed)
    history = History()
    now = 0.0
    values = itertools.count(1)
    logs: list[tuple[str, list[tuple[int, str, int]]]] = []
    for number in range(epochs):
        epoch, events = f"{number:016x}", []
        while len(events) < EVENTS:
            value = next(values)
            publish = Publish(value, ROOM, f"publisher-{value % 4}", drawn.choice(NODES), now + 0.1)
            now += 1
            fate = drawn.random()
            if fate < 0.8:
                events.append((len(events) + 1, f"id-{value}", value))
                publish.outcome, publish.id, publish.seq, publish.epoch = ACKNOWLEDGED, f"id-{value}", len(events), epoch
                publish.answered_s = now
            elif fate < 0.9:
                publish.outcome, publish.answered_s, publish.error = REFUSED, now, "the broker is away"
            elif drawn.random() < 0.5:
                events.append((len(events) + 1, f"id-{value}", value))
            history.publishes.append(publish)
        logs.append((epoch, events))
    for number in range(4):
        read(history, drawn, f"reader-{number}", logs)
    epoch, events = logs[-1]
    history.logs = [Log(node, ROOM, epoch, len(events), list(events)) for node in NODES]
    return history


def read(history: History, drawn: random.Random, reader: str, logs: list) -> None:
    """A reader that begins somewhere in the first log and reads to the end of the last one, over several connections."""
    node = drawn.choice(NODES)
    place = (logs[0][0], drawn.randrange(EVENTS // 3))
    history.tell(Began(reader, ROOM, node, *place, recovered=True))
    for number, (epoch, events) in enumerate(logs):
        if epoch != place[0]:
            if drawn.random() < 0.5:
                history.tell(Gap(reader, ROOM, node, 1, 0, "epoch", epoch))
            else:
                history.tell(Began(reader, ROOM, node, epoch, 0, recovered=False, after=place))
            place = (epoch, 0)
        # Of a log that is lost not all need have come.
        upto = len(events) if number == len(logs) - 1 else drawn.randint(place[1], len(events))
        for seq, event_id, value in events[place[1] : upto]:
            if drawn.random() < 0.1:
                node = drawn.choice(NODES)
                history.tell(Began(reader, ROOM, node, *place, recovered=True, after=place))
            history.tell(Delivery(reader, ROOM, node, seq, event_id, value))
            place = (epoch, seq)


def deliveries(history: History, reader: str = "reader-1") -> list[int]:
    """Where a reader's deliveries are in its records that have another one behind them; none of those at either end."""
    records = history.told[reader]
    places = [index for index, (record, behind) in enumerate(itertools.pairwise(records)) if isinstance(record, Delivery) and isinstance(behind, Delivery)]
    return places[2:-2]


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_history_as_it_should_be_is_found_right(epochs):
    for seed in range(40):
        history = made(seed, epochs=epochs)
        assert check(history, Promise(epochs=True)) == []
        assert history.summary()["deliveries"] > 3 * EVENTS / 2


# What is planted: what it does to a history, and words of the finding.


def lose_a_delivery(history, drawn):
    del history.told["reader-1"][drawn.choice(deliveries(history))]


def lose_the_last_delivery(history, drawn):
    while not isinstance(history.told["reader-1"].pop(), Delivery):
        pass


def repeat_a_delivery(history, drawn):
    place = drawn.choice(deliveries(history))
    history.told["reader-1"].insert(place + 1, copy.copy(history.told["reader-1"][place]))


def repeat_a_delivery_after_a_resume(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    delivery = records[place]
    # The hub says that all is well, and replays one event too many.
    epoch = history.logs[0].epoch
    again = Began("reader-1", ROOM, "node-2", epoch, delivery.seq - 1, recovered=True, after=(epoch, delivery.seq))
    records[place + 1 : place + 1] = [again, copy.copy(delivery)]


def swap_two_deliveries(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    records[place], records[place + 1] = records[place + 1], records[place]


def renumber_swapped_deliveries(history, drawn):
    # The numbers look right to this reader; the events under them are others than for everybody else.
    records = history.told["reader-1"]
    one, other = (records[place] for place in drawn.sample(deliveries(history), 2))
    one.value, other.value, one.id, other.id = other.value, one.value, other.id, one.id


def lose_an_event_while_resuming(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    delivery = records[place]
    epoch = history.logs[0].epoch
    records[place] = Began("reader-1", ROOM, "node-2", epoch, delivery.seq, recovered=True, after=(epoch, delivery.seq - 1))


def say_nothing_of_a_gap_that_a_resume_has(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    delivery = records[place]
    epoch = history.logs[0].epoch
    records[place] = Began("reader-1", ROOM, "node-2", epoch, delivery.seq, recovered=False, after=(epoch, delivery.seq - 1))


def tell_a_gap(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    records[place] = Gap("reader-1", ROOM, "node-1", records[place].seq, records[place].seq, "slow")


def tell_a_wrong_gap(history, drawn):
    records, place = history.told["reader-1"], drawn.choice(deliveries(history))
    records[place] = Gap("reader-1", ROOM, "node-1", records[place].seq + 1, records[place].seq + 1, "slow")


def deliver_what_nobody_published(history, drawn):
    history.told["reader-1"][drawn.choice(deliveries(history))].value = 999_999


def deliver_what_another_room_has(history, drawn):
    delivery = history.told["reader-1"][drawn.choice(deliveries(history))]
    next(publish for publish in history.publishes if publish.value == delivery.value).room = "project:2"


def deliver_what_was_refused(history, drawn):
    delivery = history.told["reader-1"][drawn.choice(deliveries(history))]
    publish = next(publish for publish in history.publishes if publish.value == delivery.value)
    publish.outcome, publish.id, publish.seq, publish.epoch = REFUSED, None, None, None


def answer_with_another_number(history, drawn):
    drawn.choice([publish for publish in acknowledged(history) if publish.seq > 1]).seq -= 1


def answer_with_another_id(history, drawn):
    drawn.choice(acknowledged(history)).id = "id-0"


def acknowledge_what_is_lost(history, drawn):
    last = history.publishes[-1].invoked_s
    history.publishes.append(Publish(999_999, ROOM, "publisher-0", "node-1", last + 2, last + 3, ACKNOWLEDGED, "id-999999", EVENTS + 1, history.logs[0].epoch))


def publish_a_value_twice(history, drawn):
    seq = history.logs[0].seq + 1
    for log in history.logs:
        log.events.append((seq, *log.events[3][1:]))
        log.seq = seq
    for reader in list(history.told):
        history.tell(Delivery(reader, ROOM, "node-1", *history.logs[0].events[-1]))


def number_against_time(history, drawn):
    first, second = acknowledged(history)[4:6]
    first.invoked_s, second.invoked_s = second.invoked_s, first.invoked_s
    first.answered_s, second.answered_s = second.answered_s, first.answered_s


def end_a_log_early_at_one_node(history, drawn):
    history.logs[1].events.pop()
    history.logs[1].seq -= 1


def make_a_hole_in_a_log(history, drawn):
    del history.logs[1].events[drawn.randrange(5, 20)]


def put_another_event_into_a_log(history, drawn):
    events = history.logs[2].events
    events[9], events[10] = (10, *events[10][1:]), (11, *events[9][1:])


def deliver_before_the_place_is_told(history, drawn):
    records = history.told["reader-1"]
    records.insert(0, copy.copy(records[deliveries(history)[0]]))


def acknowledged(history) -> list[Publish]:
    return [publish for publish in history.publishes if publish.outcome == ACKNOWLEDGED]


PLANTED = {
    lose_a_delivery: "without",
    lose_the_last_delivery: "at the end, whose log ends at",
    repeat_a_delivery: "again, or late",
    repeat_a_delivery_after_a_resume: "it was told, but begins at",
    swap_two_deliveries: "without",
    renumber_swapped_deliveries: "to reader-1 at",
    lose_an_event_while_resuming: "it was told, but begins at",
    say_nothing_of_a_gap_that_a_resume_has: "misses something",
    tell_a_gap: "misses something",
    tell_a_wrong_gap: "a gap from",
    deliver_what_nobody_published: "which nobody published",
    deliver_what_another_room_has: "it was published in project:2",
    deliver_what_was_refused: "its publisher publisher-",
    answer_with_another_number: "to the answer to",
    answer_with_another_id: "(id-0) to the answer to",
    acknowledge_what_is_lost: "999999 was acknowledged as",
    publish_a_value_twice: "is at",
    number_against_time: "before it was published",
    end_a_log_early_at_one_node: "at node-2",
    make_a_hole_in_a_log: "is not whole",
    put_another_event_into_a_log: "to the log at node-3",
    deliver_before_the_place_is_told: "before it was told where it is",
}


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_what_is_planted_is_found(plant):
    for seed in range(25):
        history = made(seed)
        plant(history, random.Random(seed))
        findings = check(history, Promise(epochs=True))
        assert any(PLANTED[plant] in finding for finding in findings), (seed, findings)


def test_another_epoch_is_found_where_none_was_to_be():
    for seed in range(10):
        findings = check(made(seed, epochs=2), Promise())
        assert findings and all("nothing was to be lost" in finding for finding in findings), findings


def test_an_epoch_that_changes_untold_is_found():
    for seed in range(10):
        history = made(seed, epochs=2)
        records = history.told["reader-1"]
        records[:] = [record for record in records if not (getattr(record, "epoch", None) == history.logs[0].epoch)]
        assert check(history, Promise(epochs=True))


def test_an_epoch_that_comes_back_is_found():
    history = made(3, epochs=2)
    former = history.told["reader-1"][0].epoch
    history.tell(Gap("reader-1", ROOM, "node-1", 1, 0, "epoch", former))
    assert any("which it had left" in finding for finding in check(history, Promise(epochs=True)))


def test_an_acknowledgement_in_an_epoch_that_is_over_is_found():
    history = made(3, epochs=2)
    first = acknowledged(history)[2]
    # It begins when all the others are answered, and gets a number of the first log.
    first.invoked_s, first.answered_s = 1e6, 1e6 + 1
    findings = check(history, Promise(epochs=True))
    assert any("is in epoch" in finding for finding in findings), findings


def test_what_is_in_doubt_may_be_given_or_not():
    for seed in range(20):
        history = made(seed)
        drawn = random.Random(seed)
        for publish in drawn.sample(acknowledged(history), 5):
            publish.outcome, publish.answered_s, publish.id, publish.seq, publish.epoch = IN_DOUBT, None, None, None, None
        assert check(history) == []


def test_gaps_that_are_told_are_right_where_there_may_be_some():
    for seed in range(20):
        history = made(seed)
        tell_a_gap(history, random.Random(seed))
        assert check(history, Promise(gaps=True)) == []


def forked(seed: int) -> History:
    """A reader that was given two events of a server that nobody else heard, and then told of another epoch."""
    history = made(seed, epochs=2)
    former, records = history.told["reader-1"][0].epoch, history.told["reader-1"]
    place = next(index for index, record in enumerate(records) if getattr(record, "epoch", former) != former)
    seq = next((record.seq for record in reversed(records[:place])), 0)
    told = [Delivery("reader-1", ROOM, "node-1", seq + number, f"id-{value}", value) for number, value in ((1, 900), (2, 901))]
    history.publishes += [Publish(value, ROOM, "publisher-0", "node-1", 0.0) for value in (900, 901)]
    if isinstance(records[place], Began):
        records[place].after = (former, seq + 2)
    records[place:place] = told
    return history


def test_a_fork_is_found_unless_it_may_be_and_its_readers_are_told():
    found = 0
    for seed in range(30):
        history = forked(seed)
        assert check(history, Promise(epochs=True, forks=True)) == []
        found += any("to reader-1" in finding or "was not given" in finding for finding in check(history, Promise(epochs=True)))
        # A reader that stays in the epoch was not told.
        history = made(seed)
        renumber_swapped_deliveries(history, random.Random(seed))
        assert check(history, Promise(epochs=True, forks=True))
    assert found > 5, "where the others saw the same numbers"


def lock(holder: str, token: int, invoked_s: float) -> Lock:
    return Lock(holder, ROOM, "title", token, invoked_s, invoked_s + 1)


def test_fencing_numbers_must_grow():
    right = [lock("a", 1, 0), lock("b", 2, 5), lock("a", 7, 9), lock("a", 7, 12)]
    assert check(History(locks=right)) == []
    # Two that overlap may be answered in either order.
    assert check(History(locks=[lock("a", 2, 0), lock("b", 1, 0.5)])) == []
    for wrong in ([lock("a", 1, 0), lock("b", 1, 5)], [lock("a", 2, 0), lock("b", 1, 5)]):
        (finding,) = check(History(locks=wrong))
        assert "was given the lock title" in finding


def test_a_history_is_saved_a_record_a_line(tmp_path):
    history = made()
    history.faults.append((1.5, "Redis is killed"))
    history.save(tmp_path / "history")
    lines = [json.loads(line) for line in (tmp_path / "history").read_text().splitlines()]
    assert lines[0] == {"fault": "Redis is killed", "at_s": 1.5}
    assert len(lines) == 1 + len(history.publishes) + sum(map(len, history.told.values())) + len(NODES)
