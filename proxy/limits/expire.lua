-- Gives back what calls of dead holders held; requests that were made stay counted.
-- KEYS: counters. ARGV: the dead holders. Returns the ids of the calls.
local function whole(number) return string.format('%.0f', number) end
local dead, ended = {}, {}
for _, holder in ipairs(ARGV) do dead[holder] = true end
for _, key in ipairs(KEYS) do
    local fields, there, gone = redis.call('HGETALL', key), {}, {}
    for place = 1, #fields, 2 do
        there[fields[place]] = fields[place + 1]
        local holder, id = string.match(fields[place], '^@([^:]+):(.+)$')
        if holder and dead[holder] then
            gone[#gone + 1] = fields[place]
            ended[#ended + 1] = id
        end
    end
    if #gone > 0 then
        local total, held = tonumber(there['total']), tonumber(there['held'])
        for _, call in ipairs(gone) do
            local needed, stays, part = string.match(there[call], '^(%d+) (%d+) (%d+)$')
            local change = tonumber(stays) - tonumber(needed)
            held = held - tonumber(needed)
            if part == '0' then
                total = total + change
            elseif there[part] then
                total = total + change
                there[part] = whole(tonumber(there[part]) + change)
                redis.call('HSET', key, part, there[part])
            end
            redis.call('HDEL', key, call)
        end
        redis.call('HSET', key, 'total', whole(total), 'held', whole(held))
        if total == 0 and held == 0 and redis.call('TTL', key) == -1 then redis.call('DEL', key) end
    end
end
return ended
