"""What publishers and readers of a cluster saw, and a checker of it in the manner of Jepsen.

A run records every publish with its answer, and of every reader all that it was told, in its order. The checker looks at
the records alone: it knows nothing of hubs, nodes or faults. It proves of a run that

- what readers are given was published, and what was refused is given to nobody;
- a number of a room's log (room, epoch, seq) is the same event for everyone, and an event has one number within an epoch;
- numbers follow time: what is published after an answer has a larger number than what was answered;
- every reader, over however many connections, is given the numbers in their order, each once and without a hole, unless it
  was told of a gap or of another epoch;
- at the end every reader and every node is where the log ends, and what was acknowledged in its epoch is in it;
- who is given a lock gets a larger fencing number than all who were given it before.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ACKNOWLEDGED, REFUSED, IN_DOUBT = "acknowledged", "refused", "in doubt"


@dataclass
class Publish:
    """A publish, with all of its attempts where it had a key. `value` is in its event, and in that of no other."""

    value: int
    room: str
    publisher: str
    node: str
    invoked_s: float
    # None: nobody knows when it happened, if it did.
    answered_s: float | None = None
    outcome: str = IN_DOUBT
    id: str | None = None
    seq: int | None = None
    epoch: str | None = None
    error: str | None = None


@dataclass
class Began:
    """A reader's room is told from here on: after `seq`. `after` is the place that the reader asked for, as [epoch, seq]; what
    is between that and `seq` it was told that it misses."""

    reader: str
    room: str
    node: str
    epoch: str
    seq: int
    recovered: bool
    after: tuple[str, int] | None = None


@dataclass
class Delivery:
    """An event that a reader was given."""

    reader: str
    room: str
    node: str
    seq: int
    id: str
    value: int | None


@dataclass
class Gap:
    """A reader was told that it misses these; of another epoch where there is one."""

    reader: str
    room: str
    node: str
    from_seq: int
    to_seq: int
    reason: str
    epoch: str | None = None


@dataclass
class Log:
    """A room's log as a node told it at the end: its events are [seq, id, value]."""

    node: str
    room: str
    epoch: str
    seq: int
    events: list[tuple[int, str, int | None]]


@dataclass
class Lock:
    """A lock that was given to a holder, with its fencing number."""

    holder: str
    room: str
    field: str
    token: int
    invoked_s: float
    answered_s: float


Told = Began | Delivery | Gap


@dataclass
class Promise:
    """What may happen in a run besides what must never.

    `epochs`: a log is lost, or its end, and readers are told of another epoch. `gaps`: readers are told that they miss something.
    `forks`: two servers take themselves for the one that numbers a room; readers of the one that is wrong are told of another
    epoch afterwards, and what they had been given in the former one may be other events than others had.
    """

    epochs: bool = False
    gaps: bool = False
    forks: bool = False


@dataclass
class History:
    """All records of a run."""

    publishes: list[Publish] = field(default_factory=list)
    # Of each reader, in its order.
    told: dict[str, list[Told]] = field(default_factory=lambda: defaultdict(list))
    logs: list[Log] = field(default_factory=list)
    locks: list[Lock] = field(default_factory=list)
    # What was done to the cluster, and when; for people.
    faults: list[tuple[float, str]] = field(default_factory=list)

    def tell(self, record: Told) -> None:
        self.told[record.reader].append(record)

    def save(self, path: Path) -> None:
        """One record a line, for people and other programs."""
        lines = [{"fault": what, "at_s": at} for at, what in self.faults]
        for record in itertools.chain(self.publishes, *self.told.values(), self.logs, self.locks):
            lines.append({"record": type(record).__name__.lower()} | dataclasses.asdict(record))
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def summary(self) -> dict[str, int]:
        """How much there is of what: a proof of nothing is none."""
        counts = {outcome: sum(publish.outcome == outcome for publish in self.publishes) for outcome in (ACKNOWLEDGED, REFUSED, IN_DOUBT)}
        told = list(itertools.chain(*self.told.values()))
        return counts | {
            "deliveries": sum(isinstance(record, Delivery) for record in told),
            "connections": sum(isinstance(record, Began) for record in told),
            "gaps": sum(isinstance(record, Gap) for record in told),
            "epochs": len({(record.room, record.epoch) for record in told if isinstance(record, Began | Gap) and record.epoch}),
            "locks": len(self.locks),
            "faults": len(self.faults),
        }


