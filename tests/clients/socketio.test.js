// The hub through npm's socket.io-client (PROTOCOL §8): the newest one and 4.0, on polls, on a WebSocket, and from one to
// the other.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { after, afterEach, before, test } from 'node:test';
import { Manager, io as newest } from 'socket.io-client';
import { io as oldest } from 'socket.io-client-4-0';
import WebSocket from 'ws';
import { Hub, admin, token, until } from './hub.js';

const WAIT_MS = 10_000;
const LIBRARIES = { newest, '4.0': oldest };
const MODES = { polling: ['polling'], websocket: ['websocket'], upgrade: ['polling', 'websocket'] };

// What a test started ends with it, however it ends.
const sockets = new Set();
const hubs = new Set();
let hub;
before(async () => {
  hub = await Hub.start();
});
after(() => hub.stop());
afterEach(async () => {
  for (const socket of sockets) {
    // A Manager that has lost its connection would go on trying.
    socket.io?.reconnection(false);
    (socket.io?.engine ?? socket).close();
  }
  sockets.clear();
  for (const own of hubs) await own.stop();
  hubs.clear();
});

/** A hub of the test's own. */
async function start(settings) {
  const own = await Hub.start(settings);
  hubs.add(own);
  return own;
}

let names = 0;
const fresh = (prefix) => `${prefix}-${process.pid}-${names++}`;
const freshRoom = () => `project:${fresh('sio')}`;
const seqs = (events) => events.map(({ seq }) => seq);
const upTo = (count, from = 1) => Array.from({ length: count }, (_, n) => from + n);

/** A client in one namespace, which keeps what arrives. */
class Client {
  constructor(socket) {
    sockets.add(socket);
    this.socket = socket;
    this.inbox = [];
    this.greetings = [];
    socket.onAny((name, ...args) => {
      assert.equal(args.length, 1, `${name} has ${args.length} arguments`);
      const [event] = args;
      assert.match(event.id, /^[0-9a-f]{8}-[0-9a-f]{4}-7/, 'a UUIDv7');
      assert.match(event.timestamp, /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
      if (name === 'connection.established') {
        assert.equal(event.type, 'connection_established');
        this.greetings.push(event.data);
      } else {
        assert.equal(name, event.type);
        this.inbox.push(event);
      }
    });
  }

  /** One that has been let in and greeted. */
  static async join({ io = newest, mode = 'websocket', to = hub, namespace = '/', auth = { token: token() }, ...options } = {}) {
    const socket = io(to.http + namespace, { transports: MODES[mode], forceNew: true, auth, reconnectionDelay: 10, ...options });
    const client = new Client(socket);
    await client.greeted();
    if (mode === 'upgrade') await until(() => socket.io.engine.transport.name === 'websocket', 'an upgrade');
    assert.equal(socket.io.engine.transport.name, mode === 'polling' ? 'polling' : 'websocket');
    return client;
  }

  get greeting() {
    return this.greetings.at(-1);
  }

  get id() {
    return this.greeting.client_id;
  }

  /** Waits for the greeting number `count`. */
  async greeted(count = 1) {
    let refused;
    this.socket.once('connect_error', (error) => (refused = error));
    await until(() => this.greetings.length >= count || refused, 'a greeting');
    if (this.greetings.length < count) throw refused;
    assert.equal(this.socket.connected, true);
  }

  /** The next message of the kind; others stay in the inbox. */
  async next(wanted) {
    const fits = typeof wanted === 'string' ? ({ type }) => type === wanted : wanted;
    const at = () => this.inbox.findIndex(fits) + 1;
    return this.inbox.splice((await until(at, () => `${wanted}; there is ${JSON.stringify(this.inbox)}`)) - 1, 1)[0];
  }

  /** The next events of a room. */
  async events(room, count) {
    const of = () => this.inbox.filter((event) => event.room === room);
    await until(() => of().length >= count, () => `${count} events of ${room}; there are ${JSON.stringify(seqs(of()))}`);
    const taken = of();
    this.inbox = this.inbox.filter((event) => event.room !== room);
    return taken;
  }

  /** Emits, and waits for the acknowledgement's only argument, an error included. `before` is how much had come until then. */
  ask(name, ...args) {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`${name} was not acknowledged`)), WAIT_MS);
      this.socket.emit(name, ...args, (...answer) => {
        clearTimeout(timer);
        assert.equal(answer.length, 1);
        this.before = this.inbox.length;
        resolve(answer[0]);
      });
    });
  }

  /** Emits a command that must succeed; its answer's data. */
  async done(name, data) {
    const answer = await this.ask(name, data);
    assert.notEqual(answer.type, 'error', JSON.stringify(answer));
    return answer.data;
  }

  /** Emits a command that must fail; the error. */
  async refused(name, ...args) {
    const answer = await this.ask(name, ...args);
    assert.equal(answer.type, 'error', JSON.stringify(answer));
    assert.ok(answer.data.message);
    return answer.data;
  }

  /** All that came up to the answer of a ping sent now. */
  async settled() {
    await this.done('ping', {});
    return this.inbox.splice(0);
  }

  /** Waits for the end of its connection. */
  async disconnected() {
    if (this.socket.connected) await heard(this.socket, 'disconnect');
  }

}

