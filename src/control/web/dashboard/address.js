/**
 * The page's own addresses: a view, and what is looked at in it.
 *
 *     #/rooms/project%3A1
 *
 * @module
 */

/** @param {string} name */
export const roomHref = (name) => `#/rooms/${encode(name)}`;

/** @param {string} client_id */
export const connectionHref = (client_id) => `#/connections/${encode(client_id)}`;

/** @param {string} text half of a pair of surrogates can't be encoded, nor can it be a name */
function encode(text) {
  try {
    return encodeURIComponent(text);
  } catch {
    return '';
  }
}

/**
 * What an address names.
 * @param {string} hash
 * @returns {{ view: string, name: string | undefined }}
 */
export function parseAddress(hash) {
  const [, view = '', name] = /^#\/([a-z]*)(?:\/(.+))?$/.exec(hash) ?? [];
  try {
    return { view, name: name === undefined ? undefined : decodeURIComponent(name) };
  } catch {
    return { view, name: undefined };
  }
}
