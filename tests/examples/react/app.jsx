// A live room in React. Bundle it with what you have, for instance
//
//     npx esbuild app.jsx --bundle --format=esm --jsx=automatic --outfile=app.js
import { StrictMode, useState } from 'react';
import { createRoot } from 'react-dom/client';
// Of your own copy, or that of your hub: bundlers leave `https://hub.example.com/ringhub.js` to the browser.
import { Ringhub } from '../../../src/control/web/ringhub.js';
import { HubProvider, useConnection, useLock, usePresence, useRoom } from './hooks.jsx';

const settings = new URLSearchParams(location.hash.slice(1));
const room = settings.get('room') ?? 'project:1';
// A page of yours asks its own backend: `token: () => fetch('/api/hub-token').then((answer) => answer.text())`.
const hub = new Ringhub({ url: `${settings.get('hub') ?? 'http://127.0.0.1:8000'}/ws`, token: settings.get('token') });

function Status() {
  const { state, retry_in_ms } = useConnection();
  return <small id="state">{state === 'waiting' ? `away, back in ${Math.ceil(retry_in_ms / 1000)} s` : state}</small>;
}

function Members() {
  const { count, members } = usePresence(room, { poll_s: 15 });
  const names = [...new Set(members.map(({ user_id }) => user_id))].sort();
  return <p>Here: <span id="members">{names.join(', ')} ({count})</span></p>;
}

function Title() {
  const { events, publish } = useRoom(room, { types: ['title.changed'], since: { last: 100 }, keep: 1 });
  const { isMine, holder, acquire, release } = useLock(room, 'title', { ttl_s: 15 });
  const [draft, setDraft] = useState('');
  const title = events[0]?.data.title ?? '';
  const edit = async () => {
    if (!isMine) return (await acquire()) && setDraft(title);
    await publish('title.changed', { title: draft });
    await release();
  };
  return (
    <p>
      <label>Title <input id="title" value={isMine ? draft : title} readOnly={!isMine} onChange={(event) => setDraft(event.target.value)} /></label>{' '}
      <button id="edit" onClick={edit}>{isMine ? 'Save' : 'Edit'}</button>{' '}
      <span id="holder">{holder && `${holder.user_id} edits`}</span>
    </p>
  );
}

function Notes() {
  const { events, isComplete, error, publish } = useRoom(room, { types: ['note.added'], since: { last: 20 } });
  const submit = (event) => {
    event.preventDefault();
    publish('note.added', { text: new FormData(event.target).get('text') });
    event.target.reset();
  };
  return (
    <>
      <form id="form" onSubmit={submit}><label>Note <input id="text" name="text" required /></label> <button>Publish</button></form>
      {error && <p role="alert">{error.message}</p>}
      {!isComplete && <p>Some notes are missing.</p>}
      <ol id="notes">{events.map(({ id, data }) => <li key={id}>{data.text}</li>)}</ol>
    </>
  );
}

createRoot(document.getElementById('root')).render(
  <StrictMode>
    <HubProvider hub={hub}>
      <h1>A live room <Status /></h1>
      <Members />
      <Title />
      <Notes />
    </HubProvider>
  </StrictMode>,
);
