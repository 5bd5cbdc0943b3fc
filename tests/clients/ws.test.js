// The hub through npm's ws: started by hub.py, which puts the address and tokens into the environment.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { test } from 'node:test';
import { decode, encode } from '@msgpack/msgpack';
import WebSocket from 'ws';

const { HUB_URL: url, HUB_HTTP_URL: http, HUB_TOKEN: token, HUB_ADMIN_TOKEN: admin } = process.env;
const WAIT_MS = 10_000;
let rooms = 0;
const freshRoom = () => `project:js-${process.pid}-${rooms++}`;

/** A client that keeps what arrives and lets tests wait for what they want of it. */
class Peer {
  constructor(path = '/ws', { protocols = [], jwt = token, ...options } = {}) {
    this.inbox = [];
    this.texts = [];
    this.waiting = new Set();
    this.socket = new WebSocket(url + path, protocols, { headers: { Authorization: `Bearer ${jwt}` }, ...options });
    this.socket.on('message', (bytes, binary) => {
      assert.equal(binary, false, 'a native client got a binary message');
      this.texts.push(bytes.toString());
      this.inbox.push(JSON.parse(bytes));
      for (const look of this.waiting) look();
    });
    this.closed = once(this.socket, 'close').then(([code, reason]) => ({ code, reason: reason.toString() }));
    this.closed.catch(() => {});
  }

  static async join(path, options) {
    const peer = new Peer(path, options);
    await once(peer.socket, 'open');
    peer.greeting = (await peer.next((m) => m.type === 'connection_established')).data;
    return peer;
  }

  next(wanted) {
    return new Promise((resolve, reject) => {
      const look = () => {
        const at = this.inbox.findIndex(wanted);
        if (at < 0) return false;
        clearTimeout(timer);
        this.waiting.delete(look);
        resolve(this.inbox.splice(at, 1)[0]);
        return true;
      };
      const timer = setTimeout(() => reject(new Error(`nothing of the kind within ${WAIT_MS} ms; there is ${JSON.stringify(this.inbox)}`)), WAIT_MS);
      if (!look()) this.waiting.add(look);
    });
  }

  send(type, data, id) {
    this.socket.send(JSON.stringify({ type, id, data }));
  }

  ask(type, data, id = `q${this.texts.length}-${Math.random()}`) {
    this.send(type, data, id);
    return this.next((m) => m.ref === id);
  }

  async close() {
    this.socket.close();
    return this.closed;
  }
}

/** The status and body of an upgrade that is refused. */
async function refusal(path, options) {
  const socket = new WebSocket(url + path, [], options);
  socket.on('error', () => {});
  const [, answer] = await once(socket, 'unexpected-response');
  const parts = [];
  for await (const part of answer) parts.push(part);
  return { status: answer.statusCode, headers: answer.headers, body: JSON.parse(Buffer.concat(parts)) };
}

test('a client is greeted, subscribes, publishes and closes cleanly', async () => {
  const room = freshRoom();
  const peer = await Peer.join('/ws', { protocols: ['ringhub.v1.json'] });
  assert.equal(peer.socket.protocol, 'ringhub.v1.json');
  assert.equal(peer.greeting.user_id, 'alice');
  const subscribed = await peer.ask('subscribe', { room }, 's');
  assert.equal(subscribed.type, 'subscribed');
  assert.equal(subscribed.data.room, room);
  const published = await peer.ask('publish', { room, type: 'note.added', data: { text: 'ünï' } }, 2);
  assert.equal(published.type, 'published');
  assert.equal(published.ref, 2);
  const event = await peer.next((m) => m.type === 'note.added');
  assert.deepEqual([event.room, event.seq, event.data], [room, 1, { text: 'ünï' }]);
  assert.deepEqual(await peer.close(), { code: 1005, reason: '' });
});

test('a token offered as a subprotocol is taken and not echoed', async () => {
  const socket = new WebSocket(`${url}/ws`, ['ringhub.v1.json', `bearer.${token}`]);
  await once(socket, 'open');
  assert.equal(socket.protocol, 'ringhub.v1.json');
  socket.terminate();
});

test('a token in the query is taken', async () => {
  const peer = await Peer.join(`/ws?token=${token}`, { headers: {} });
  assert.equal(peer.greeting.user_id, 'alice');
  await peer.close();
});

test('refusals carry their status, headers and a JSON body', async () => {
  const missing = await refusal('/ws', {});
  assert.equal(missing.status, 401);
  assert.match(missing.headers['www-authenticate'], /^Bearer/);
  assert.equal(missing.body.error.code, 'unauthorized');
  const nowhere = await refusal('/nowhere', { headers: { Authorization: `Bearer ${token}` } });
  assert.equal(nowhere.status, 404);
  const old = await refusal('/ws', { headers: { Authorization: `Bearer ${token}` }, protocolVersion: 8 });
  assert.equal(old.status, 426);
  assert.equal(old.headers['sec-websocket-version'], '13');
});

