// The hub in a browser: Debian's chromium, pages written for socket.io and the browser's own EventSource, through nginx.
// Started by proxies.py, which says where nginx is and at which port it expects the hub.
import assert from 'node:assert/strict';
import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { launch, serve } from './browser.js';
import { Hub, token, until } from './hub.js';

const { PROXY_URL: url, PROXIED_PORT: port, CERTIFICATES: certificates } = process.env;
const example = (file) => new URL(`../examples/socketio/${file}`, import.meta.url);
const LIBRARY = '/node_modules/socket.io-client/dist/socket.io.esm.min.js';

let hub, browser, pages, origin, folder;
const contexts = new Set();
let rooms = 0;
const freshRoom = () => `project:page-${process.pid}-${rooms++}`;

before(async () => {
  // React comes as modules of Node; a page wants one script.
  const react = fileURLToPath(example('react.jsx'));
  const bundle = await build({ entryPoints: [react], bundle: true, format: 'esm', jsx: 'automatic', write: false });
  // A site of its own beside the hub's: another port is another origin, and the same site for cookies.
  const [cert, key] = await Promise.all(['hub.pem', 'hub.key'].map((file) => readFile(join(certificates, file))));
  const files = {
    '/index.html': example('index.html'),
    '/page.js': example('page.js'),
    [LIBRARY]: new URL(`..${LIBRARY}`, import.meta.url),
    '/react.html': example('react.html'),
    '/react.js': bundle.outputFiles[0].text,
  };
  pages = await serve(files, { cert, key });
  origin = pages.url;
  folder = await mkdtemp(join(tmpdir(), 'ringhub-test-browser-'));
  const settings = {
    'listen.trusted_proxies': ['127.0.0.1'],
    'cors.origins': [origin],
    'auth.origins': [origin],
    'auth.cookie': 'access',
    'rooms.project.durable': true,
    'journal.path': join(folder, 'journal'),
  };
  hub = await Hub.start(settings, { port: Number(port) });
  browser = await launch();
});
afterEach(async () => {
  for (const context of contexts) await context.close();
  contexts.clear();
});
after(async () => {
  await browser.close();
  await hub.stop();
  pages.stop();
  await rm(folder, { recursive: true, force: true });
});

/** A page of the examples in a browser profile of its own, and what it shows. */
class Shown {
  static async open(file, query, { cookies = [] } = {}) {
    const context = await browser.newContext({ ignoreHTTPSErrors: true });
    contexts.add(context);
    await context.addCookies(cookies);
    const shown = new Shown();
    shown.page = await context.newPage();
    shown.failures = [];
    shown.page.on('pageerror', (error) => shown.failures.push(error));
    await shown.page.goto(`${origin}/${file}?${new URLSearchParams({ hub: url, ...query })}`);
    return shown;
  }

  text(id) {
    return this.page.locator(`#${id}`).textContent();
  }

  async state(wanted) {
    let state;
    const fits = async () => wanted.test((state = await this.text('state')));
    await until(fits, () => `${wanted}; it is ${state}`);
    assert.deepEqual(this.failures, []);
  }

  /** The numbers of the events that are shown, once there are as many. */
  async events(count) {
    const lines = this.page.locator('#events li');
    await until(async () => (await lines.count()) >= count, `${count} events`);
    return lines.evaluateAll((lines) => lines.map((line) => Number(line.dataset.seq)));
  }

  transport() {
    return this.page.evaluate(() => window.transport());
  }

  async say(text) {
    await this.page.fill('#text', text);
    await this.page.click('#say button');
  }
}

const upTo = (count) => Array.from({ length: count }, (_, n) => n + 1);
const note = (room, text) => hub.publish(room, 'note.added', { text });
const connections = async () => (await hub.api('GET', '/api/v1/connections')).connections;

for (const file of ['index.html', 'react.html']) {
  for (const transports of ['polling', 'websocket', 'polling,websocket']) {
    test(`${file} over ${transports}: it shows a room's past and present, and writes into it`, async () => {
      const room = freshRoom();
      await note(room, 'before');
      const shown = await Shown.open(file, { room, transports, token: token() });
      await shown.state(/^connected$/);
      await shown.events(1);
      for (let n = 0; n < 10; n++) await note(room, `ünï ${n}`);
      await shown.events(11);
      await shown.say('from the page');
      assert.deepEqual(await shown.events(12), upTo(12));
      await until(async () => (await shown.text('answer')) === 'published 12', 'the acknowledgement');
      assert.equal(await shown.page.locator('#events li').last().textContent(), 'from the page');
      const wanted = transports.split(',').at(-1);
      await until(async () => (await shown.transport()) === wanted, wanted);
    });

    test(`${file} over ${transports}: it comes back after its connection was lost, and has all`, async () => {
      const room = freshRoom();
      const shown = await Shown.open(file, { room, transports, token: token() });
      await shown.state(/^connected$/);
      for (let round = 0; round < 2; round++) {
        await note(room, `before ${round}`);
        await shown.events(round * 6 + 1);
        const mine = (await connections()).find((one) => one.rooms.includes(room));
        await hub.api('DELETE', `/api/v1/connections/${mine.client_id}?code=4000&reason=again`);
        for (let n = 0; n < 5; n++) await note(room, `meanwhile ${n}`);
        assert.deepEqual(await shown.events(round * 6 + 6), upTo(round * 6 + 6));
        await shown.state(/^recovered$/);
      }
    });
  }
}

