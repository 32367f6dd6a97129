-- The fronts that live, and what each of them last read from its HAProxy. Each command is one atomic step. fronts.py puts the
-- constants in front: FRONTS, PAUSED (keys.py), TTL_MS (ms without a heartbeat after which a front does not live).
--
-- FRONTS                    hash    front id -> "<ms of its last heartbeat> <address, or nothing>"
-- FRONTS:readings           hash    front id -> JSON, see fronts.py
-- FRONTS:secret             string  with it, fronts pass requests on to each other
-- PAUSED                    hash    see fleet.lua

local commands = {}

local READINGS, SECRET = FRONTS .. ':readings', FRONTS .. ':secret'

-- The fronts that live: id, address and readings of each, '' where it has none.
local function living()
  local found, beats = {}, redis.call('HGETALL', FRONTS)
  for i = 1, #beats, 2 do
    local ms, address = string.match(beats[i + 1], '^(%d+) (.*)$')
    if ms and now - tonumber(ms) <= TTL_MS then
      found[#found + 1] = beats[i]
      found[#found + 1] = address
      found[#found + 1] = redis.call('HGET', READINGS, beats[i]) or ''
    end
  end
  return found
end

local function drop_dead()
  local beats = redis.call('HGETALL', FRONTS)
  for i = 1, #beats, 2 do
    local ms = string.match(beats[i + 1], '^(%d+) ')
    -- Readings stay a while longer than their front counts as living, because it may be late only.
    if not ms or now - tonumber(ms) > 10 * TTL_MS then
      redis.call('HDEL', FRONTS, beats[i])
      redis.call('HDEL', READINGS, beats[i])
    end
  end
end

-- front id, address, a new secret, readings ('': as before) -> now in ms, the secret, whether the readings are there (0|1), the paused
-- workers with the reasons, the fronts that live
function commands.beat()
  redis.call('HSET', FRONTS, ARGV[2], now .. ' ' .. ARGV[3])
  if ARGV[5] ~= '' then
    redis.call('HSET', READINGS, ARGV[2], ARGV[5])
  end
  drop_dead()
  redis.call('SET', SECRET, ARGV[4], 'NX')
  return {
    now, redis.call('GET', SECRET), redis.call('HEXISTS', READINGS, ARGV[2]),
    redis.call('HGETALL', PAUSED), living()
  }
end

-- -> the fronts that live
function commands.living()
  return living()
end

-- front id
function commands.leave()
  redis.call('HDEL', FRONTS, ARGV[2])
  redis.call('HDEL', READINGS, ARGV[2])
end
