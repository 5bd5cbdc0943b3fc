/**
 * The code of what one sees: of this page's functions as they run, and of the demo's clients as they were compiled.
 *
 * @module
 */

/**
 * A function's own text.
 * @param {(...values: any[]) => unknown} run
 */
export function textOf(run) {
  return run.toString();
}

/**
 * An item of a Rust file, from the line that begins as told to the brace that closes it.
 * @param {string} file its name
 * @param {string} begin for instance `fn tell_belief(`
 */
export async function rust(file, begin) {
  const answer = await fetch(new URL(file, import.meta.url));
  if (!answer.ok) throw new Error(`${file}: ${answer.status}`);
  const lines = (await answer.text()).split('\n');
  const first = lines.findIndex((line) => line.trimStart().startsWith(begin));
  if (first < 0) throw new Error(`${file} has no ${begin}`);
  const indent = lines[first].length - lines[first].trimStart().length;
  const last = lines.findIndex((line, index) => index > first && line === `${' '.repeat(indent)}}`);
  const item = lines.slice(first, last + 1).map((line) => line.slice(indent));
  return `// src/demo/${file}\n${item.join('\n')}`;
}

/**
 * The same event, published from a shell.
 * @param {import('../ringhub.js').Event} event
 */
export function curl({ room, type, data }) {
  const body = JSON.stringify({ room, type, data }, undefined, 1).replace(/\n\s*/g, ' ');
  // A quote ends the shell's text, stands by itself, and begins it anew.
  const quoted = body.replaceAll("'", "'\\''");
  return `curl ${new URL('../api/v1/publish', import.meta.url)} \\\n  -H "Authorization: Bearer $RINGHUB_TOKEN" \\\n  -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}