@dataclass(frozen=True)
class Seen:
    """An event at its place, and who says so."""

    room: str
    epoch: str
    seq: int
    id: str
    value: int | None
    witness: str
    # Whether who saw it was told of another epoch afterwards.
    is_left: bool = False


def check(history: History, promise: Promise | None = None) -> list[str]:
    """All that is wrong with a history; nothing where it is as promised."""
    promise = promise or Promise()
    seen = list(_seen(history))
    return [finding for rule in RULES for finding in rule(history, seen, promise)]


# The readers' paths through the logs.


@dataclass
class Step:
    """A record of a reader, and where it was in the room's log before."""

    record: Told
    epoch: str | None
    seq: int | None


def _steps(records: Iterable[Told]) -> Iterator[Step]:
    """Follows a reader: what it was told, and at which place it was."""
    places: dict[str, tuple[str, int]] = {}
    for record in records:
        epoch, seq = places.get(record.room, (None, None))
        yield Step(record, epoch, seq)
        match record:
            case Began():
                places[record.room] = (record.epoch, record.seq)
            case Gap():
                places[record.room] = (record.epoch or epoch, record.to_seq)
            case Delivery() if epoch is not None:
                places[record.room] = (epoch, record.seq)


def _seen(history: History) -> Iterator[Seen]:
    """Every event that anybody saw with its place."""
    for publish in history.publishes:
        if publish.outcome == ACKNOWLEDGED:
            yield Seen(publish.room, publish.epoch, publish.seq, publish.id, publish.value, f"the answer to {publish.publisher} at {publish.node}")
    for reader, records in history.told.items():
        last = _last_epochs(records)
        for step in _steps(records):
            record = step.record
            if isinstance(record, Delivery) and step.epoch is not None:
                is_left = last[record.room] != step.epoch
                yield Seen(record.room, step.epoch, record.seq, record.id, record.value, f"{reader} at {record.node}", is_left)
    for log in history.logs:
        for seq, event_id, value in log.events:
            yield Seen(log.room, log.epoch, seq, event_id, value, f"the log at {log.node}")


def _last_epochs(records: list[Told]) -> dict[str, str]:
    """The epoch of each room that a reader was told of last."""
    return {record.room: epoch for record in records if (epoch := getattr(record, "epoch", None))}


# The rules: each takes the history, what was seen of it and what was promised, and yields what is wrong.


def what_is_given_was_published(history: History, seen: list[Seen], promise: Promise) -> Iterator[str]:
    published = {publish.value: publish for publish in history.publishes}
    for event in _of_each_value(seen):
        publish = published.get(event.value)
        if publish is None:
            yield f"{event.witness} saw {event.value} in {event.room}, which nobody published"
        elif publish.room != event.room:
            yield f"{event.witness} saw {event.value} in {event.room}; it was published in {publish.room}"
        elif publish.outcome == REFUSED:
            yield f"{event.witness} saw {event.value} in {event.room}; its publisher {publish.publisher} was told {publish.error!r}"


def _of_each_value(seen: list[Seen]) -> Iterable[Seen]:
    """Each event once for each room that it was seen in."""
    return {(event.value, event.room): event for event in seen}.values()


def one_number_is_one_event(_: History, seen: list[Seen], promise: Promise) -> Iterator[str]:
    places: dict[tuple, Seen] = {}
    for event in seen:
        first = places.setdefault((event.room, event.epoch, event.seq), event)
        if promise.forks and first.is_left and not event.is_left:
            # What somebody saw who was not told otherwise is what it is.
            first = places[event.room, event.epoch, event.seq] = event
        if promise.forks and event.is_left:
            continue
        if (first.id, first.value) != (event.id, event.value):
            yield f"{_place(event)} is {first.value} ({first.id}) to {first.witness}, and {event.value} ({event.id}) to {event.witness}"


def one_event_has_one_number(_: History, seen: list[Seen], promise: Promise) -> Iterator[str]:
    numbers: dict[tuple, Seen] = {}
    for event in seen:
        if promise.forks and event.is_left:
            continue
        first = numbers.setdefault((event.room, event.epoch, event.value), event)
        if first.seq != event.seq:
            yield f"{event.value} is at {_place(first)} to {first.witness}, and at {_place(event)} to {event.witness}"