/** The next event of that name. Not `once` of node:events, for which an event called `error` is a failure. */
const heard = (socket, name) => {
  const told = [];
  socket.once(name, (what) => told.push(what));
  return until(() => told.length, name).then(() => told[0]);
};

/** What a client is told that is not let in. */
async function turnedAway({ io = newest, mode = 'websocket', to = hub, namespace = '/', ...options }) {
  const socket = io(to.http + namespace, { transports: MODES[mode], forceNew: true, ...options });
  sockets.add(socket);
  return { socket, error: await heard(socket, 'connect_error') };
}

const FIELD = { field: 'title', ttl_s: 60 };
// Every command of PROTOCOL §4: its data, its answer's type, and what has to be true of the answer's data.
const COMMANDS = [
  ['ping', () => ({ a: [1, 'ü', null] }), 'pong', (data) => assert.deepEqual(data, { a: [1, 'ü', null] })],
  ['subscribe', ({ room }) => ({ room }), 'subscribed', (data, { room }) => assert.deepEqual([data.room, data.seq], [room, 0])],
  ['publish', ({ room }) => ({ room, type: 'n', data: { n: 1 } }), 'published', (data, { room }) => assert.deepEqual([data.room, data.seq, data.duplicate], [room, 1, false])],
  ['history', ({ room }) => ({ room, limit: 5 }), 'history', (data) => assert.deepEqual([seqs(data.events), data.more], [[1], false])],
  ['ack', ({ room }) => ({ room, seq: 1 }), undefined],
  ['presence', ({ room }) => ({ room }), 'presence', (data, { client }) => assert.deepEqual([data.count, data.members[0].client_id], [1, client.id])],
  ['metadata', () => ({ set: { tab: 'quotes' } }), 'metadata', (data) => assert.deepEqual(data, { tab: 'quotes' })],
  ['lock.acquire', ({ room }) => ({ room, ...FIELD }), 'lock.acquired', (data, told) => assert.ok((told.lock = data.token) > 0)],
  ['lock.renew', ({ room, lock }) => ({ room, ...FIELD, token: lock }), 'lock.renewed', (data, { lock }) => assert.equal(data.token, lock)],
  ['lock.release', ({ room, lock }) => ({ room, field: 'title', token: lock }), 'lock.released', (data) => assert.equal(data.field, 'title')],
  ['send', ({ client }) => ({ to: { client: client.id }, type: 'hello', data: 1 }), 'sent', (data) => assert.deepEqual(data, { delivered: 1, queued: 0 })],
  ['message', () => ({ question: 6 }), 'accepted', () => {}],
  ['rooms', () => undefined, 'rooms', (data, { room }) => assert.ok(data.rooms.some((one) => one === room || one.room === room))],
  ['auth.refresh', () => ({ token: token('alice', { ttl_s: 1200 }) }), 'auth.refreshed', (data) => assert.ok(Date.parse(data.expires_at) > Date.now() + 900_000)],
  ['unsubscribe', ({ room }) => ({ room }), 'unsubscribed', (data, { room }) => assert.equal(data.room, room)],
];

