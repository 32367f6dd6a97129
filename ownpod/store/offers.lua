-- What workers that pull and their nodes tell each other, each call one atomic step. pull.py puts the
-- constants in front: PULL, PULLING, HEARD, EVENTS, ENDPOINT (see keys.py), KEPT_MS, GRACE_MS, MISSES,
-- RESTART_MS, WITHDRAWN_MS, MOST_REFUSED, NAMED_MS; scripts.py puts `now` there, Redis's clock in ms.
--
-- PULLING                   hash   worker id -> {"endpoint", "capacity"}: who pulls
-- HEARD                     zset   worker ids, by the ms when they last asked for anything, or posted, on the
--                                  endpoint that they are registered for; pings do not count, their process may
--                                  outlive the worker
-- PULL<worker>              hash   `take`, the token of the last request for jobs, deleted when the worker closes
--                                  that request: without it the worker has left; `asked_ms`, when that came
--                                  or was last held; `ping_ms`, when it last pinged; `stopping`, it wants
--                                  its container to be restarted: no job until it is another process; `key`, the
--                                  digest of the key of the last request for jobs; `awaited`, its node waits for
--                                  its next request
--                                  pub/sub of the same name: "<run> <state>" for each change of a run, "<run> left"
--                                  for each offer when the worker leaves, "@worker <what>" when it leaves or comes
-- PULL<worker>:offers       list   runs that the worker may take
-- PULL<worker>:out          set    runs that it took and that have not ended
-- PULL<worker>:stops        list   runs that it is to stop
-- PULL<worker>:run:<run>    hash   `job`, `attempt`, `body` (what the worker is given), `until_ms` (its
--                                  executionTimeout); `state`: offered, delivered (taken), begun (it was
--                                  heard of), done, unbegun, gone, withdrawn; `taken_ms`, `ended_ms`; `token`, `endpoint`, `key` of the
--                                  request that took it; `misses`, pings in a row without it; `spoiled`, why it
--                                  cannot be COMPLETED; with done `status`, `output`, `error`
-- ENDPOINT<endpoint>:refused hash  worker id -> "<ms> <reason>" of the last refusal, at most MOST_REFUSED
-- EVENTS                    pub/sub "take:<worker> OFFER", "stop:<worker> STOP", both with LEAVE, the first with LOOK

local worker = ARGV[2]
local base = PULL .. worker
local offers, out = base .. ':offers', base .. ':out'

local function run_key(run)
  return base .. ':run:' .. run
end

local function is_a(key, kind)
  return redis.call('TYPE', key).ok == kind
end

-- A key of another type cannot be used, and would end each script that reads it. -> whether there was one
local function drop_broken()
  local broken = false
  for key, kind in pairs({[base] = 'hash', [offers] = 'list', [out] = 'set', [base .. ':stops'] = 'list'}) do
    local found = redis.call('TYPE', key).ok
    if found ~= 'none' and found ~= kind then
      redis.call('DEL', key)
      broken = true
    end
  end
  return broken
end

local function set_state(run, state)
  redis.call('HSET', run_key(run), 'state', state)
  redis.call('PUBLISH', base, run .. ' ' .. state)
end

local commands = {}

-- worker: asks the API for a node that has just begun whether it holds a request of the worker
function commands.await()
  drop_broken()
  redis.call('HSET', base, 'awaited', 1)
  redis.call('PEXPIRE', base, KEPT_MS)
  redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' LOOK')
  return 1
end

-- worker, run, job, attempt, body, ms that it may take: the worker may have it, when it asks. Repeated,
-- because the answer was lost, it changes nothing: a run that is listed twice would be handed out twice.
function commands.offer()
  local run = ARGV[3]
  drop_broken()
  local state = redis.call('HGET', run_key(run), 'state')
  if state and state ~= 'withdrawn' then
    return 1
  end
  redis.call('HSET', run_key(run), 'job', ARGV[4], 'attempt', ARGV[5], 'body', ARGV[6],
    'until_ms', now + ARGV[7], 'state', 'offered')
  redis.call('PEXPIRE', run_key(run), KEPT_MS)
  redis.call('RPUSH', offers, run)
  redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' OFFER')
  return 1
end

-- worker, run -> 1: it was not taken, and is not to be any more. The run is kept for a minute, so that the
-- call, repeated because its answer was lost, answers the same
function commands.withdraw()
  local key = run_key(ARGV[3])
  local state = redis.call('HGET', key, 'state')
  if state ~= 'offered' then
    return state == 'withdrawn' and 1 or 0
  end
  redis.call('LREM', offers, 1, ARGV[3])
  redis.call('HSET', key, 'state', 'withdrawn')
  redis.call('HDEL', key, 'body')
  redis.call('PEXPIRE', key, WITHDRAWN_MS)
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

-- worker, gone ms -> 1: the worker has sent nothing for so long and has no runs, so it is removed; 2: the
-- same, and what was kept of it was broken
function commands.forget()
  local heard_ms = tonumber(redis.call('ZSCORE', HEARD, worker) or now)
  if heard_ms + tonumber(ARGV[3]) > now then
    return 0
  end
  local broken = drop_broken()
  if redis.call('SCARD', out) > 0 or redis.call('LLEN', offers) > 0 then
    return 0
  end
  redis.call('ZREM', HEARD, worker)
  redis.call('HDEL', PULLING, worker)
  redis.call('DEL', base, base .. ':stops')
  return broken and 2 or 1
end
