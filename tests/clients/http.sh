#!/usr/bin/env bash
# The HTTP side with curl, which shares no code with any other client here. hub.py starts the hub and sets the environment.
set -u
: "${HUB_HTTP_URL:?run through hub.py}" "${HUB_TOKEN:?}" "${HUB_ADMIN_TOKEN:?}" "${HUB_EXPIRED_TOKEN:?}" "${HUB_SOCKET:?}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
checks=0 failures=0

# ask WHAT STATUS CURL-ARGUMENT…: the request named WHAT must answer STATUS; head and body are kept for the lines after it.
ask() {
    what=$1
    local wanted=$2 got
    shift 2
    checks=$((checks + 1))
    got=$(curl --silent --show-error --http1.1 --noproxy '*' --max-time 10 --dump-header "$work/head" --output "$work/body" --write-out '%{http_code}' "$@" 2>"$work/errors")
    [ "$got" = "$wanted" ] || fail "answered $got, not $wanted $(cat "$work/errors" "$work/body")"
}
fail() {
    failures=$((failures + 1))
    printf 'not ok: %s: %s\n' "$what" "$*"
}
body_has() {
    checks=$((checks + 1))
    grep -qE -- "$1" "$work/body" || fail "no /$1/ in the body: $(head -c 500 "$work/body")"
}
head_has() {
    checks=$((checks + 1))
    grep -qiE -- "$1" "$work/head" || fail "no /$1/ in the head: $(cat "$work/head")"
}
body_has_not() {
    checks=$((checks + 1))
    ! grep -qF -- "$1" "$work/body" || fail "the body contains what it must not"
}

url=$HUB_HTTP_URL
user=(--header "Authorization: Bearer $HUB_TOKEN")
admin=(--header "Authorization: Bearer $HUB_ADMIN_TOKEN")
json=(--header 'Content-Type: application/json')
upgrade=(--header 'Connection: Upgrade' --header 'Upgrade: websocket' --header 'Sec-WebSocket-Version: 13' --header 'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==')

ask 'live' 200 "$url/live"
ask 'ready' 200 "$url/ready"
head_has '^content-type: application/json'
ask 'health' 200 "$url/ws/health"
body_has '"status"'
ask 'live by HEAD' 200 --head "$url/live"
ask 'metrics' 200 "$url/metrics"
head_has '^content-type: (text/plain|application/openmetrics-text)'
body_has '^# TYPE ringhub_'
body_has '^ringhub_[a-z_]*connections'
body_has_not "$HUB_TOKEN"

ask 'the browser client' 200 "$url/ringhub.js"
head_has '^content-type: text/javascript; charset=utf-8'
head_has '^cache-control: no-cache'
head_has '^x-content-type-options: nosniff'
head_has '^access-control-allow-origin: \*'
body_has '^export class Ringhub '
etag=$(tr -d '\r' <"$work/head" | sed -n 's/^etag: //Ip')
ask 'the browser client that is known' 304 --header "If-None-Match: $etag" "$url/ringhub.js"
ask 'the browser client of another version' 200 --header 'If-None-Match: "another"' "$url/ringhub.js"
ask 'the browser client by HEAD' 200 --head "$url/ringhub.js"
head_has '^content-length: [1-9]'
ask 'the browser client by POST' 405 --data x "$url/ringhub.js"

