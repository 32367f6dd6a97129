-- What workers that pull and their nodes tell each other, each call one atomic step. pull.py puts the
-- constants in front: PULL, PULLING, HEARD, EVENTS (see keys.py), KEPT_MS, GRACE_MS, MISSES,
-- RESTART_MS.
--
-- PULLING                   hash   worker id -> {"endpoint", "capacity"}: who pulls
-- HEARD                     zset   worker ids, by the ms when they last asked for anything, or posted; pings
--                                  do not count, their process may outlive the worker
-- PULL<worker>              hash   `take`, the token of the last request for jobs; `asked_ms`, when that came
--                                  or was last held; `ping_ms`, when it last pinged; `stopping`, it wants
--                                  its container to be restarted: no job until it is another process
--                                  pub/sub of the same name: "<run> <state>" for each change of a run
-- PULL<worker>:offers       list   runs that the worker may take
-- PULL<worker>:out          set    runs that it took and that have not ended
-- PULL<worker>:stops        list   runs that it is to stop
-- PULL<worker>:run:<run>    hash   `job`, `attempt`, `body` (what the worker is given), `until_ms` (its
--                                  executionTimeout); `state`: offered, delivered (taken), begun (it was
--                                  heard of), done, gone; `taken_ms`, `ended_ms`; `misses`, pings in a row without it;
--                                  with done `status`, `output`, `error`
-- EVENTS                    pub/sub "take:<worker> OFFER", "stop:<worker> STOP", both with LEAVE

-- Redis's clock: API and node may be on different hosts.
local time = redis.call('TIME')
local now = math.floor(time[1] * 1000 + time[2] / 1000)
local worker = ARGV[2]
local base = PULL .. worker
local offers, out = base .. ':offers', base .. ':out'

local function run_key(run)
  return base .. ':run:' .. run
end

local function set_state(run, state)
  redis.call('HSET', run_key(run), 'state', state)
  redis.call('PUBLISH', base, run .. ' ' .. state)
end

local function hear()
  redis.call('ZADD', HEARD, now, worker)
end

-- It is in the worker's hands: what the client sees goes by the node's word, so that is told.
local function begin(run)
  if redis.call('HGET', run_key(run), 'state') == 'delivered' then
    set_state(run, 'begun')
  end
end

local function lose(run)
  redis.call('SREM', out, run)
  if redis.call('EXISTS', run_key(run)) == 1 then
    local begun = redis.call('HGET', run_key(run), 'state') == 'begun'
    set_state(run, begun and 'gone' or 'unbegun')
  end
end

-- -> whether it is to be restarted, and bodies of runs that are the worker's now
local function hand_out(most)
  redis.call('HSET', base, 'asked_ms', now)
  local bodies = {}
  if redis.call('HEXISTS', base, 'stopping') == 1 then
    return {1, bodies}
  end
  while #bodies < most do
    local run = redis.call('LPOP', offers)
    if not run then
      break
    end
    local body = redis.call('HGET', run_key(run), 'body')
    if body then
      redis.call('HSET', run_key(run), 'taken_ms', now)
      redis.call('SADD', out, run)
      set_state(run, 'delivered')
      bodies[#bodies + 1] = body
    end
  end
  return {0, bodies}
end

local commands = {}

-- worker, endpoint, token, most, in progress (0|1), gone ms -> see hand_out, or nil: another endpoint's
-- worker goes by this name
function commands.take()
  local endpoint, token, most, gone_ms = ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[7])
  local known = redis.call('HGET', PULLING, worker)
  local heard_ms = tonumber(redis.call('ZSCORE', HEARD, worker) or 0)
  if known and cjson.decode(known).endpoint ~= endpoint and heard_ms + gone_ms > now then
    return false
  end
  hear()
  if ARGV[6] == '0' then
    -- It asks with nothing in hand: what it had has ended without a result.
    for _, run in ipairs(redis.call('SMEMBERS', out)) do
      lose(run)
    end
  end
  local asked_ms = tonumber(redis.call('HGET', base, 'asked_ms') or 0)
  if ARGV[6] == '0' and asked_ms + RESTART_MS < now then
    -- A living one would have asked sooner.
    redis.call('HDEL', base, 'stopping')
  end
  redis.call('HSET', base, 'take', token)
  redis.call('PEXPIRE', base, KEPT_MS)
  local capacity = most + redis.call('SCARD', out)
  local entry = cjson.encode({endpoint = endpoint, capacity = capacity})
  if known ~= entry then
    redis.call('HSET', PULLING, worker, entry)
  end
  return hand_out(most)
end

-- worker, token, most -> see hand_out, or nil: it has asked anew since
function commands.collect()
  if redis.call('HGET', base, 'take') ~= ARGV[3] then
    return false
  end
  hear()
  return hand_out(tonumber(ARGV[4]))
end

