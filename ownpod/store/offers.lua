-- Offers of runs to workers that pull; every command is one atomic step. The node's commands are here, those
-- of the worker in pulling.lua. offers.py puts the constants in front: PULL, PULLING, HEARD, EVENTS, ENDPOINT,
-- MANAGED (keys.py), KEPT_MS, GRACE_MS, MISSES, RESTART_MS, WITHDRAWN_MS, MOST_REFUSED, NAMED_MS; scripts.py
-- adds `now`, Redis's clock in ms. ARGV[1] is the command's name, and its arguments begin at ARGV[2].
--
-- PULLING                   hash   worker id -> {"endpoint", "capacity"}, of all registered workers
-- HEARD                     zset   worker ids, by the ms of their last request on the endpoint that they are
--                                  registered for; pings do not count, because the process that sends them
--                                  may outlive the worker
-- PULL<worker>              hash   `take`, the token of the last request for jobs; deleted when the worker closes
--                                  that request: without it the worker has left;
--                                  `asked_ms`, when that request arrived or was last held;
--                                  `ping_ms`, when the worker last pinged, also before its first request;
--                                  `stopping`, the worker requested a restart of its container, and gets no
--                                  job before another process asks;
--                                  `key`, the digest of the key of the last request for jobs;
--                                  `awaited`, the node waits for the worker's next request
--                                  pub/sub of the same name: "<run> <state>" for each change of a run, "<run> left"
--                                  for each offer when the worker leaves, "@worker <what>" when it leaves or asks
-- PULL<worker>:offers       list   runs that the worker may take
-- PULL<worker>:out          set    runs that the worker took and that have not ended
-- PULL<worker>:stops        list   runs that the worker must stop
-- PULL<worker>:run:<run>    hash   `job`, `attempt`, `body` (the JSON that the worker gets), `until_ms` (the end
--                                  of its executionTimeout); `state`: offered, delivered (taken), begun (the
--                                  worker sent something about the run), done, unbegun, gone, withdrawn;
--                                  `taken_ms`, `ended_ms`; `token`, `endpoint`, `key` of the request that took
--                                  the run; `misses`, pings in a row without the run; `spoiled`, why the run
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

-- Deletes keys of another type, because an error would end each script that reads one. -> whether there was one
local function drop_broken()
  local broken = false
  for key, kind in pairs({[base] = 'hash', [offers] = 'list', [out] = 'set', [base .. ':stops'] = 'list'}) do
    local actual = redis.call('TYPE', key).ok
    if actual ~= 'none' and actual ~= kind then
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

-- worker: asks the API, for a node that has just started, to renew the request of the worker that it may hold
function commands.await()
  drop_broken()
  redis.call('HSET', base, 'awaited', 1)
  redis.call('PEXPIRE', base, KEPT_MS)
  redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' LOOK')
  return 1
end

-- worker, run, job, attempt, body, ms that the run may last: the worker can take the run. A repeated call
-- changes nothing, because a run that is listed twice would be taken twice.
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

-- worker, run -> 1: the run was not taken, and cannot be taken any more. The run is kept for a minute, so that
-- a call that is repeated after a lost answer returns the same
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

-- worker, run, ms: the node has read the run's end; the run is kept for so many ms
function commands.settle()
  redis.call('SREM', out, ARGV[3])
  redis.call('PEXPIRE', run_key(ARGV[3]), ARGV[4])
  return 1
end

-- worker, run -> 1: the worker runs it, and must stop it
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

-- worker, gone ms -> 1: the worker has sent nothing for so many ms and has no runs, so it is removed; 2: the
-- same, and some of its keys were broken
function commands.forget()
  local requested_ms = tonumber(redis.call('ZSCORE', HEARD, worker) or now)
  if requested_ms + tonumber(ARGV[3]) > now then
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
