-- Sessions are in rooms through a node, or not any more. Members are told of it only where no other node has the session in
-- that room, so that one which goes from node to node neither leaves nor joins.
--
-- KEYS: present  hash of this node: "room <tab> session" -> what members are told of it, JSON
--       index, dead (as in beat.lua): the nodes whose hashes are looked at; those of the dead, too, until they are cleaned up
--       after
-- ARGV: run, what the keys of hashes begin with, then for each session: field, JSON or nothing where it left
--
-- Answer: for each session 1 where no other node has it.
local others = {}
for _, key in ipairs({KEYS[2], KEYS[3]}) do
    for _, run in ipairs(redis.call('ZRANGE', key, 0, -1)) do
        if run ~= ARGV[1] then
            table.insert(others, ARGV[2] .. run)
        end
    end
end
local answers = {}
for at = 3, #ARGV, 2 do
    local field, told = ARGV[at], ARGV[at + 1]
    if told == '' then
        redis.call('HDEL', KEYS[1], field)
    else
        redis.call('HSET', KEYS[1], field, told)
    end
    local is_alone = 1
    for _, other in ipairs(others) do
        if redis.call('HEXISTS', other, field) == 1 then
            is_alone = 0
            break
        end
    end
    table.insert(answers, is_alone)
end
return answers
