-- A node wants ids of clients to be its own: each may be held by one node that lives.
--
-- KEYS: clients  hash: id -> run of the node that has it
--       index    (as in beat.lua)
-- ARGV: run, ids
--
-- Answer: for each id the run of the node that has it; nothing where the registry does not know this node, since then it
-- has been lost and does not know what others have either.
local holders = {}
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then
    return holders
end
for at = 2, #ARGV do
    local holder = redis.call('HGET', KEYS[1], ARGV[at])
    if not holder or holder == ARGV[1] or not redis.call('ZSCORE', KEYS[2], holder) then
        redis.call('HSET', KEYS[1], ARGV[at], ARGV[1])
        holder = ARGV[1]
    end
    table.insert(holders, holder)
end
return holders
