-- Gives back what calls of dead workers held; requests that were made stay counted.
-- KEYS: the leases. ARGV: now (s), how many at most.
local ended = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, id in ipairs(ended) do
    redis.call('ZREM', KEYS[1], id)
    local said = redis.call('HGET', KEYS[1] .. ':held', id)
    redis.call('HDEL', KEYS[1] .. ':held', id)
    -- [[counter, part, held, stays], …]
    for _, entry in ipairs(said and cjson.decode(said) or {}) do
        local key, part, held, stays = entry[1], entry[2], entry[3], entry[4]
        if redis.call('EXISTS', key) == 1 then
            redis.call('HINCRBY', key, 'held', -held)
            if part == 0 then
                local left = redis.call('HINCRBY', key, 'total', stays - held)
                if left == 0 and redis.call('TTL', key) == -1 then redis.call('DEL', key) end
            elseif redis.call('HEXISTS', key, part) == 1 then
                redis.call('HINCRBY', key, part, stays - held)
                redis.call('HINCRBY', key, 'total', stays - held)
            end
        end
    end
end
return #ended