for (const [library, io] of Object.entries(LIBRARIES)) {
  for (const mode of Object.keys(MODES)) {
    const name = (sentence) => `${library}, ${mode}: ${sentence}`;
    const join = (options) => Client.join({ io, mode, ...options });

    test(name('a client is greeted and is in its own rooms'), async () => {
      const [user, client_id, session_id] = [fresh('user'), fresh('client'), fresh('session')];
      const client = await join({ auth: { token: token(user), client_id, session_id } });
      const { greeting } = client;
      assert.deepEqual([greeting.client_id, greeting.session_id, greeting.user_id], [client_id, session_id, user]);
      assert.deepEqual(greeting.rooms.toSorted(), [`session:${session_id}`, `user:${user}`, 'global'].toSorted());
      assert.ok(greeting.resume.token && greeting.server.name === 'ringhub');
      assert.ok(client.socket.id);
      assert.notEqual(client.socket.id, client.socket.io.engine.id, 'whoever knows an engine may speak for it');
      await hub.publish(`user:${user}`, 'n', 'for the user');
      await hub.api('POST', `/api/v1/sessions/${session_id}/messages`, { type: 'n', data: 'for the session' });
      await hub.publish('global', 'n', fresh('for all'));
      assert.equal((await client.next(({ room }) => room === `user:${user}`)).data, 'for the user');
      assert.equal((await client.next(({ room }) => room === `session:${session_id}`)).data, 'for the session');
      await client.next(({ room }) => room === 'global');
      const seen = await hub.connection(client_id);
      assert.match(seen.protocol, /^socketio/);
    });

    test(name('every command is answered to its acknowledgement'), async () => {
      const client = await join();
      const told = { client, room: freshRoom() };
      for (const [command, data, type, check] of COMMANDS) {
        const given = data(told);
        if (type === undefined) {
          client.socket.emit(command, given);
          continue;
        }
        const answer = await (given === undefined ? client.ask(command) : client.ask(command, given));
        assert.equal(answer.type, type, JSON.stringify(answer));
        assert.ok(answer.id && answer.timestamp, JSON.stringify(answer));
        check(answer.data, told);
      }
      const kinds = (await client.settled()).map(({ type }) => type);
      assert.deepEqual(kinds, ['n', 'lock.acquired', 'lock.released', 'hello'], 'answers are events only where they are errors');
    });

    test(name('events arrive under their type, in order, as objects of one shape for everybody'), async () => {
      const room = freshRoom();
      const [one, two] = await Promise.all([join(), join({ auth: { token: token('bob') } })]);
      for (const client of [one, two]) await client.done('subscribe', { room });
      const heard = [];
      one.socket.on('note.added', (event) => heard.push(event.data.n));
      for (let n = 0; n < 100; n++) one.socket.emit('publish', { room, type: 'note.added', data: { n, text: 'ünï \u2028 "\\' } });
      const [first, second] = [await one.events(room, 100), await two.events(room, 100)];
      assert.deepEqual(first, second);
      assert.deepEqual(seqs(first), upTo(100));
      assert.deepEqual(heard, upTo(100, 0));
      assert.deepEqual(Object.keys(first[0]).toSorted(), ['data', 'id', 'room', 'seq', 'timestamp', 'type']);
      assert.equal(first[7].data.text, 'ünï \u2028 "\\');
    });

    test(name('what is past comes after the answer and before what is live'), async () => {
      const room = freshRoom();
      for (let n = 1; n <= 5; n++) await hub.publish(room, 'n', n);
      const client = await join();
      const live = hub.publish(room, 'n', 6);
      const answer = await client.done('subscribe', { room, since: { seq: 2 } });
      assert.deepEqual([answer.recovered, answer.missed], [true, 0]);
      assert.equal(client.before, 0, 'the answer comes first');
      await live;
      assert.deepEqual(seqs(await client.events(room, 4)), [3, 4, 5, 6]);
      const again = await client.done('history', { room, since: { last: 2 } });
      assert.deepEqual(seqs(again.events), [5, 6]);
    });

    test(name('errors are acknowledged, or told as an event where nobody waits'), async () => {
      const client = await join();
      assert.equal((await client.refused('subscribe', { room: 'admin:secrets' })).code, 'forbidden');
      assert.equal((await client.refused('subscribe', { room: 'nonsense' })).code, 'bad_room');
      assert.equal((await client.refused('subscribe')).code, 'bad_command');
      client.socket.emit('subscribe', { room: 'admin:secrets' });
      const error = await client.next('error');
      assert.equal(error.data.code, 'forbidden');
      client.socket.emit('rooms');
      assert.deepEqual(await client.settled(), [], 'without an acknowledgement only errors are told');
    });

    test(name('any other event is a message for the backend, Buffers included'), async () => {
      const session_id = fresh('session');
      const receive = () => hub.api('GET', `/api/v1/sessions/${session_id}/messages?timeout_s=5`);
      const client = await join({ auth: { token: token(), session_id } });
      assert.equal((await client.ask('message', { question: 6 })).type, 'accepted');
      assert.deepEqual((await receive()).data, { question: 6 });
      client.socket.emit('typing', { field: 'title' });
      assert.deepEqual((await receive()).data, { type: 'typing', data: { field: 'title' } });
      client.socket.emit('upload', 'name', Buffer.from([1, 2, 3]), { more: [Buffer.from('ü')] });
      assert.deepEqual((await receive()).data, { type: 'upload', data: ['name', 'AQID', { more: ['w7w='] }] });
      assert.equal((await client.ask('message', Buffer.from([0xff, 0, 1]))).type, 'accepted');
      assert.equal((await receive()).data, Buffer.from([0xff, 0, 1]).toString('base64'));
    });

    test(name('Buffers in what is published reach everybody as base64'), async () => {
      const room = freshRoom();
      const client = await join();
      await client.done('subscribe', { room });
      const bytes = Buffer.from(Array.from({ length: 3000 }, (_, n) => n % 256));
      await client.done('publish', { room, type: 'n', data: { a: bytes, b: [new Uint8Array([7])] } });
      const [event] = await client.events(room, 1);
      assert.deepEqual(event.data, { a: bytes.toString('base64'), b: ['Bw=='] });
    });

    test(name('messages near the limit pass, larger ones end the connection, which comes back'), async () => {
      const room = freshRoom();
      const client = await join();
      await client.done('subscribe', { room });
      const limit = client.greeting.limits.message_bytes_max;
      const text = 'x'.repeat(limit - 1000);
      await client.done('publish', { room, type: 'n', data: text });
      assert.equal((await client.events(room, 1))[0].data.length, text.length);
      const disconnected = heard(client.socket, 'disconnect');
      client.socket.emit('publish', { room, type: 'n', data: 'x'.repeat(limit + 1) });
      assert.match(await disconnected, /^transport (close|error)$/);
      await client.greeted(2);
      assert.deepEqual((await client.done('history', { room })).events.length, 1);
    });

    test(name('a client whose token is refused may try again on the same engine'), async () => {
      const manager = new io.Manager(hub.http, { transports: MODES[mode], autoConnect: false });
      // The library closes an engine that no socket uses. This one has a token; without one of its own the other would share it.
      const other = new Client(manager.socket('/ws', { auth: { token: token() } }));
      other.socket.connect();
      await other.greeted();
      const engine = manager.engine.id;
      const client = new Client(manager.socket('/'));
      for (const bad of ['nonsense', token('alice', { ttl_s: -3600 }), token('alice', { secret: 'another' })]) {
        client.socket.disconnect();
        client.socket.auth = { token: bad };
        client.socket.connect();
        const error = await heard(client.socket, 'connect_error');
        assert.ok(error.message.length > 3, error.message);
        assert.equal(error.data.code, 'unauthorized', JSON.stringify(error.data));
        assert.equal(client.socket.connected, false);
        client.socket.auth = { token: token() };
        client.socket.connect();
        await client.greeted(client.greetings.length + 1);
        assert.equal(manager.engine.id, engine);
      }
    });

    test(name('a client without a token is refused, and let in once it has one'), async () => {
      const { socket, error } = await turnedAway({ io, mode });
      assert.equal(error.data.code, 'unauthorized', JSON.stringify(error.data));
      socket.auth = { token: token() };
      const client = new Client(socket);
      socket.connect();
      await client.greeted();
    });

    test(name('an administrator disconnects a client for good'), async () => {
      const client = await join();
      const disconnected = heard(client.socket, 'disconnect');
      await hub.api('DELETE', `/api/v1/connections/${client.id}`);
      assert.equal(await disconnected, 'io server disconnect');
      await until(async () => !(await hub.connection(client.id)), 'it is gone');
      assert.equal(client.socket.io._reconnecting ?? false, false, 'the library does not come back by itself');
    });
  }
}

