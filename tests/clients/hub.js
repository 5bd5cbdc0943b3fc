// Starts hubs for tests that are JavaScript: as hub.py does for the others.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { createHmac } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';

export const WAIT_MS = 15_000;
// The one option that a whole suite may be run with: what must hold on one driver must hold on the other.
const DRIVER = 'RINGHUB_SHARDS_DRIVER';
const SECRET = 'a secret that only the tests use, long enough for every algorithm: HS512 too';

// One machine and one user carry every test, so the limits per address, user and second are off unless a test wants them.
const USUAL = {
  'auth.secret': SECRET,
  'limits.connects_per_s': 0,
  'limits.messages_per_s': 0,
  'limits.connections_per_user_max': 0,
  'limits.connections_per_address_max': 0,
  'drain.seconds': 2,
  'drain.spread_ms': 200,
};

const MEMBER = [
  'websocket:connect', 'websocket:subscribe', 'websocket:publish', 'project:*:read', 'project:*:write', 'agent:*:monitor',
  'agent:*:write', 'quote:*:read', 'quote:*:write', 'user:*:write', 'session:*:write', 'client:*:write',
];

/** A JWT as a deployment's login service would mint it. */
export function token(sub = 'alice', { permissions = MEMBER, ttl_s = 600, secret = SECRET } = {}) {
  const now = Math.floor(Date.now() / 1000);
  const part = (value) => Buffer.from(JSON.stringify(value)).toString('base64url');
  const text = `${part({ alg: 'HS256', typ: 'JWT' })}.${part({ sub, iat: now, exp: now + ttl_s, permissions })}`;
  return `${text}.${createHmac('sha256', secret).update(text).digest('base64url')}`;
}

/** A token that may do everything. */
export const admin = (sub = 'root') => token(sub, { permissions: ['websocket:admin'] });

/** A port nobody listens on, below the range that the kernel draws outgoing ports from: a hub that comes back needs it. */
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 10_000);
    const server = createServer().listen(port, '127.0.0.1');
    const isFree = await Promise.race([once(server, 'listening').then(() => true), once(server, 'error').then(() => false)]).catch(() => false);
    server.close();
    if (isFree) return port;
  }
}

/** Waits until something holds that can only be looked at. */
export async function until(condition, what) {
  const deadline = Date.now() + WAIT_MS;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert.ok(Date.now() < deadline, `not within ${WAIT_MS} ms: ${typeof what === 'function' ? what() : what}`);
    await sleep(10);
  }
}

// Hubs that run: none outlives its tests, however they end.
const running = new Set();
process.on('exit', () => running.forEach((child) => child.kill('SIGKILL')));

/** A running hub. */
export class Hub {
  static async start(settings = {}, { port } = {}) {
    const hub = new Hub();
    hub.settings = { ...USUAL, ...settings };
    hub.port = port ?? (await freePort());
    await hub.again();
    return hub;
  }

  /** Starts it at the address that it had. */
  async again() {
    const settings = Object.entries(this.settings).flatMap(([key, value]) => ['--set', `${key}=${typeof value === 'string' ? value : JSON.stringify(value)}`]);
    const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => name === DRIVER || !name.startsWith('RINGHUB_')));
    const command = ['serve', '--listen', `127.0.0.1:${this.port}`, '--shards', '2', ...settings];
    this.log = '';
    this.process = spawn(process.env.HUB_BIN, command, { env: environment, stdio: ['ignore', 'pipe', 'pipe'] });
    running.add(this.process);
    for (const stream of [this.process.stdout, this.process.stderr]) stream.on('data', (text) => (this.log += text));
    await until(async () => {
      assert.equal(this.process.exitCode, null, `the hub ended at start\n${this.log}`);
      return fetch(`${this.http}/ready`).then((answer) => answer.ok, () => false);
    }, () => `the hub is ready\n${this.log}`);
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  get http() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** A call of the API by an administrator. */
  async api(method, path, body) {
    const headers = { Authorization: `Bearer ${admin()}`, ...(body && { 'Content-Type': 'application/json' }) };
    const answer = await fetch(this.http + path, { method, headers, body: body && JSON.stringify(body), signal: AbortSignal.timeout(WAIT_MS) });
    const text = await answer.text();
    assert.ok(answer.ok, `${method} ${path}: ${answer.status} ${text}`);
    return text && JSON.parse(text);
  }

  publish(room, type, data, more) {
    return this.api('POST', '/api/v1/publish', { room, type, data, ...more });
  }

  /** How the API sees a connection; none where there is no such. */
  async connection(client_id) {
    const { connections } = await this.api('GET', `/api/v1/connections?search=${client_id}`);
    return connections.find((one) => one.client_id === client_id);
  }

  /** Ends it as an operator would, or all at once. */
  async stop(signal = 'SIGTERM') {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      const ended = once(this.process, 'exit', { signal: AbortSignal.timeout(WAIT_MS) });
      this.process.kill(signal);
      const [status] = await ended.catch(() => {
        this.process.kill('SIGKILL');
        assert.fail(`the hub still runs ${WAIT_MS} ms after ${signal}\n${this.log}`);
      });
      running.delete(this.process);
      if (signal === 'SIGTERM') assert.equal(status, 0, this.log);
    }
    assert.ok(!this.log.includes('panicked at'), this.log);
  }
}