test('a client that offers compression is served', async () => {
  const peer = await Peer.join('/ws', { perMessageDeflate: { threshold: 0 } });
  const pong = await peer.ask('ping', 'x'.repeat(20_000));
  assert.equal(pong.data.length, 20_000);
  await peer.close();
});

test('all subscribers get the same texts in the same order', async () => {
  const room = freshRoom();
  const peers = await Promise.all(Array.from({ length: 10 }, () => Peer.join()));
  await Promise.all(peers.map((peer) => peer.ask('subscribe', { room })));
  for (let n = 0; n < 200; n++) peers[n % 10].send('publish', { room, type: 'n', data: { n } });
  await Promise.all(peers.map((peer) => peer.next((m) => m.room === room && m.seq === 200)));
  const histories = peers.map((peer) => peer.texts.filter((text) => JSON.parse(text).room === room));
  assert.equal(histories[0].length, 200);
  for (const history of histories) assert.deepEqual(history, histories[0]);
  await Promise.all(peers.map((peer) => peer.close()));
});

test('pings of the client are answered with their payload', async () => {
  const peer = await Peer.join();
  peer.socket.ping('are you there');
  const [payload] = await once(peer.socket, 'pong');
  assert.equal(payload.toString(), 'are you there');
  await peer.close();
});

test('a fragmented message is one message', async () => {
  const peer = await Peer.join();
  const text = JSON.stringify({ type: 'ping', id: 'f', data: 'in three parts' });
  peer.socket.send(text.slice(0, 5), { fin: false });
  peer.socket.send(text.slice(5, 9), { fin: false });
  peer.socket.ping();
  peer.socket.send(text.slice(9), { fin: true });
  assert.equal((await peer.next((m) => m.ref === 'f')).data, 'in three parts');
  await peer.close();
});

test('binary closes with 1003, too much with 1009', async () => {
  const one = await Peer.join();
  one.socket.send(Buffer.from([1, 2, 3]));
  assert.equal((await one.closed).code, 1003);
  const two = await Peer.join();
  two.socket.on('error', () => {});
  two.socket.send('x'.repeat(2 << 20));
  assert.equal((await two.closed).code, 1009);
});

test('an error leaves the connection open and names the command', async () => {
  const peer = await Peer.join();
  const error = await peer.ask('subscribe', { room: 'admin:secrets' }, 99);
  assert.deepEqual([error.type, error.ref, error.data.code], ['error', 99, 'forbidden']);
  assert.equal((await peer.ask('ping', 1)).type, 'pong');
  await peer.close();
});