-- worker, token: who asked has closed the connection, so it is another process that asks next
function commands.left()
  if redis.call('HGET', base, 'take') == ARGV[3] then
    redis.call('HDEL', base, 'take', 'stopping')
  end
  return 1
end

-- worker, run, ...: it pings, with these in hand
function commands.ping()
  redis.call('HSET', base, 'ping_ms', now)
  redis.call('PEXPIRE', base, KEPT_MS)
  local listed = {}
  for i = 3, #ARGV do
    listed[ARGV[i]] = true
    begin(ARGV[i])
  end
  for _, run in ipairs(redis.call('SMEMBERS', out)) do
    local taken_ms = tonumber(redis.call('HGET', run_key(run), 'taken_ms') or 0)
    if listed[run] then
      redis.call('HDEL', run_key(run), 'misses')
    elseif taken_ms + GRACE_MS < now and redis.call('HINCRBY', run_key(run), 'misses', 1) >= MISSES then
      lose(run)
    end
  end
  return 1
end

-- worker, run -> job and attempt of a run that goes on, or nil: the worker was heard of it
function commands.heard()
  hear()
  local job, attempt, state =
    unpack(redis.call('HMGET', run_key(ARGV[3]), 'job', 'attempt', 'state'))
  if state ~= 'delivered' and state ~= 'begun' then
    return false
  end
  begin(ARGV[3])
  return {job, attempt}
end

-- worker, run, stopping (0|1), status, output, error (each may be ''): the run has ended -> 1, or 0 if
-- nobody waits for it
function commands.done()
  local run = ARGV[3]
  hear()
  if ARGV[4] == '1' then
    redis.call('HSET', base, 'stopping', 1, 'asked_ms', now)
    -- It ends when nothing is held open for it.
    redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' LEAVE')
    redis.call('PUBLISH', EVENTS, 'stop:' .. worker .. ' LEAVE')
  end
  redis.call('SREM', out, run)
  local state = redis.call('HGET', run_key(run), 'state')
  if not state or state == 'done' then
    return 0
  end
  redis.call('HSET', run_key(run), 'status', ARGV[5], 'output', ARGV[6], 'error', ARGV[7],
    'ended_ms', now)
  set_state(run, 'done')
  return 1
end

-- worker, run, job, attempt, body, ms that it may take: the worker may have it, when it asks
function commands.offer()
  local run = ARGV[3]
  redis.call('HSET', run_key(run), 'job', ARGV[4], 'attempt', ARGV[5], 'body', ARGV[6],
    'until_ms', now + ARGV[7], 'state', 'offered')
  redis.call('PEXPIRE', run_key(run), KEPT_MS)
  redis.call('RPUSH', offers, run)
  redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' OFFER')
  return 1
end

-- worker, run -> 1: it was not taken, and is not to be any more
function commands.withdraw()
  if redis.call('HGET', run_key(ARGV[3]), 'state') ~= 'offered' then
    return 0
  end
  redis.call('LREM', offers, 1, ARGV[3])
  redis.call('DEL', run_key(ARGV[3]))
  redis.call('PUBLISH', base, ARGV[3] .. ' withdrawn')
  return 1
end

-- worker, run, ms: the node knows how it ended; what is known of it stays so long
function commands.settle()
  redis.call('SREM', out, ARGV[3])
  redis.call('PEXPIRE', run_key(ARGV[3]), ARGV[4])
  return 1
end

-- worker, run -> 1: it is to be stopped, and the worker has it
function commands.stop()
  if redis.call('SISMEMBER', out, ARGV[3]) == 0 then
    return 0
  end
  redis.call('LREM', base .. ':stops', 0, ARGV[3])
  redis.call('RPUSH', base .. ':stops', ARGV[3])
  redis.call('PEXPIRE', base .. ':stops', KEPT_MS)
  redis.call('PUBLISH', EVENTS, 'stop:' .. worker .. ' STOP')
  return 1
end

-- worker -> runs to stop, each told once, or nil: it is to be restarted
function commands.stops()
  hear()
  if redis.call('HEXISTS', base, 'stopping') == 1 then
    return false
  end
  local runs = redis.call('LRANGE', base .. ':stops', 0, -1)
  redis.call('DEL', base .. ':stops')
  return runs
end

-- '', gone ms -> workers that were not heard of for so long and have nothing in hand; they are forgotten
function commands.forget()
  local gone = {}
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', HEARD, '-inf', now - tonumber(ARGV[3]))) do
    local key = PULL .. name
    if redis.call('SCARD', key .. ':out') == 0 and redis.call('LLEN', key .. ':offers') == 0 then
      redis.call('ZREM', HEARD, name)
      redis.call('HDEL', PULLING, name)
      redis.call('DEL', key, key .. ':stops')
      gone[#gone + 1] = name
    end
  end
  return gone
end
