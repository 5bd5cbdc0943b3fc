-- Ids of clients that a node had are free again.
--
-- KEYS: clients (as in claim.lua)
-- ARGV: run, ids
local freed = 0
for at = 2, #ARGV do
    if redis.call('HGET', KEYS[1], ARGV[at]) == ARGV[1] then
        freed = freed + redis.call('HDEL', KEYS[1], ARGV[at])
    end
end
return freed
