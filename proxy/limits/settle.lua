-- Ends a call: what it held is replaced by what it used.
-- KEYS: the leases, then the counter of each rule.
-- ARGV: call id, then for each rule: held, used, part (0 = none)
-- A call whose lease ran out holds nothing any more: only what it used is added.
local live = redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[1] .. ':held', ARGV[1])
for number = 1, #KEYS - 1 do
    local key, at = KEYS[number + 1], 1 + (number - 1) * 3
    local held, used, part = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
    if redis.call('EXISTS', key) == 1 then
        if live == 1 then redis.call('HINCRBY', key, 'held', -held) else held = 0 end
        if part == '0' then
            local left = redis.call('HINCRBY', key, 'total', used - held)
            -- That of concurrent calls ends with the last of them; the others end with their window.
            if left == 0 and redis.call('TTL', key) == -1 then redis.call('DEL', key) end
        elseif redis.call('HEXISTS', key, part) == 1 then
            redis.call('HINCRBY', key, part, used - held)
            redis.call('HINCRBY', key, 'total', used - held)
        end
    end
end
return live
