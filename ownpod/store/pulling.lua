-- Commands of the API for workers that pull. See offers.lua for the keys and the helpers.

-- The endpoint in an entry of PULLING; nil for an entry that cannot be read.
local function endpoint_in(entry)
  if not entry then
    return nil
  end
  local read, values = pcall(cjson.decode, entry)
  return read and type(values) == 'table' and type(values.endpoint) == 'string' and values.endpoint or nil
end

local function registered_for()
  return endpoint_in(redis.call('HGET', PULLING, worker))
end

local ONLY_PINGS = 'it pings, and has not asked for a job'

-- Stores why an endpoint's worker gets no jobs. `weak`: only if no reason was stored within NAMED_MS.
local function refuse(endpoint, reason, weak)
  local key = ENDPOINT .. endpoint .. ':refused'
  local known = redis.call('HGET', key, worker)
  if weak and known and (tonumber(string.match(known, '^%d+')) or 0) + NAMED_MS > now then
    return
  end
  if not known and redis.call('HLEN', key) >= MOST_REFUSED then
    local all, oldest = redis.call('HGETALL', key), nil
    for i = 1, #all, 2 do
      local at = tonumber(string.match(all[i + 1], '^%d+')) or 0
      if not oldest or at < oldest[1] then
        oldest = {at, all[i]}
      end
    end
    redis.call('HDEL', key, oldest[2])
  end
  redis.call('HSET', key, worker, string.format('%.0f ', now) .. reason)
  redis.call('PEXPIRE', key, 2 * NAMED_MS)
end