test('emitWithAck and its timeout', async () => {
  const client = await Client.join();
  const answer = await client.socket.timeout(WAIT_MS).emitWithAck('ping', { n: 1 });
  assert.deepEqual([answer.type, answer.data], ['pong', { n: 1 }]);
  // Nothing answers this one: the connection is gone when it is emitted.
  client.socket.io.reconnection(false);
  client.socket.io.engine.close();
  await client.disconnected();
  await assert.rejects(client.socket.timeout(50).emitWithAck('ping', {}), /timed out/);
});

test('volatile events reach the hub, or are let go while there is no connection', async () => {
  const session_id = fresh('session');
  const receive = (timeout_s) => hub.api('GET', `/api/v1/sessions/${session_id}/messages?timeout_s=${timeout_s}`);
  const client = new Client(newest(hub.http, { forceNew: true, autoConnect: false, auth: { token: token(), session_id } }));
  client.socket.volatile.emit('message', 'lost');
  client.socket.emit('message', 'kept');
  client.socket.connect();
  await client.greeted();
  assert.equal((await receive(5)).data, 'kept');
  await client.done('ping');
  client.socket.volatile.emit('message', 'first');
  assert.equal((await receive(5)).data, 'first');
  assert.equal(await receive(0), '');
});

test('a token is taken from the header, the query, and the cookie', async () => {
  const own = await start({ 'auth.cookie': 'access' });
  for (const mode of Object.keys(MODES)) {
    for (const options of [
      { extraHeaders: { Authorization: `Bearer ${token('hank')}` } },
      { query: { token: token('hank') } },
      { extraHeaders: { Cookie: `other=1; access=${token('hank')}` } },
      { auth: (answer) => setTimeout(() => answer({ token: token('hank') }), 5) },
    ]) {
      const client = await Client.join({ mode, to: own, auth: {}, ...options });
      assert.equal(client.greeting.user_id, 'hank', JSON.stringify([mode, options]));
    }
  }
});