test('what fetch publishes arrives', async () => {
  const room = freshRoom();
  const peer = await Peer.join();
  await peer.ask('subscribe', { room });
  const answer = await fetch(`${http}/api/v1/publish`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${admin}`, 'Content-Type': 'application/json' },
    body: JSON.stringify({ room, type: 'note.added', data: { by: 'fetch' } }),
  });
  assert.equal(answer.status, 200);
  assert.equal((await answer.json()).seq, 1);
  assert.deepEqual((await peer.next((m) => m.room === room)).data, { by: 'fetch' });
  await peer.close();
});

test('echo sends text and binary back as they came', async () => {
  const socket = new WebSocket(`${url}/echo`, [], { headers: { Authorization: `Bearer ${token}` } });
  await once(socket, 'open');
  for (const message of ['', 'text', Buffer.alloc(0), Buffer.alloc(300_000, 7)]) {
    socket.send(message);
    const [bytes, binary] = await once(socket, 'message');
    assert.equal(binary, Buffer.isBuffer(message));
    assert.ok(bytes.equals(Buffer.from(message)));
  }
  socket.terminate();
});

test('the same events come as JSON, in batches and as MessagePack', async () => {
  const room = freshRoom();
  const forms = ['ringhub.v1.json', 'ringhub.v1.json.batch', 'ringhub.v1.msgpack', 'ringhub.v1.msgpack.batch'];
  const clients = await Promise.all(forms.map((form) => speaker(form)));
  for (const client of clients) await client.ask('subscribe', { room });
  const data = [{ text: 'ünï 😀', half: 0.5, many: Array(100).fill(1), none: null }, 'text', -1, 2 ** 53 - 1, [[]]];
  const events = Array.from({ length: 100 }, (_, at) => ({ room, type: 'note.added', data: data[at % data.length] }));
  const answer = await fetch(`${http}/api/v1/publish`, {
    method: 'POST', headers: { Authorization: `Bearer ${admin}`, 'Content-Type': 'application/json' }, body: JSON.stringify(events),
  });
  assert.equal(answer.status, 200);
  const got = await Promise.all(clients.map((client) => client.events(events.length)));
  assert.deepEqual(got[0].map((event) => event.data), events.map((event) => event.data));
  for (const other of got) assert.deepEqual(other, got[0]);
  const published = await clients[2].ask('publish', { room, type: 'note.added', data: data[0] });
  assert.equal(published.type, 'published');
  assert.equal(published.data.seq, events.length + 1);
  assert.ok(clients[1].frames < clients[0].frames && clients[3].frames < clients[2].frames);
  for (const client of clients) client.socket.close();
});

/** A client that speaks one of the forms of the protocol. */
async function speaker(form) {
  const packs = form.includes('msgpack');
  const socket = new WebSocket(`${url}/ws`, [form], { headers: { Authorization: `Bearer ${token}` } });
  const client = { socket, frames: 0, inbox: [], look: () => {} };
  socket.on('message', (bytes, binary) => {
    assert.equal(binary, packs);
    client.frames += 1;
    client.inbox.push(...[].concat(packs ? decode(bytes) : JSON.parse(bytes)));
    client.look();
  });
  const until = (enough) => new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error(`${form}: nothing of the kind in ${JSON.stringify(client.inbox)}`)), WAIT_MS);
    client.look = () => {
      const found = enough();
      if (!found) return;
      clearTimeout(timer);
      client.look = () => {};
      resolve(found);
    };
    client.look();
  });
  client.ask = (type, data) => {
    const id = `${form}-${client.frames}-${Math.random()}`;
    socket.send(packs ? encode({ type, id, data }) : JSON.stringify({ type, id, data }));
    return until(() => client.inbox.find((message) => message.ref === id));
  };
  client.events = (count) => until(() => {
    const events = client.inbox.filter((message) => message.seq);
    return events.length >= count && events;
  });
  await once(socket, 'open');
  assert.equal(socket.protocol, form);
  await until(() => client.inbox.find((message) => message.type === 'connection_established'));
  return client;
}

/** A client of npm's ws with compression, which it offers by default; what was agreed is in `agreed`. */
const compressed = async (perMessageDeflate, path = '/ws') => {
  const socket = new WebSocket(url + path, { headers: { Authorization: `Bearer ${token}` }, perMessageDeflate });
  const [{ headers }] = await once(socket, 'upgrade');
  return { socket, agreed: headers['sec-websocket-extensions'] };
};

test('ws echoes compressed messages of any size, with any parameters', { skip: !process.env.HUB_COMPRESSES && 'the hub does not compress' }, async () => {
  for (const offer of [true, { threshold: 0 }, { threshold: 0, serverNoContextTakeover: true, clientNoContextTakeover: true }, { threshold: 0, serverMaxWindowBits: 9 }, { threshold: 0, clientMaxWindowBits: 10 }]) {
    const { socket, agreed } = await compressed(offer, '/echo');
    assert.match(agreed, /^permessage-deflate; server_no_context_takeover/, JSON.stringify(offer));
    await once(socket, 'open');
    for (const size of [0, 1, 200, 5000, 65_536, 300_000]) {
      const message = 'añb'.repeat(size);
      socket.send(message);
      const [text, isBinary] = await once(socket, 'message');
      assert.equal(isBinary, false);
      assert.ok(text.toString() === message, `${size} in ${JSON.stringify(offer)}`);
      socket.send(Buffer.alloc(size, 7));
      const [bytes] = await once(socket, 'message');
      assert.ok(bytes.equals(Buffer.alloc(size, 7)));
    }
    socket.close();
    await once(socket, 'close');
  }
});

test('an event is the same for a client that compresses and one that does not', { skip: !process.env.HUB_COMPRESSES && 'the hub does not compress' }, async () => {
  const room = freshRoom();
  const peers = [await Peer.join('/ws', { perMessageDeflate: true }), await Peer.join('/ws', { perMessageDeflate: false })];
  for (const peer of peers) await peer.ask('subscribe', { room });
  await peers[0].ask('publish', { room, type: 'x', data: { rows: Array(100).fill({ status: 'running' }) } });
  const [one, other] = await Promise.all(peers.map((peer) => peer.next((m) => m.room === room && m.seq === 1)));
  assert.deepEqual(one, other);
  assert.ok(peers[0].socket.extensions.includes('permessage-deflate') && peers[1].socket.extensions === '');
  for (const peer of peers) await peer.close();
});