for (const transports of ['polling', 'websocket', 'polling,websocket']) {
  test(`over ${transports}: a page comes back to a hub that was started anew, and misses nothing of a durable room`, async () => {
    for (const signal of ['SIGTERM', 'SIGKILL']) {
      const room = freshRoom();
      const shown = await Shown.open('index.html', { room, transports, token: token() });
      await shown.state(/^connected$/);
      for (let n = 0; n < 3; n++) await note(room, `before ${n}`);
      await shown.events(3);
      await hub.stop(signal);
      await shown.state(/^(away|refused): /);
      await hub.again();
      for (let n = 0; n < 3; n++) await note(room, `after ${n}`);
      assert.deepEqual(await shown.events(6), upTo(6));
      await shown.state(/^connected$/);
    }
  });
}

test('a page without a token is let in by its cookie, on polls and by a WebSocket', async () => {
  for (const transports of ['polling', 'websocket']) {
    const room = freshRoom();
    const cookie = { name: 'access', value: token('hank'), url, httpOnly: true, sameSite: 'Lax', secure: true };
    const shown = await Shown.open('index.html', { room, transports }, { cookies: [cookie] });
    await shown.state(/^connected$/);
    assert.equal((await connections()).find((one) => one.rooms.includes(room)).user_id, 'hank');
    const { page } = await Shown.open('index.html', { room, transports });
    await until(async () => /^refused: unauthorized$/.test(await page.locator('#state').textContent()), 'a refusal');
  }
});

test('a page of an origin that may not connect stays outside', async () => {
  // The same server under another name is another origin.
  const foreign = origin.replace('127.0.0.1', 'localhost');
  for (const transports of ['polling', 'websocket']) {
    const context = await browser.newContext({ ignoreHTTPSErrors: true });
    contexts.add(context);
    const page = await context.newPage();
    await page.goto(`${foreign}/index.html?${new URLSearchParams({ hub: url, room: freshRoom(), transports, token: token('mallory') })}`);
    await until(async () => /^refused: /.test(await page.locator('#state').textContent()), 'a refusal');
    assert.equal((await connections()).some((one) => one.user_id === 'mallory'), false);
  }
});

test('a page polls over HTTP/2', async () => {
  const shown = await Shown.open('index.html', { room: freshRoom(), transports: 'polling', token: token() });
  const network = await shown.page.context().newCDPSession(shown.page);
  const protocols = [];
  network.on('Network.responseReceived', ({ response }) => {
    if (response.url.includes('/socket.io/')) protocols.push(response.protocol);
  });
  await network.send('Network.enable');
  await shown.state(/^connected$/);
  await shown.say('once');
  await until(() => protocols.length >= 2, 'a post and a poll');
  assert.deepEqual([...new Set(protocols)], ['h2']);
});

test("the browser's EventSource follows a room, and comes back with what it missed", async () => {
  const room = freshRoom();
  await note(room, 'before');
  const shown = await Shown.open('index.html', { room, token: token() });
  const address = `${url}/events?${new URLSearchParams({ room, token: token(), since: 'last:10' })}`;
  await shown.page.evaluate((address) => {
    window.stream = { opened: 0, heard: [], closed: [] };
    const source = new EventSource(address);
    source.onopen = () => window.stream.opened++;
    source.onmessage = ({ data }) => window.stream.heard.push(JSON.parse(data).seq);
    source.addEventListener('close', ({ data }) => window.stream.closed.push(JSON.parse(data).code));
  }, address);
  const stream = () => shown.page.evaluate(() => window.stream);
  await until(async () => (await stream()).heard.length === 1, 'the past');
  for (let n = 0; n < 20; n++) await note(room, `${n}`);
  await until(async () => (await stream()).heard.length === 21, 'the present');
  const streaming = (await connections()).find((one) => one.protocol === 'sse');
  await hub.api('DELETE', `/api/v1/connections/${streaming.client_id}?code=4500&reason=again`);
  await until(async () => (await stream()).closed.length === 1, 'the farewell');
  for (let n = 0; n < 5; n++) await note(room, `meanwhile ${n}`);
  await until(async () => (await stream()).heard.length === 26, 'what it missed');
  assert.deepEqual(await stream(), { opened: 2, heard: upTo(26), closed: [4500] });
});