test('refusals say why in their data', async () => {
  const refused = async (options) => {
    const { socket, error } = await turnedAway(options);
    return [error.data?.code, error.message];
  };
  const [forbidden] = await refused({ auth: { token: token('alice', { permissions: ['project:*:read'] }) } });
  assert.equal(forbidden, 'forbidden');
  const client_id = fresh('client');
  const client = await Client.join({ auth: { token: token(), client_id } });
  const [taken] = await refused({ auth: { token: token(), client_id } });
  assert.equal(taken, 'conflict');
  const [, message] = await refused({ namespace: '/nowhere', auth: { token: token() } });
  assert.equal(message, 'Invalid namespace');
  const [other] = await refused({ to: hub, auth: { token: token(), client_id: 'no spaces' } });
  assert.equal(other, 'bad_request');
});

test('namespaces share a connection, and events arrive where their room was subscribed to', async () => {
  for (const mode of Object.keys(MODES)) {
    const manager = new Manager(hub.http, { transports: MODES[mode] });
    const auth = { token: token() };
    const [main, other] = ['/', '/ws'].map((namespace) => new Client(manager.socket(namespace, { auth })));
    for (const client of [main, other]) client.socket.connect();
    for (const client of [main, other]) await client.greeted();
    const [here, there] = [freshRoom(), freshRoom()];
    await main.done('subscribe', { room: here });
    await other.done('subscribe', { room: there });
    for (let n = 0; n < 20; n++) {
      await hub.publish(here, 'n', n);
      await hub.publish(there, 'n', n);
    }
    assert.deepEqual(seqs(await main.events(here, 20)), upTo(20), mode);
    assert.deepEqual(seqs(await other.events(there, 20)), upTo(20), mode);
    for (const client of [main, other]) {
      assert.deepEqual((await client.settled()).filter(({ room }) => room.startsWith('project:')), [], mode);
    }
    // One that leaves takes its rooms along, and the other goes on.
    other.socket.disconnect();
    await main.done('ping');
    await hub.publish(here, 'n', 'still');
    assert.equal((await main.events(here, 1))[0].data, 'still');
    const { rooms } = await main.done('rooms');
    assert.equal(JSON.stringify(rooms).includes(there), false);
    other.socket.connect();
    await other.greeted(2);
  }
});

test('presence and locks are shared with native clients', async () => {
  const room = freshRoom();
  const one = await Client.join();
  const native = await Native.join();
  await one.done('subscribe', { room });
  await native.ask('subscribe', { room });
  await one.done('metadata', { set: { tab: 1 } });
  const { count, members } = await one.done('presence', { room });
  assert.equal(count, 2);
  assert.deepEqual(new Set(members.map(({ client_id }) => client_id)), new Set([one.id, native.greeting.client_id]));
  assert.deepEqual(members.find(({ client_id }) => client_id === one.id).metadata, { tab: 1 });
  const lock = await one.done('lock.acquire', { room, ...FIELD });
  assert.equal((await native.ask('lock.acquire', { room, ...FIELD })).data.code, 'lock_held');
  assert.equal((await native.next((message) => message.type === 'lock.acquired')).data.client_id, one.id);
  await one.done('lock.release', { room, field: 'title', token: lock.token });
  assert.equal((await native.ask('lock.acquire', { room, ...FIELD })).type, 'lock.acquired');
  assert.equal((await one.refused('lock.acquire', { room, ...FIELD })).code, 'lock_held');
});

test('filters and types choose the events of a subscription', async () => {
  const room = freshRoom();
  const client = await Client.join();
  await client.done('subscribe', { room, types: ['wanted'], filters: { n: { min: 5 } } });
  for (let n = 0; n < 10; n++) {
    await hub.publish(room, 'wanted', { n });
    await hub.publish(room, 'other', { n });
  }
  assert.deepEqual((await client.events(room, 5)).map(({ data }) => data.n), [5, 6, 7, 8, 9]);
});

// Connections that end, and what is missed meanwhile.

/** Cuts a client off as a pulled plug does. */
function cutOff({ socket }) {
  const { engine } = socket.io;
  if (engine.transport.name === 'websocket') engine.transport.ws._socket.destroy();
  else engine.close();
}

