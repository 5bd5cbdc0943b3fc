// React hooks around the browser client.
import { createContext, useCallback, useContext, useEffect, useMemo, useRef, useState } from 'react';

const HubContext = createContext(null);

/** Gives `hub` to the components below, connected while they are there. */
export function HubProvider({ hub, children }) {
  useEffect(() => {
    hub.connect();
    return () => hub.close();
  }, [hub]);
  return <HubContext value={hub}>{children}</HubContext>;
}

/** The connection's client. */
export const useHub = () => useContext(HubContext);

/** `{ state, retry_in_ms? }` of the connection. */
export function useConnection() {
  const hub = useHub();
  const [change, setChange] = useState({ state: hub.state });
  useEffect(() => {
    setChange({ state: hub.state });
    return hub.on('state', setChange);
  }, [hub]);
  return change;
}

/**
 * A room's events, the newest `keep` of them.
 *
 *     const { events, isComplete, error, publish } = useRoom('project:1', { types: ['note.added'], since: { last: 20 } });
 *
 * `isComplete` is false when events were missed: read the state anew then.
 */
export function useRoom(room, { keep = 100, ...options } = {}) {
  const hub = useHub();
  const [seen, setSeen] = useState({ events: [], isComplete: true, error: undefined });
  // Objects are made anew with each rendering; what they say is what counts.
  const wanted = JSON.stringify(options);
  useEffect(() => {
    setSeen({ events: [], isComplete: true, error: undefined });
    const incomplete = () => setSeen((before) => ({ ...before, isComplete: false }));
    const failed = (error) => setSeen((before) => ({ ...before, error }));
    const add = (event) => setSeen((before) => ({ ...before, events: [...before.events, event].slice(-keep) }));
    const subscription = hub.subscribe(room, add, JSON.parse(wanted));
    subscription.on('gap', incomplete);
    subscription.on('recovered', ({ recovered }) => recovered || incomplete());
    subscription.on('end', failed);
    return () => subscription.unsubscribe();
  }, [hub, room, wanted, keep]);
  const publish = useCallback((type, data, options) => hub.publish(room, type, data, options), [hub, room]);
  return { ...seen, publish };
}

/** Who is in a room: `{ count, members }`. */
export function usePresence(room, { poll_s } = {}) {
  const hub = useHub();
  const [present, setPresent] = useState({ count: 0, members: [] });
  useEffect(() => {
    const view = hub.watchPresence(room, ({ count, members }) => setPresent({ count, members }), { poll_s });
    return () => view.close();
  }, [hub, room, poll_s]);
  return present;
}

/**
 * A field that one may edit at a time.
 *
 *     const { isMine, holder, acquire, release } = useLock('quote:7', 'premium');
 *
 * `holder` is who else has it, as far as is known. The lock is given back with the component.
 */
export function useLock(room, field, { ttl_s } = {}) {
  const hub = useHub();
  const lock = useRef(null);
  const [state, setState] = useState({ isMine: false, holder: null });

  useEffect(() => {
    const free = ({ data }) => data.field === field && setState((before) => ({ ...before, holder: null }));
    const taken = ({ data }) => {
      const isOther = data.field === field && data.session_id !== hub.session?.session_id;
      if (isOther) setState((before) => ({ ...before, holder: data }));
    };
    const subscription = hub.subscribe(room, { 'lock.acquired': taken, 'lock.released': free, 'lock.expired': free });
    return () => {
      subscription.unsubscribe();
      lock.current?.release();
      lock.current = null;
    };
  }, [hub, room, field]);

  const acquire = useCallback(async (options) => {
    if (lock.current?.held) return true;
    try {
      const got = await hub.lock(room, field, { ttl_s, ...options });
      lock.current = got;
      got.on('lost', () => setState({ isMine: false, holder: null }));
      setState({ isMine: true, holder: null });
      return true;
    } catch (error) {
      if (error.code !== 'lock_held') throw error;
      setState({ isMine: false, holder: error.details.holder });
      return false;
    }
  }, [hub, room, field, ttl_s]);

  const release = useCallback(async () => {
    const mine = lock.current;
    lock.current = null;
    setState({ isMine: false, holder: null });
    await mine?.release();
  }, []);

  return useMemo(() => ({ ...state, acquire, release }), [state, acquire, release]);
}