publish() { printf '{"room":"project:curl","type":"note.added","data":%s}' "$1"; }
ask 'publish' 200 "${admin[@]}" "${json[@]}" --data "$(publish '{"n":1}')" "$url/api/v1/publish"
body_has '"seq": ?1\b'
body_has '"id": ?"[0-9a-f-]{36}"'
ask 'publish again' 200 "${admin[@]}" "${json[@]}" --data "$(publish '[]')" "$url/api/v1/publish"
body_has '"seq": ?[1-9]'
ask 'publish an array' 200 "${admin[@]}" "${json[@]}" --data "[$(publish 1),$(publish 2)]" "$url/api/v1/publish"
body_has '"seq": ?[1-9]'
body_has '"seq": ?[1-9]'
ask 'publish as a user who may' 200 "${user[@]}" "${json[@]}" --data "$(publish '"x"')" "$url/api/v1/publish"
ask 'publish as one who may not' 403 "${user[@]}" "${json[@]}" --data '{"room":"admin:all","type":"a","data":1}' "$url/api/v1/publish"
body_has '"code": ?"forbidden"'
ask 'publish without a token' 401 "${json[@]}" --data "$(publish 1)" "$url/api/v1/publish"
head_has '^www-authenticate: bearer'
body_has '"code": ?"unauthorized"'
ask 'publish with an expired token' 401 --header "Authorization: Bearer $HUB_EXPIRED_TOKEN" "${json[@]}" --data "$(publish 1)" "$url/api/v1/publish"
body_has_not "$HUB_EXPIRED_TOKEN"
ask 'publish no JSON' 400 "${admin[@]}" "${json[@]}" --data '{"room":' "$url/api/v1/publish"
body_has '"code": ?"bad_json"'
ask 'publish without a room' 400 "${admin[@]}" "${json[@]}" --data '{"type":"a","data":1}' "$url/api/v1/publish"
body_has '"code": ?"bad_'
ask 'publish into no room' 400 "${admin[@]}" "${json[@]}" --data '{"room":"nonsense","type":"a","data":1}' "$url/api/v1/publish"
body_has '"code": ?"bad_room"'
head -c 20000000 /dev/zero | tr '\0' '1' >"$work/large"
ask 'publish too much' 413 "${admin[@]}" "${json[@]}" --header 'Expect:' --data-binary "@$work/large" "$url/api/v1/publish"
body_has '"code": ?"too_large"'
ask 'publish by GET' 405 "${admin[@]}" "$url/api/v1/publish"
ask 'nowhere' 404 "${admin[@]}" "$url/api/v1/nowhere"
body_has '"code": ?"not_found"'
ask 'two requests on one connection' 200200 "$url/live" --next --silent --http1.1 --noproxy '*' --output "$work/second" --write-out '%{http_code}' "$url/ready"

ask 'an upgrade without a token' 401 "${upgrade[@]}" "$url/ws"
head_has '^www-authenticate: bearer'
body_has '^\{"error": ?\{"code": ?"unauthorized", ?"message": ?".+"\}\}$'
ask 'an upgrade with an expired token' 401 "${upgrade[@]}" --header "Authorization: Bearer $HUB_EXPIRED_TOKEN" "$url/ws"
ask 'an upgrade to nowhere' 404 "${upgrade[@]}" "${user[@]}" "$url/nowhere"
ask 'an upgrade of an old version' 426 "${upgrade[@]:0:4}" --header 'Sec-WebSocket-Version: 8' --header 'Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==' "${user[@]}" "$url/ws"
head_has '^sec-websocket-version: 13'
ask 'an upgrade without a key' 400 --header 'Connection: Upgrade' --header 'Upgrade: websocket' --header 'Sec-WebSocket-Version: 13' "${user[@]}" "$url/ws"

ask 'live over the unix socket' 200 --unix-socket "$HUB_SOCKET" http://hub/live
ask 'publish over the unix socket' 200 --unix-socket "$HUB_SOCKET" "${admin[@]}" "${json[@]}" --data "$(publish 1)" http://hub/api/v1/publish
ask 'an upgrade over the unix socket without a token' 401 --unix-socket "$HUB_SOCKET" "${upgrade[@]}" http://hub/ws

ask 'metrics after all this' 200 "$url/metrics"
body_has '^ringhub_'
body_has_not "$HUB_TOKEN"
printf '%d checks, %d failed\n' "$checks" "$failures"
[ "$failures" -eq 0 ]