for (const mode of Object.keys(MODES)) {
  test(`${mode}: a client that was cut off is recovered with all that it missed`, async () => {
    const room = freshRoom();
    const client = await Client.join({ mode });
    await client.done('subscribe', { room });
    await hub.publish(room, 'n', 0);
    await client.events(room, 1);
    await client.done('metadata', { set: { kept: true } });
    for (let round = 0; round < 3; round++) {
      client.socket.io.reconnection(false);
      cutOff(client);
      await client.disconnected();
      await until(async () => !(await hub.api('GET', `/api/v1/sessions/${client.greeting.session_id}`)).connected, 'the hub has noticed');
      for (let n = 0; n < 50; n++) await hub.publish(room, 'n', n);
      client.socket.io.reconnection(true);
      client.socket.connect();
      await client.greeted(round + 2);
      assert.equal(client.socket.recovered, true);
      assert.deepEqual(seqs(await client.events(room, 50)), upTo(50, 2 + round * 50));
    }
    await hub.publish(room, 'n', 'live');
    assert.equal((await client.events(room, 1))[0].seq, 152);
    assert.deepEqual(await client.done('metadata', {}), { kept: true });
  });
}

test('what a client has not acknowledged comes again, although it was written to the connection that broke', async () => {
  const room = freshRoom();
  const client = await Client.join();
  await client.done('subscribe', { room });
  for (let n = 0; n < 3; n++) await hub.publish(room, 'n', n);
  await client.events(room, 3);
  client.socket.emit('ack', { room, seq: 2 });
  await client.done('ping');
  client.socket.io.engine.transport.ws.onmessage = () => {};
  for (let n = 3; n < 20; n++) await hub.publish(room, 'n', n);
  // All of it has arrived, as far as the hub can see.
  await until(async () => (await hub.connection(client.id)).queue_bytes === 0, 'the hub has written it');
  cutOff(client);
  await client.greeted(2);
  assert.equal(client.socket.recovered, true);
  assert.deepEqual(seqs(await client.events(room, 18)), upTo(18, 3));
});

test('a session is resumed by the command, with cursors', async () => {
  const room = freshRoom();
  const first = await Client.join();
  const { epoch } = await first.done('subscribe', { room });
  for (let n = 0; n < 5; n++) await hub.publish(room, 'n', n);
  await first.events(room, 5);
  first.socket.io.reconnection(false);
  cutOff(first);
  await first.disconnected();
  await hub.publish(room, 'n', 5);
  const second = await Client.join();
  const { session_id, resume } = first.greeting;
  const answer = await second.done('resume', { session_id, token: resume.token, cursors: { [room]: { seq: 3, epoch } } });
  const result = answer.results.find((one) => one.room === room);
  assert.deepEqual([result.recovered, result.replayed, result.missed], [true, 3, 0]);
  assert.deepEqual(seqs(await second.events(room, 3)), [4, 5, 6]);
});

test('clients come back by themselves to a hub that was started anew', async () => {
  for (const signal of ['SIGTERM', 'SIGKILL']) {
    const own = await start();
    const clients = await Promise.all(Object.keys(MODES).map((mode) => Client.join({ mode, to: own, auth: { token: token(mode) }, reconnectionDelayMax: 100 })));
    const reasons = [];
    for (const { socket } of clients) socket.on('disconnect', (reason) => reasons.push(reason));
    await own.stop(signal);
    if (signal === 'SIGTERM') for (const client of clients) assert.ok((await client.next('draining')).data.reconnect_after_ms >= 0);
    await until(() => reasons.length === clients.length, 'all were disconnected');
    for (const reason of reasons) assert.match(reason, /^transport (close|error)$/);
    await own.again();
    for (const client of clients) {
      await client.greeted(2);
      assert.equal(client.socket.recovered, false, 'another hub knows nothing of its sessions');
      const room = freshRoom();
      await client.done('subscribe', { room });
      await own.publish(room, 'n', 1);
      await client.events(room, 1);
    }
  }
});

test('a token that ends is announced, and ends the connection where it is not refreshed', async () => {
  const own = await start({ 'auth.leeway_s': 0, 'auth.expiring_s': 60 });
  const [kept, ended] = await Promise.all(['kept', 'ended'].map((sub) => Client.join({ to: own, auth: { token: token(sub, { ttl_s: 3 }) } })));
  for (const client of [kept, ended]) assert.ok((await client.next('auth.expiring')).data.expires_at);
  await kept.done('auth.refresh', { token: token('kept') });
  await ended.disconnected();
  const error = await heard(ended.socket, 'connect_error');
  assert.equal(error.data.code, 'unauthorized', 'the library came back with the old token');
  await kept.done('ping');
});

// Limits.

test('who sends too fast is told, and when to go on', async () => {
  const own = await start({ 'limits.messages_per_s': 10, 'limits.messages_burst': 20 });
  for (const mode of ['polling', 'websocket']) {
    const client = await Client.join({ mode, to: own });
    const answers = await Promise.all(upTo(40).map((n) => client.ask('ping', n)));
    const refused = answers.filter(({ type }) => type === 'error');
    assert.ok(refused.length >= 10 && refused.length <= 25, `${refused.length} of 40 were refused`);
    for (const { data } of refused) {
      assert.equal(data.code, 'rate_limited');
      assert.ok((data.retry_after_ms ?? data.details.retry_after_ms) > 0, JSON.stringify(data));
    }
  }
});

