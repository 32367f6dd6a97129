-- Private workers: sessions, and the workers of one-off tasks. Each command is one atomic step. The locals of managed.lua, with
-- its constants, are in front, so ARGV[2] is the worker's id. sessions.py adds PICKED_MS.
--
-- MANAGED:<worker>          hash    of a private worker also: `role`, session or task, and the other fields that ManagedWorker has
--                                   for them; `picked_ms`, when a request without a session's id got this one; `first_pools`, what
--                                   `pools` was before it spilled
-- ENDPOINT<ep>:sessions     zset    ids of the endpoint's sessions that are not stopped, by created_ms

-- How many jobs each worker of an endpoint runs.
local function running_in(endpoint)
  local counts = {}
  for _, busy in ipairs(redis.call('HVALS', ENDPOINT .. endpoint .. ':running')) do
    counts[busy] = (counts[busy] or 0) + 1
  end
  return counts
end

-- Whether a private worker has a job that runs or waits. `own` is its own queue.
local function has_work(endpoint, own)
  return (running_in(endpoint)[worker] or 0) > 0 or redis.call('ZCARD', WAITING .. own) > 0
end

-- The session that a task without a session's id gets: an idle one, the last used first; '' none is idle, and the second
-- value is the one with the fewest tasks whose queue has room, '' if none has.
local function choose(endpoint, prefix, owner, pools)
  local running, best, best_ms, least, least_jobs = running_in(endpoint), '', -1, '', math.huge
  for _, id in ipairs(redis.call('ZRANGE', ENDPOINT .. endpoint .. ':sessions', 0, -1)) do
    local phase, of, at, most, active_ms, picked_ms, first = unpack(redis.call('HMGET', MANAGED .. ':' .. id,
      'phase', 'owner', 'pools', 'queue_max', 'active_ms', 'picked_ms', 'first_pools'))
    at = first or at
    if RANK[phase or ''] and RANK[phase] < RANK.draining and of == owner and at == pools then
      local waiting = redis.call('ZCARD', WAITING .. prefix .. id)
      local jobs = waiting + (running[id] or 0)
      local picked = tonumber(picked_ms or 0) + PICKED_MS > now
      if jobs == 0 and phase == 'ready' and not picked and tonumber(active_ms or 0) > best_ms then
        best, best_ms = id, tonumber(active_ms or 0)
      end
      if tonumber(most or 0) == 0 or waiting < tonumber(most) then
        jobs = jobs + (picked and 1 or 0) + (phase == 'ready' and 0 or 0.5)
        if jobs < least_jobs then
          least, least_jobs = id, jobs
        end
      end
    end
  end
  return best, least
end

local function pick(id)
  redis.call('HSET', MANAGED .. ':' .. id, 'picked_ms', now, 'active_ms', now)
  return {'reused', id}
end

local commands = {}

-- worker, and the others of want, owner, about, most that may wait, idle s, life s, hard life (0|1), from created (0|1), wait s,
-- queue's name before a worker's id, whether one that is there may do (0|1), a device: "ask", "free" (or freeable), "taken" or "any",
-- number of wanted workers and of used slots when that was found, whether it waits for a device (0|1)
-- -> {"created"|"reused", id}, {"ask"}: it depends on the devices, {"full"}: none is free or freeable, and it does not wait
function commands.open()
  local endpoint, owner, prefix, device = ARGV[3], ARGV[10], ARGV[18], ARGV[20]
  if redis.call('EXISTS', record) == 1 then
    return {'created', worker}
  end
  local idle, least = '', ''
  if ARGV[19] == '1' then
    idle, least = choose(endpoint, prefix, owner, ARGV[6])
    if idle ~= '' then
      return pick(idle)
    end
  end
  local changed = redis.call('ZCARD', WANTED) ~= tonumber(ARGV[21]) or redis.call('HLEN', HELD) ~= tonumber(ARGV[22])
  if device == 'ask' and (least ~= '' or ARGV[23] == '0') or device == 'free' and changed then
    return {'ask'}
  end
  if (device == 'taken' or device == 'ask') and least ~= '' then
    return pick(least)
  end
  if device == 'taken' and ARGV[23] == '0' then
    return {'full'}
  end
  if want() == 0 then
    return {'full'}
  end
  redis.call('HSET', record, 'role', 'session', 'owner', owner, 'about', ARGV[11], 'queue_max', ARGV[12],
    'idle_s', ARGV[13], 'life_s', ARGV[14], 'hard_life', ARGV[15], 'from_created', ARGV[16], 'wait_s', ARGV[17],
    'active_ms', now)
  redis.call('ZADD', ENDPOINT .. endpoint .. ':sessions', now, worker)
  return {'created', worker}
end

-- worker, and the others of want, owner, about, id of its job, wait s -> 1: the worker of a one-off task is wanted
function commands.open_task()
  if want() == 0 then
    return 0
  end
  redis.call('HSET', record, 'role', 'task', 'owner', ARGV[10], 'about', ARGV[11], 'job', ARGV[12],
    'wait_s', ARGV[13])
  return 1
end

-- worker, pools, as JSON -> 1: the worker, which is wanted, may have devices of these pools from now on, too
function commands.spill()
  if known() ~= 'wanted' then
    return 0
  end
  redis.call('HSETNX', record, 'first_pools', redis.call('HGET', record, 'pools') or '[]')
  redis.call('HSET', record, 'pools', ARGV[3])
  notify('wanted')
  return 1
end

-- worker, ms for which it stays although it is idle, or '' -> 1; 0: it takes no tasks
function commands.keepalive()
  local phase = known()
  if redis.call('HGET', record, 'role') ~= 'session' or not may_move(phase, 'draining') then
    return 0
  end
  redis.call('HSET', record, 'active_ms', now)
  if ARGV[3] ~= '' then
    redis.call('HSET', record, 'keep_ms', now + tonumber(ARGV[3]))
  end
  return 1
end

-- worker, its own queue, reason, words, how: "idle", "life", "wait", "empty": only if that still is so; "drain": a running job ends by
-- itself; "kill": now -> 1: it takes no more jobs; 0: it is not to end, or ends already
function commands.end_private()
  local own, reason, words, how = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
  local phase, host, endpoint = known()
  local role, active_ms, ready_ms, keep_ms, idle_s, life_s, hard = unpack(redis.call('HMGET', record,
    'role', 'active_ms', 'ready_ms', 'keep_ms', 'idle_s', 'life_s', 'hard_life'))
  local kills = how == 'kill' or how == 'life' and hard == '1'
  if not role or not may_move(phase, kills and 'stopping' or 'draining') then
    return 0
  end
  if how == 'idle' then
    local since = math.max(tonumber(active_ms or 0), tonumber(ready_ms or 0)) + 1000 * tonumber(idle_s or 0)
    if phase ~= 'ready' or idle_s == '0' or math.max(since, tonumber(keep_ms or 0)) > now or has_work(endpoint, own)
      or redis.call('HEXISTS', record, 'restart') == 1 then
      return 0
    end
  elseif (how == 'wait' or how == 'empty') and phase ~= 'wanted' or how == 'empty' and has_work(endpoint, own) then
    return 0
  end
  redis.call('HSETNX', record, 'ending', reason)
  if not host then
    retire(nil, words)
  else
    redis.call('HSET', record, 'phase', kills and 'stopping' or 'draining', 'reason', words)
    close(words)
    notify('draining')
  end
  return 1
end
