-- Agents, and what occupies the devices of their hosts. Each command is one atomic step. agents.py puts the
-- constants in front: AGENTS, SEEN, DRAINING_HOSTS, HELD, RESERVED, NEXT, HOSTS, NOTICES (keys.py),
-- OWNER_MS, SILENT_MS.
--
-- AGENTS                    hash    host -> JSON of AgentInfo (rules/managed.py) without draining and silent_s
-- SEEN                      hash    host -> "<ms> <token>" of the last heartbeat of its agent
-- DRAINING_HOSTS            set     hosts that take no more workers
-- RESERVED                  hash    "<host>/<device>" -> "<ms when it ends, or 0> <reason>"
-- HELD, HOSTS, NOTICES      see managed.lua; NEXT: sharing.lua

local function seen(host)
  return string.match(redis.call('HGET', SEEN, host) or '', '^(%d+) (.*)$')
end

-- Removes the fields of a hash that belong to a host.
local function clear(key, host)
  local prefix = host .. '/'
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if string.sub(field, 1, #prefix) == prefix then
      redis.call('HDEL', key, field)
    end
  end
end

local commands = {}

-- host, token, a token that does not count, JSON -> the token that owns the host's name, and whether the host is
-- drained (0|1). Another token's agent is not replaced while it lives
function commands.heartbeat()
  local host, token = ARGV[2], ARGV[3]
  local at, owner = seen(host)
  local draining = redis.call('SISMEMBER', DRAINING_HOSTS, host)
  if owner and owner ~= token and owner ~= ARGV[4] and at + OWNER_MS > now then
    return {owner, draining}
  end
  redis.call('HSET', SEEN, host, string.format('%.0f ', now) .. token)
  redis.call('HSET', AGENTS, host, ARGV[5])
  return {token, draining}
end

-- host, token: the agent ends, so another may own the name at once
function commands.leave()
  local at, owner = seen(ARGV[2])
  if owner == ARGV[3] then
    redis.call('HSET', SEEN, ARGV[2], at .. ' ')
  end
  return 1
end

-- host -> 1: it is no longer listed, and nothing of it is held; 0: its agent lives, or it has workers
function commands.remove_agent()
  local host = ARGV[2]
  local at, owner = seen(host)
  if owner and owner ~= '' and at + SILENT_MS > now or redis.call('SCARD', HOSTS .. host) > 0 then
    return 0
  end
  redis.call('HDEL', AGENTS, host)
  redis.call('HDEL', SEEN, host)
  redis.call('SREM', DRAINING_HOSTS, host)
  clear(HELD, host)
  clear(RESERVED, host)
  clear(NEXT, host)
  return 1
end

-- host
function commands.drain_host()
  redis.call('SADD', DRAINING_HOSTS, ARGV[2])
  redis.call('PUBLISH', NOTICES, 'host ' .. ARGV[2])
end

-- host
function commands.resume_host()
  redis.call('SREM', DRAINING_HOSTS, ARGV[2])
  redis.call('PUBLISH', NOTICES, 'host ' .. ARGV[2])
end

-- host, device, ms (0: without an end), reason
function commands.reserve()
  local until_ms = ARGV[4] == '0' and 0 or now + ARGV[4]
  redis.call('HSET', RESERVED, ARGV[2] .. '/' .. ARGV[3], string.format('%.0f ', until_ms) .. ARGV[5])
end

-- host, device -> whether it was reserved (0|1)
function commands.release()
  local removed = redis.call('HDEL', RESERVED, ARGV[2] .. '/' .. ARGV[3])
  redis.call('PUBLISH', NOTICES, 'device ' .. ARGV[2])
  return removed
end