def numbers_follow_time(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    for room, publishes in _acknowledged(history).items():
        answered = sorted(publishes, key=lambda publish: publish.answered_s)
        invoked = sorted(publishes, key=lambda publish: publish.invoked_s)
        # The largest number of each epoch that was answered so far; and the epochs that others came after.
        largest: dict[str, Publish] = {}
        left: dict[str, Publish] = {}
        current: Publish | None = None
        place = 0
        for publish in invoked:
            while place < len(answered) and answered[place].answered_s < publish.invoked_s:
                before = answered[place]
                place += 1
                if before.epoch not in largest or before.seq > largest[before.epoch].seq:
                    largest[before.epoch] = before
                # Only what began after the epoch was known to be another one counts.
                if current and before.epoch != current.epoch and before.invoked_s > current.answered_s:
                    left[current.epoch] = before
                if current is None or before.invoked_s > current.answered_s:
                    current = before
            before = largest.get(publish.epoch)
            if before and before.seq >= publish.seq:
                yield f"{publish.value} in {room} has number {publish.seq}, though {before.value} had {before.seq} before it was published"
            if publish.epoch in left:
                yield f"{publish.value} in {room} is in epoch {publish.epoch}, though {left[publish.epoch].value} was in {left[publish.epoch].epoch} before it was published"


def _acknowledged(history: History) -> dict[str, list[Publish]]:
    rooms: dict[str, list[Publish]] = defaultdict(list)
    for publish in history.publishes:
        if publish.outcome == ACKNOWLEDGED:
            rooms[publish.room].append(publish)
    return rooms


def readers_are_given_all_in_order(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    for reader, records in history.told.items():
        left: dict[str, set[str]] = defaultdict(set)
        for step in _steps(records):
            yield from (f"{reader} at {step.record.node}: {finding}" for finding in _wrong_step(step))
            epoch = getattr(step.record, "epoch", None)
            if epoch and step.epoch and epoch != step.epoch:
                left[step.record.room].add(step.epoch)
            if epoch in left[step.record.room]:
                yield f"{reader} at {step.record.node}: {step.record.room} is back in epoch {epoch}, which it had left"


def _wrong_step(step: Step) -> Iterator[str]:
    record, epoch, seq = step.record, step.epoch, step.seq
    match record:
        case Delivery() if seq is None:
            yield f"was given {record.seq} of {record.room} before it was told where it is"
        case Delivery() if record.seq != seq + 1:
            what = "again, or late" if record.seq <= seq else f"without {seq + 1} to {record.seq - 1}"
            yield f"was given {record.seq} ({record.value}) of {record.room} {what}: it was at {seq}"
        case Gap(epoch=None) if record.from_seq != (seq or 0) + 1:
            yield f"was told of a gap from {record.from_seq} in {record.room}: it was at {seq}"
        case Gap() if record.epoch and record.epoch == epoch:
            yield f"was told that {record.room} begins anew in epoch {epoch}, in which it was"
        case Gap() if record.to_seq < record.from_seq - 1:
            yield f"was told of a gap from {record.from_seq} to {record.to_seq} in {record.room}"
        case Began(after=None) if seq is not None:
            yield f"began anew with {record.room}, though it was at {(epoch, seq)}: the test's own fault"
        case Began() if record.after and record.after != (epoch, seq):
            yield f"asked for {record.room} after {record.after}, though it was at {(epoch, seq)}: the test's own fault"
        case Began() if record.after and record.recovered and record.after != (record.epoch, record.seq):
            yield f"has all of {record.room} since {record.after}, it was told, but begins at {(record.epoch, record.seq)}"
        case Began() if record.after and record.epoch == epoch and record.seq < seq:
            yield f"is given {record.room} again from {record.seq} on, though it was at {seq}"


def all_end_where_the_log_ends(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    ends: dict[str, Log] = {}
    for log in history.logs:
        end = ends.setdefault(log.room, log)
        if (end.epoch, end.seq) != (log.epoch, log.seq):
            yield f"{log.room} ends at {(end.epoch, end.seq)} at {end.node}, and at {(log.epoch, log.seq)} at {log.node}"
        numbers = [seq for seq, _, _ in log.events]
        if numbers != list(range(log.seq - len(numbers) + 1, log.seq + 1)):
            yield f"the log of {log.room} at {log.node} is not whole up to {log.seq}: {_ranges(numbers)}"
    for reader, records in history.told.items():
        places: dict[str, tuple] = {}
        for step in _steps(records):
            record = step.record
            epoch = getattr(record, "epoch", None) or step.epoch
            places[record.room] = (epoch, record.to_seq if isinstance(record, Gap) else record.seq)
        for room, place in places.items():
            if (end := ends.get(room)) and place != (end.epoch, end.seq):
                yield f"{reader} is at {place} of {room} at the end, whose log ends at {(end.epoch, end.seq)}"


def what_was_acknowledged_is_in_the_log(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    """In the log's last epoch: of former ones everybody was told that they are lost."""
    acknowledged = _acknowledged(history)
    for log in history.logs:
        kept = {seq: value for seq, _, value in log.events}
        first = min(kept, default=log.seq + 1)
        for publish in acknowledged.get(log.room, []):
            if publish.epoch == log.epoch and publish.seq >= first and kept.get(publish.seq) != publish.value:
                yield f"{publish.value} was acknowledged as {publish.seq} of {log.room}; the log at {log.node} has {kept.get(publish.seq)} there, and ends at {log.seq}"


def acknowledged_events_reach_every_reader(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    """The same as the rules above together, by another way: what should have come is looked for, not what came looked at."""
    acknowledged = _acknowledged(history)
    for reader, records in history.told.items():
        last = _last_epochs(records)
        given: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        # Numbers of an epoch that the reader must have, and those that it was told it has not.
        spans: dict[tuple[str, str], list[int]] = {}
        missing: dict[tuple[str, str], set[int]] = defaultdict(set)
        for step in _steps(records):
            record = step.record
            epoch = getattr(record, "epoch", None) or step.epoch
            if epoch is None:
                continue
            at = (record.room, epoch)
            upto = record.to_seq if isinstance(record, Gap) else record.seq
            span = spans.setdefault(at, [record.from_seq - 1 if isinstance(record, Gap) else upto, upto])
            span[1] = max(span[1], upto)
            match record:
                case Delivery():
                    given[at][record.value] = record.seq
                case Gap():
                    missing[at].update(range(record.from_seq, record.to_seq + 1))
                case Began() if step.epoch == epoch and not record.recovered:
                    missing[at].update(range(step.seq + 1, record.seq + 1))
        for (room, epoch), (low, high) in spans.items():
            for publish in acknowledged.get(room, []):
                if promise.forks and last[room] != epoch and publish.seq in given[room, epoch].values():
                    # It was given another one with that number, and told of another epoch.
                    continue
                is_due = publish.epoch == epoch and low < publish.seq <= high and publish.seq not in missing[room, epoch]
                if is_due and publish.value not in given[room, epoch]:
                    yield f"{reader} was not given {publish.value}, acknowledged as {publish.seq} of {room} in {epoch}"


def fencing_numbers_grow(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    fields: dict[tuple[str, str], list[Lock]] = defaultdict(list)
    for lock in history.locks:
        fields[lock.room, lock.field].append(lock)
    for (room, name), locks in fields.items():
        for lock in locks:
            for other in locks:
                if other.answered_s < lock.invoked_s and other.token >= lock.token and other.holder != lock.holder:
                    yield f"{lock.holder} was given the lock {name} of {room} with {lock.token}, after {other.holder} was with {other.token}"


def nothing_happens_but_what_was_promised(history: History, _: list[Seen], promise: Promise) -> Iterator[str]:
    for reader, records in history.told.items():
        for step in _steps(records):
            record = step.record
            epoch = getattr(record, "epoch", None)
            is_renewed = bool(step.epoch and epoch and step.epoch != epoch)
            if is_renewed and not promise.epochs:
                yield f"{reader} at {record.node} was told that {record.room} begins anew in {epoch}, after {(step.epoch, step.seq)}: nothing was to be lost"
            is_gap = isinstance(record, Gap) and not record.epoch or isinstance(record, Began) and bool(record.after) and not record.recovered and not is_renewed
            if is_gap and not promise.gaps:
                yield f"{reader} at {record.node} was told that it misses something of {record.room} after {(step.epoch, step.seq)}: {record}"


Rule = Callable[[History, list[Seen], Promise], Iterator[str]]
RULES: list[Rule] = [
    what_is_given_was_published,
    one_number_is_one_event,
    one_event_has_one_number,
    numbers_follow_time,
    readers_are_given_all_in_order,
    all_end_where_the_log_ends,
    what_was_acknowledged_is_in_the_log,
    acknowledged_events_reach_every_reader,
    fencing_numbers_grow,
    nothing_happens_but_what_was_promised,
]


def _place(event: Seen) -> str:
    return f"{event.seq} of {event.room} in {event.epoch}"


def _ranges(numbers: list[int]) -> str:
    """Numbers as people write them: 1-3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs) or "nothing"