test('ten bad messages within a minute end the connection', async () => {
  for (const mode of ['polling', 'websocket']) {
    const client = await Client.join({ mode, reconnection: false });
    const disconnected = heard(client.socket, 'disconnect');
    for (let n = 0; n < 9; n++) assert.equal((await client.refused('subscribe', n)).code, 'bad_command');
    assert.equal(client.socket.connected, true);
    client.socket.emit('subscribe', 10);
    await disconnected;
  }
});

test('a client that does not answer pings is let go, and one that is idle is kept', async () => {
  const own = await start({ 'socketio.ping_interval_ms': 200, 'socketio.ping_timeout_ms': 300 });
  for (const mode of Object.keys(MODES)) {
    const idle = await Client.join({ mode, to: own, reconnection: false });
    const engine = idle.socket.io.engine;
    let pings = 0;
    engine.on('ping', () => pings++);
    await until(() => pings >= 4, 'pings');
    assert.equal(idle.socket.connected, true);
    // Its answers to pings stay away from here on.
    const { sendPacket } = engine;
    const write = engine._sendPacket ? '_sendPacket' : 'sendPacket';
    const really = engine[write] ?? sendPacket;
    engine[write] = function (type, ...rest) {
      return type === 'pong' ? undefined : really.call(this, type, ...rest);
    };
    await until(async () => !(await own.connection(idle.id)), `the hub has let the ${mode} go`);
  }
});

// HTTP.

const opening = (to, headers, method = 'GET') => fetch(`${to.http}/socket.io/?EIO=4&transport=polling`, { method, headers });

