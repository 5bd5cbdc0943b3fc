-- Reads the state of a room and what is kept of its log from a number on. A room that nobody knows gets an epoch here, so
-- that all who follow it have the same.
--
-- KEYS  1  PREFIX:{ROOM}:meta
--       2  PREFIX:{ROOM}:log
-- ARGV  1  the epoch that the log gets should nobody know the room
--       2  the number of the first event that is wanted
--       3  about how many bytes of events are read at most; at least one entry is
--       4  how many milliseconds the epoch and the number are kept
--       5  what comes back, so that an answer is known as that to this call: over a connection that is subscribed to
--          channels of a cluster, answers may be taken for each other where slots move
--
-- Returns six: epoch, number and id of the last event, the first number that was not cleared, a list with the number
-- of its last event and the message (see publish.lua) of each entry, and what was to come back. The first entry may begin
-- before the wanted number. There is more where the last entry ends before the last number.

local ENTRIES = 64

local state = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'id', 'from')
if not state[1] then
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'seq', '0', 'id', '-')
  redis.call('DEL', KEYS[2])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {ARGV[1], '0', '-', '1', {}, ARGV[5]}
end

local found, bytes = {}, 0
local wanted, bytes_max = ARGV[2], tonumber(ARGV[3])
while bytes < bytes_max do
  local entries = redis.call('XRANGE', KEYS[2], wanted, '+', 'COUNT', ENTRIES)
  for _, entry in ipairs(entries) do
    if bytes < bytes_max then
      local message = entry[2][2]
      found[#found + 1] = string.match(entry[1], '^%d+')
      found[#found + 1] = message
      bytes = bytes + #message
    end
  end
  if #entries < ENTRIES then break end
  wanted = '(' .. entries[#entries][1]
end
return {state[1], state[2] or '0', state[3] or '-', state[4] or '1', found, ARGV[5]}