-- The ms of a ping before the worker's first request. The SDK begins with a ping, and its next one may be 10 s later: without
-- this time a worker that dies sooner counts as one that never pings, whose silence proves nothing.
local function pinged_before(endpoint)
  local known = redis.call('HGET', ENDPOINT .. endpoint .. ':refused', worker)
  local at, reason = string.match(known or '', '^(%d+) (.*)$')
  return reason and string.sub(reason, 1, #ONLY_PINGS) == ONLY_PINGS and at
end

local function renew()
  redis.call('ZADD', HEARD, now, worker)
end

-- Marks a run as begun, because the worker sent something about it; set_state notifies the node.
local function begin(run)
  if redis.call('HGET', run_key(run), 'state') == 'delivered' then
    set_state(run, 'begun')
  end
end

-- Ends a run that no result will come for; whether it may have begun although the worker never listed it.
local function lose(run, may_have_begun)
  redis.call('SREM', out, run)
  if redis.call('EXISTS', run_key(run)) == 1 then
    local begun = may_have_begun or redis.call('HGET', run_key(run), 'state') == 'begun'
    set_state(run, begun and 'gone' or 'unbegun')
  end
end

-- Whether the worker took the run, with a request on this endpoint.
local function has_taken(run, endpoint)
  local taken_ms, of = unpack(redis.call('HMGET', run_key(run), 'taken_ms', 'endpoint'))
  return taken_ms and (not of or of == endpoint)
end

-- -> whether the worker must restart (0|1), and bodies of the runs that it has taken now
local function deliver(limit, endpoint)
  redis.call('HSET', base, 'asked_ms', now)
  if redis.call('HDEL', base, 'awaited') == 1 then
    redis.call('PUBLISH', base, '@worker asked')
  end
  local bodies = {}
  if redis.call('HEXISTS', base, 'stopping') == 1 then
    return {1, bodies}
  end
  local token, key = unpack(redis.call('HMGET', base, 'take', 'key'))
  while #bodies < limit do
    -- An offer is removed after all reads that could end this script with an error.
    local run = redis.call('LINDEX', offers, 0)
    if not run then
      break
    end
    local body = is_a(run_key(run), 'hash') and redis.call('HGET', run_key(run), 'body')
    if body then
      redis.call('SADD', out, run)
      redis.call('HSET', run_key(run), 'taken_ms', now, 'token', token or '', 'endpoint', endpoint,
        'key', key or '')
      set_state(run, 'delivered')
      bodies[#bodies + 1] = body
    end
    redis.call('LPOP', offers)
  end
  return {0, bodies}
end

-- worker, endpoint, token, limit, in progress (0|1), gone ms, digest of the key, maximum number of workers
-- of the endpoint -> see deliver, or {-1, {}, endpoint}: a worker of another endpoint uses this id,
-- or {-2, {}}: the endpoint has that many workers, or {-3, {}}: it is a managed worker that counts as stopped, or {-4, {}}: one of a
-- load-balanced endpoint
function commands.take()
  local endpoint, token, limit, gone_ms = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[7])
  if #worker == 14 and is_a(MANAGED .. ':' .. worker, 'hash') then
    local phase, protocol, restart = unpack(redis.call('HMGET', MANAGED .. ':' .. worker, 'phase', 'protocol', 'restart'))
    if phase == 'stopped' or protocol == 'http' then
      -- Its host was silent and came back; or the front sends it requests. Without this check it would be registered as a
      -- worker that OwnPod has not started.
      return {phase == 'stopped' and -3 or -4, {}}
    end
    if restart == '2' then
      redis.call('HDEL', MANAGED .. ':' .. worker, 'restart')
      redis.call('HSET', MANAGED .. ':' .. worker, 'active_ms', now)
    end
  end
  drop_broken()
  local known = redis.call('HGET', PULLING, worker)
  local before = endpoint_in(known)
  local requested_ms = tonumber(redis.call('ZSCORE', HEARD, worker) or 0)
  local asked_ms, last = unpack(redis.call('HMGET', base, 'asked_ms', 'take'))
  asked_ms = tonumber(asked_ms or 0)
  if before and before ~= endpoint and last and requested_ms + gone_ms > now then
    return {-1, {}, before}
  end
  if before ~= endpoint then
    local workers = 0
    for _, entry in ipairs(redis.call('HVALS', PULLING)) do
      if endpoint_in(entry) == endpoint then
        workers = workers + 1
      end
    end
    if workers >= tonumber(ARGV[9]) then
      return {-2, {}}
    end
  end
  if before and before ~= endpoint then
    -- The id is another endpoint's worker from now on, so the nodes of the first must requeue its offers.
    for _, run in ipairs(redis.call('LRANGE', offers, 0, -1)) do
      if is_a(run_key(run), 'hash') then
        set_state(run, 'unbegun')
      end
    end
    redis.call('DEL', offers, base .. ':stops')
  end
  renew()
  if ARGV[6] == '0' or (before and before ~= endpoint) then
    -- The request lists no running job, so the runs that the worker took have ended without a result.
    for _, run in ipairs(redis.call('SMEMBERS', out)) do
      lose(run)
    end
  end
  if ARGV[6] == '0' and asked_ms + RESTART_MS < now then
    -- The earlier process would have sent its request sooner, so this process is new.
    redis.call('HDEL', base, 'stopping')
  end
  redis.call('HSET', base, 'take', token, 'key', ARGV[8])
  if not last then
    redis.call('HSET', base, 'awaited', 1)
  end
  local ping_ms = pinged_before(endpoint)
  if ping_ms then
    redis.call('HSET', base, 'ping_ms', ping_ms)
  end
  redis.call('PEXPIRE', base, KEPT_MS)
  redis.call('HDEL', ENDPOINT .. endpoint .. ':refused', worker)
  local capacity = limit + redis.call('SCARD', out)
  local entry = cjson.encode({endpoint = endpoint, capacity = capacity})
  if known ~= entry then
    redis.call('HSET', PULLING, worker, entry)
  end
  return deliver(limit, endpoint)
end

-- worker, endpoint, token, limit -> see deliver, or nil: the worker has sent another request since
function commands.collect()
  if redis.call('HGET', base, 'take') ~= ARGV[4] then
    return false
  end
  renew()
  return deliver(tonumber(ARGV[5]), ARGV[3])
end

-- worker, token: the connection of that request is closed, so the next request comes from another process, and
-- the runs in the answer to this one were not begun
function commands.left()
  if redis.call('HGET', base, 'take') == ARGV[3] then
    for _, run in ipairs(redis.call('SMEMBERS', out)) do
      if redis.call('HGET', run_key(run), 'token') == ARGV[3] then
        lose(run)
      end
    end
    redis.call('HDEL', base, 'take', 'stopping')
    redis.call('PUBLISH', base, '@worker left')
    for _, run in ipairs(redis.call('LRANGE', offers, 0, -1)) do
      redis.call('PUBLISH', base, run .. ' left')
    end
  end
  return 1
end

-- worker, endpoint, reason: the worker gets no jobs
function commands.refuse()
  refuse(ARGV[3], ARGV[4], false)
  return 1
end

-- worker, endpoint, run, ...: the worker pings, and lists its runs
function commands.ping()
  local before = registered_for()
  if before ~= ARGV[3] then
    local reason = ONLY_PINGS
    if before then
      reason = reason .. " here: it is registered for the endpoint '" .. before .. "'"
    end
    refuse(ARGV[3], reason, true)
    return 0
  end
  redis.call('HSET', base, 'ping_ms', now)
  redis.call('PEXPIRE', base, KEPT_MS)
  local listed = {}
  for i = 4, #ARGV do
    listed[ARGV[i]] = true
  end
  for _, run in ipairs(redis.call('SMEMBERS', out)) do
    local taken_ms = tonumber(redis.call('HGET', run_key(run), 'taken_ms') or 0)
    if listed[run] then
      begin(run)
      redis.call('HDEL', run_key(run), 'misses')
    elseif taken_ms + GRACE_MS < now and redis.call('HINCRBY', run_key(run), 'misses', 1) >= MISSES then
      lose(run)
    end
  end
  return 1
end

-- worker, endpoint, run -> job and attempt of a run that has not ended, or nil; marks the run as begun
function commands.reported()
  local run = ARGV[4]
  if registered_for() == ARGV[3] then
    renew()
  end
  local job, attempt, state = unpack(redis.call('HMGET', run_key(run), 'job', 'attempt', 'state'))
  if (state ~= 'delivered' and state ~= 'begun') or not has_taken(run, ARGV[3]) then
    return false
  end
  begin(run)
  return {job, attempt}
end

-- worker, endpoint, run, reason: the run cannot be COMPLETED by any result
function commands.spoil()
  if not has_taken(ARGV[4], ARGV[3]) then
    return 0
  end
  redis.call('HSETNX', run_key(ARGV[4]), 'spoiled', ARGV[5])
  return 1
end

-- worker, endpoint, run, stopping (0|1), status, output, error (each may be ''): the run has ended -> 1, or
-- 0 if the result is no longer needed
function commands.done()
  local run = ARGV[4]
  if registered_for() == ARGV[3] then
    renew()
    if ARGV[5] == '1' then
      redis.call('HSET', base, 'stopping', 1, 'asked_ms', now)
      -- The worker ends when the API answers its open requests.
      redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' LEAVE')
      redis.call('PUBLISH', EVENTS, 'stop:' .. worker .. ' LEAVE')
      if #worker == 14 and is_a(MANAGED .. ':' .. worker, 'hash')
        and redis.call('HGET', MANAGED .. ':' .. worker, 'phase') == 'ready' then
        redis.call('HSET', MANAGED .. ':' .. worker, 'restart', 1)
        redis.call('PUBLISH', NOTICES, 'restart ' .. worker)
      end
    end
  end
  local state, spoiled = unpack(redis.call('HMGET', run_key(run), 'state', 'spoiled'))
  if not state then
    redis.call('SREM', out, run)
    return 0
  end
  if state == 'done' or not has_taken(run, ARGV[3]) then
    return 0
  end
  local status, output, problem = ARGV[6], ARGV[7], ARGV[8]
  if spoiled and status == 'COMPLETED' then
    status, output, problem = 'FAILED', '', spoiled
  end
  redis.call('HSET', run_key(run), 'status', status, 'output', output, 'error', problem,
    'ended_ms', now)
  redis.call('SREM', out, run)
  set_state(run, 'done')
  return 1
end

-- worker, endpoint -> runs to stop, each returned once, or nil: the worker must restart
function commands.stops()
  if registered_for() ~= ARGV[3] then
    -- This request must not renew the worker's registration with another endpoint.
    return {}
  end
  renew()
  if redis.call('HEXISTS', base, 'stopping') == 1 then
    return false
  end
  local runs = redis.call('LRANGE', base .. ':stops', 0, -1)
  redis.call('DEL', base .. ':stops')
  return runs
end
