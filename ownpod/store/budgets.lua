-- What cloud workers cost. Each command is one atomic step. budgets.py puts the constants in front: BUDGET (keys.py), DAY_MS,
-- KEPT_S, WARN_PERCENT; scripts.py adds `now`. All money is in whole micro-units.
--
-- BUDGET<worker>:<day>   hash   spent, reserved; `warned`, set: the warning about this day was logged. The day is that of UTC, counted
--                               since the epoch. It expires KEPT_S after the last change
-- BUDGET<worker>:runs    hash   "<job>:<attempt>" -> "<day> <micro-units>", of each run whose money is reserved

local commands = {}

local function day_key(worker, day)
  return BUDGET .. worker .. ':' .. day
end

-- -> 1 if the day's total has reached WARN_PERCENT of the limit, for the first time
local function warns(key, limit)
  local spent, reserved = unpack(redis.call('HMGET', key, 'spent', 'reserved'))
  if limit < 0 or ((tonumber(spent) or 0) + (tonumber(reserved) or 0)) * 100 < limit * WARN_PERCENT then
    return 0
  end
  return redis.call('HSETNX', key, 'warned', 1)
end

-- worker id, run, micro-units, limit of the day (-1: none) -> 1: reserved, perhaps by an earlier call for the same run; 0: the limit
-- does not allow it; then whether to warn
function commands.reserve()
  local worker, run, money, limit = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
  local runs, day = BUDGET .. worker .. ':runs', math.floor(now / DAY_MS)
  local key = day_key(worker, day)
  if redis.call('HEXISTS', runs, run) == 1 then
    return {1, 0}
  end
  local spent, reserved = unpack(redis.call('HMGET', key, 'spent', 'reserved'))
  if limit >= 0 and (tonumber(spent) or 0) + (tonumber(reserved) or 0) + money > limit then
    return {0, 0}
  end
  redis.call('HINCRBY', key, 'reserved', ARGV[4])
  redis.call('EXPIRE', key, KEPT_S)
  redis.call('HSET', runs, run, day .. ' ' .. ARGV[4])
  redis.call('EXPIRE', runs, KEPT_S)
  return {1, warns(key, limit)}
end

-- worker id, run, micro-units that it cost ('': all that was reserved), limit -> 1: settled; 0: it was settled before, or never
-- reserved; then whether to warn
function commands.settle()
  local worker, run, limit = ARGV[2], ARGV[3], tonumber(ARGV[5])
  local runs = BUDGET .. worker .. ':runs'
  local day, money = string.match(redis.call('HGET', runs, run) or '', '^(%d+) (%d+)$')
  if not day then
    return {0, 0}
  end
  local key = day_key(worker, day)
  redis.call('HDEL', runs, run)
  if money ~= '0' then
    redis.call('HINCRBY', key, 'reserved', '-' .. money)
  end
  redis.call('HINCRBY', key, 'spent', ARGV[4] == '' and money or ARGV[4])
  redis.call('EXPIRE', key, KEPT_S)
  return {1, warns(key, limit)}
end

-- worker ids -> of each, what is spent and reserved today
function commands.spent()
  local found = {}
  for i = 2, #ARGV do
    local spent, reserved = unpack(redis.call('HMGET', day_key(ARGV[i], math.floor(now / DAY_MS)), 'spent', 'reserved'))
    found[#found + 1] = {spent or 0, reserved or 0}
  end
  return found
end