test('pages of allowed origins may poll, with their cookies where they are named', async () => {
  const own = await start({ 'cors.origins': ['https://app.example.com', 'https://*.example.org'] });
  for (const origin of ['https://app.example.com', 'https://a.b.example.org']) {
    const asked = { Origin: origin, 'Access-Control-Request-Method': 'POST', 'Access-Control-Request-Headers': 'content-type,authorization' };
    const preflight = await opening(own, asked, 'OPTIONS');
    assert.ok([200, 204].includes(preflight.status), `${preflight.status}`);
    assert.equal(preflight.headers.get('access-control-allow-origin'), origin);
    assert.equal(preflight.headers.get('access-control-allow-credentials'), 'true');
    assert.match(preflight.headers.get('access-control-allow-methods'), /\bPOST\b/);
    assert.match(preflight.headers.get('access-control-allow-headers'), /content-type/i);
    assert.match(preflight.headers.get('access-control-allow-headers'), /authorization/i);
    const opened = await opening(own, { Origin: origin });
    const { sid } = JSON.parse((await opened.text()).slice(1));
    const target = `${own.http}/socket.io/?EIO=4&transport=polling&sid=`;
    const posted = await fetch(target + sid, { method: 'POST', headers: { Origin: origin }, body: `40${JSON.stringify({ token: token() })}` });
    assert.equal(await posted.text(), 'ok');
    const polled = await fetch(target + sid, { headers: { Origin: origin } });
    assert.match(await polled.text(), /^40\{"sid"/);
    const unknown = await fetch(`${target}unknown`, { headers: { Origin: origin } });
    assert.equal(unknown.status, 400);
    for (const answer of [opened, posted, polled, unknown]) {
      assert.equal(answer.headers.get('access-control-allow-origin'), origin);
      assert.equal(answer.headers.get('access-control-allow-credentials'), 'true');
      assert.match(answer.headers.get('vary') ?? '', /origin/i);
    }
  }
  const foreign = await opening(own, { Origin: 'https://evil.example', 'Access-Control-Request-Method': 'POST' }, 'OPTIONS');
  assert.equal(foreign.headers.get('access-control-allow-origin'), null);
  assert.equal((await opening(own, { Origin: 'https://evil.example' })).headers.get('access-control-allow-origin'), null);
});

test('any origin may poll, without cookies, where all are allowed', async () => {
  const own = await start({ 'cors.origins': ['*'] });
  const answer = await opening(own, { Origin: 'https://any.example' });
  assert.match(answer.headers.get('access-control-allow-origin'), /^(\*|https:\/\/any\.example)$/);
  assert.equal(answer.headers.get('access-control-allow-credentials'), null);
});

test('origins that may not connect are refused on both transports', async () => {
  const own = await start({ 'auth.origins': ['https://app.example.com'] });
  for (const mode of ['polling', 'websocket']) {
    const from = (Origin) => ({ mode, to: own, auth: { token: token() }, extraHeaders: { Origin } });
    const client = await Client.join(from('https://app.example.com'));
    const { socket } = await turnedAway({ ...from('https://evil.example'), reconnection: false });
    assert.equal(socket.connected, false);
  }
  assert.equal((await opening(own, { Origin: 'https://evil.example' })).status, 403);
});

test('a cookie with the session is set for balancers, where it is asked for', async () => {
  const own = await start({ 'socketio.cookie': 'io' });
  const answer = await opening(own, {});
  const { sid } = JSON.parse((await answer.text()).slice(1));
  const [pair, ...attributes] = answer.headers.get('set-cookie').split('; ');
  assert.equal(pair, `io=${sid}`);
  assert.ok(attributes.includes('HttpOnly') && attributes.some((one) => /^SameSite=/i.test(one)), attributes.join());
  assert.equal((await opening(hub, {})).headers.get('set-cookie'), null);
});

test('path and namespaces are options', async () => {
  const own = await start({ 'socketio.path': '/realtime/', 'socketio.namespaces': ['/only'] });
  const client = await Client.join({ to: own, namespace: '/only', path: '/realtime' });
  const { error, socket } = await turnedAway({ to: own, path: '/realtime', auth: { token: token() } });
  assert.equal(error.message, 'Invalid namespace');
  assert.equal((await opening(own, {})).status, 404);
});

// One room, every kind of client.

/** A native client. */
class Native {
  static async join() {
    const native = new Native();
    native.inbox = [];
    native.socket = new WebSocket(hub.url, { headers: { Authorization: `Bearer ${token()}` } });
    sockets.add(native.socket);
    native.socket.on('message', (bytes) => native.inbox.push(JSON.parse(bytes)));
    native.greeting = (await native.next(({ type }) => type === 'connection_established')).data;
    return native;
  }

  async next(wanted) {
    const at = () => this.inbox.findIndex(wanted) + 1;
    return this.inbox.splice((await until(at, 'a native message')) - 1, 1)[0];
  }

  ask(type, data) {
    const id = fresh('q');
    this.socket.send(JSON.stringify({ type, id, data }));
    return this.next(({ ref }) => ref === id);
  }
}

test('every kind of client sees the same numbers in a room under load, over reconnects', async () => {
  const COUNT = 4000;
  const BATCH = 50;
  const room = freshRoom();
  const native = await Native.join();
  const { data: start } = await native.ask('subscribe', { room });
  const stream = new EventSource(`${hub.http}/events?room=${room}&token=${token()}`);
  sockets.add(stream);
  const streamed = [];
  stream.onmessage = ({ data }) => streamed.push(JSON.parse(data));
  await once(stream, 'open');

  // As the documentation of socket.io has it: a client that is not recovered asks for what it missed.
  const clients = [];
  for (const [library, io] of Object.entries(LIBRARIES)) {
    for (const mode of Object.keys(MODES)) {
      const client = await Client.join({ io, mode, reconnectionDelayMax: 50 });
      const member = { name: `${library} ${mode}`, client, recoveries: 0, others: 0, last: 0 };
      client.socket.on('n', ({ room: of, seq }) => {
        if (of !== room) return;
        member.last = seq;
        if (seq % 10 === 0) client.socket.emit('ack', { room, seq });
      });
      await client.done('subscribe', { room });
      client.socket.on('connect', async () => {
        if (client.socket.recovered) return member.recoveries++;
        member.others++;
        await client.done('subscribe', { room, since: { seq: member.last, epoch: start.epoch } });
      });
      clients.push(member);
    }
  }

  for (let n = 0; n < COUNT; n += BATCH) {
    await hub.api('POST', '/api/v1/publish', upTo(BATCH, n).map((data) => ({ room, type: 'n', data })));
    const member = clients[(n / BATCH) % clients.length];
    // One of them is away while the next batches are published. It has acknowledged all that it has.
    await until(() => member.last === n + BATCH, `${member.name} has all so far`);
    member.client.socket.io.engine.close();
    await member.client.disconnected();
  }
  const all = upTo(COUNT);
  await until(() => streamed.length >= COUNT && native.inbox.filter((one) => one.room === room).length >= COUNT, 'native and streamed events');
  assert.deepEqual(seqs(native.inbox.filter((one) => one.room === room)), all);
  assert.deepEqual(seqs(streamed), all);
  for (const { name, client, recoveries, others } of clients) {
    await until(() => client.inbox.some(({ seq, room: of }) => of === room && seq === COUNT), `${name} has the last`);
    const seen = seqs(client.inbox.filter((one) => one.room === room));
    const at = seen.findIndex((seq, place) => seq !== place + 1);
    assert.equal(at, -1, `${name} got ${seen[at]} after ${seen[at - 1]}`);
    assert.ok(recoveries + others >= 5, `${name} came back ${recoveries} and ${others} times`);
    if (name.startsWith('newest')) assert.ok(recoveries > 0, `${name} was never recovered`);
  }
});
