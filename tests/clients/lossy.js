// A TCP proxy that treats connections badly, by a seed: it cuts, ends, half-closes, freezes and delays them.
import { once } from 'node:events';
import { connect, createServer } from 'node:net';

/** Numbers from 0 to 1 that are the same for the same seed (mulberry32). */
export function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The other side gets a reset. A socket that has said its end can't any more: Node would not close it at all then. */
function reset(socket) {
  if (socket.writableEnded) socket.destroy();
  else socket.resetAndDestroy();
}

export class LossyProxy {
  pairs = new Set();
  #sockets = new Set();
  /** How long a piece of what is sent waits, at most. */
  delay_ms = 0;
  /** Whether new connections are taken. */
  refuses = false;
  accepted = 0;

  static async start(port, seed = 1) {
    const proxy = new LossyProxy();
    proxy.random = seeded(seed);
    proxy.server = createServer((client) => proxy.#accept(client, port)).listen(0, '127.0.0.1');
    await once(proxy.server, 'listening');
    proxy.port = proxy.server.address().port;
    return proxy;
  }

  get url() {
    return `ws://127.0.0.1:${this.port}/ws`;
  }

  #accept(client, port) {
    this.accepted++;
    if (this.refuses) return reset(client);
    const hub = connect({ port, host: '127.0.0.1', noDelay: true, allowHalfOpen: true });
    const pair = { client, hub, frozen: false, isMute: false, stalled: undefined };
    client.allowHalfOpen = true;
    client.setNoDelay(true);
    this.pairs.add(pair);
    for (const [from, to] of [[client, hub], [hub, client]]) {
      this.#pass(pair, from, to);
      this.#sockets.add(from);
      from.on('error', () => {});
      from.on('close', () => {
        this.#sockets.delete(from);
        this.pairs.delete(pair);
        // Whoever was frozen out does not hear of the other's end.
        if (!pair.frozen) to.destroy();
      });
    }
  }

  /** Passes on what one side says, later and in other pieces where there is a delay. */
  async #pass(pair, from, to) {
    const pieces = (bytes) => {
      if (this.delay_ms === 0 || bytes.length < 2) return [bytes];
      const at = 1 + Math.floor(this.random() * (bytes.length - 1));
      return [bytes.subarray(0, at), bytes.subarray(at)];
    };
    try {
      for await (const bytes of from) {
        for (const piece of pieces(bytes)) {
          if (from === pair.hub) await pair.stalled;
          if (this.delay_ms > 0) await new Promise((resolve) => setTimeout(resolve, this.random() * this.delay_ms));
          const passes = !pair.frozen && !(pair.isMute && from === pair.hub) && to.writable;
          if (passes && !to.write(piece)) await Promise.race([once(to, 'drain'), once(to, 'close')]);
        }
      }
    } catch {
      // It was cut.
    }
    if (!pair.frozen && to.writable) to.end();
  }

  // What it does to every connection there is.

  /** As if a cable were pulled and the kernel had noticed: both sides get a reset. */
  cut() {
    for (const { client, hub } of this.pairs) {
      reset(client);
      reset(hub);
    }
  }

  /** Both sides are told of an end, without a WebSocket's farewell. */
  end() {
    for (const { client, hub } of this.pairs) {
      client.end();
      hub.end();
    }
  }

  /** One side is told of an end, the other one goes on talking. */
  halfClose(side) {
    for (const pair of this.pairs) pair[side].end();
  }

  /** Nothing passes any more and nobody is told: a half-open connection. */
  freeze() {
    for (const pair of this.pairs) pair.frozen = true;
  }

  /** What the client had sent arrives, and no answer comes back; then it is cut. */
  cutAnswers() {
    for (const pair of this.pairs) {
      pair.isMute = true;
      setTimeout(() => {
        reset(pair.client);
        reset(pair.hub);
      }, 5);
    }
  }

  /** Nothing of the hub is read until the function that it returns is called. */
  stall() {
    let flow;
    const stalled = new Promise((resolve) => (flow = resolve));
    for (const pair of this.pairs) pair.stalled = stalled;
    return flow;
  }

  stop() {
    this.server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
