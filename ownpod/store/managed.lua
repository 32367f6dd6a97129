-- Managed workers: each command is one atomic step, and a move is refused unless the record is in a phase that
-- it may leave, and belongs to the caller's host. managed.py puts the constants in front: those of offers.lua
-- and ENTRIES, IDLE, FAILURES, NOTICES, HOSTS, WANTED, STOPPED, HELD, RESERVED, NEXT, SEEN, DRAINING_HOSTS, PAUSED,
-- OUTPUT (keys.py), RANK (each phase's place in the order), MOST_STOPPED, STOPPED_MS, PAUSES_MS, BUCKETS_MS. The
-- helpers of offers.lua, pulling.lua, slots.lua and starts.lua are in front too, so ARGV[2] is the worker's id.
--
-- MANAGED:<worker>          hash    the record: the fields of ManagedWorker (rules/managed.py), `devices`, `pools`
--                                   and `volumes` as JSON lists; `protocol`, push, pull or http; until it is stopped `key`, the
--                                   digest of its own key, and `spec`, the JSON of what it is started from;
--                                   `prepared_ms`, when its image was there
-- MANAGED                   zset    ids of workers that are not stopped, by created_ms
-- WANTED                    zset    those of them that no agent has taken
-- STOPPED                   zset    ids of stopped workers, by stopped_ms: the last MOST_STOPPED, for STOPPED_MS
-- HOSTS<host>               set     ids of workers that belong to a host and are not stopped
-- ENTRIES                   hash    worker id -> JSON {endpoint, kind, key, draining, stopping; once it has one: url,
--                                   healthPort}: what the registry reads, from the step that gives the worker to a host on
-- IDLE                      hash    worker id -> ms since when the scaler has seen no job of it; a claim removes it
-- FAILURES<endpoint>        hash    of the endpoint's last start that failed: release, created_ms (of the worker),
--                                   reason, exit_code, log, worker; count (in a row), until_ms (no start before)
-- ENDPOINT<ep>:refusing     hash    host -> the endpoint's release that it cannot start
-- ENDPOINT<ep>:starts       hash    "<part>:<number of the bucket>" -> starts that became ready, "<part>:sum" -> ms, by part
--                                   of the start: device, prepare, create, import; "failed" -> starts that failed;
--                                   "load_ms" -> ms that the last one took from its start to ready
-- HELD                      hash    "<host>/<device>#<slot>" -> worker id, until nothing of the worker runs there
-- NEXT                      see sharing.lua
-- RESERVED, SEEN, DRAINING_HOSTS    see agents.lua
-- NOTICES                   pub/sub "<what> <worker>" for what the scaler or an agent acts on

local function notify(what)
  redis.call('PUBLISH', NOTICES, what .. ' ' .. worker)
end

-- Phase, host and endpoint of the worker; the phase is '' for one that does not exist.
local function known()
  local phase, host, endpoint = unpack(redis.call('HMGET', record, 'phase', 'host', 'endpoint'))
  return phase or '', host, endpoint or ''
end

local function note_audit()
  if ARGV[4] then
    redis.call('XADD', AUDIT, 'MAXLEN', '~', MOST_AUDITS, '*', unpack(ARGV, 4))
  end
end

local function may_move(old, new)
  return RANK[old] and RANK[old] < RANK[new]
end

-- Writes what the registry reads of the worker.
local function write_entry()
  local values = redis.call('HMGET', record, 'endpoint', 'protocol', 'key', 'url', 'phase', 'health_port', 'role')
  local entry = {
    endpoint = values[1], kind = values[2], key = values[3] or nil, url = values[4] or nil,
    healthPort = tonumber(values[6]), private = values[7] and true or nil,
    draining = RANK[values[5]] >= RANK.draining, stopping = RANK[values[5]] >= RANK.stopping
  }
  redis.call('HSET', ENTRIES, worker, cjson.encode(entry))
end

-- The worker gets no more jobs: its node stops to fetch, and the API answers the request that it may hold.
local function close(reason)
  write_entry()
  redis.call('HSET', PAUSED, worker, reason)
  redis.call('PUBLISH', EVENTS, 'take:' .. worker .. ' LOOK')
  redis.call('PUBLISH', EVENTS, 'stop:' .. worker .. ' LEAVE')
end

-- Ends what the worker has as one that pulls: its node requeues the runs that have not ended.
local function forget_pulls()
  drop_broken()
  for _, run in ipairs(redis.call('SMEMBERS', out)) do
    if is_a(run_key(run), 'hash') then
      -- Counted as an attempt, because a job that ends its worker at once must not do so without an end.
      lose(run, true)
    end
  end
  redis.call('HDEL', PULLING, worker)
  redis.call('ZREM', HEARD, worker)
  redis.call('DEL', base .. ':stops', out)
  redis.call('HDEL', base, 'take', 'stopping')
  redis.call('PEXPIRE', base, WITHDRAWN_MS)
  redis.call('PUBLISH', base, '@worker left')
  for _, run in ipairs(redis.call('LRANGE', offers, 0, -1)) do
    redis.call('PUBLISH', base, run .. ' left')
  end
end

-- The worker is stopped, and leaves the registry. Its record is kept for a while, without its secrets.
local function retire(host, reason)
  redis.call('HSET', record, 'phase', 'stopped', 'reason', reason, 'stopped_ms', now)
  redis.call('HDEL', record, 'spec', 'key')
  let_go()
  redis.call('PEXPIRE', record, STOPPED_MS)
  redis.call('ZREM', MANAGED, worker)
  redis.call('ZREM', WANTED, worker)
  redis.call('HDEL', ENTRIES, worker)
  redis.call('HDEL', PAUSED, worker)
  redis.call('HDEL', IDLE, worker)
  redis.call('ZREM', ENDPOINT .. (redis.call('HGET', record, 'endpoint') or '') .. ':sessions', worker)
  if host then
    redis.call('SREM', HOSTS .. host, worker)
    forget_pulls()
  end
  redis.call('ZADD', STOPPED, now, worker)
  redis.call('ZREMRANGEBYSCORE', STOPPED, '-inf', now - STOPPED_MS)
  redis.call('PEXPIRE', OUTPUT .. worker, STOPPED_MS)
  redis.call('PEXPIRE', OUTPUT .. worker .. ':state', STOPPED_MS)
  for _, old in ipairs(redis.call('ZRANGE', STOPPED, 0, -MOST_STOPPED - 1)) do
    redis.call('DEL', MANAGED .. ':' .. old, OUTPUT .. old, OUTPUT .. old .. ':state')
    redis.call('ZREM', STOPPED, old)
  end
  notify('stopped')
end

-- The worker is wanted, from the arguments of the command.
local function want()
  if redis.call('EXISTS', record) == 1 then
    return redis.call('HGET', record, 'phase') == 'wanted' and redis.call('HGET', record, 'endpoint') == ARGV[3] and 1 or 0
  end
  redis.call('HSET', record, 'phase', 'wanted', 'created_ms', now, 'endpoint', ARGV[3], 'release', ARGV[4],
    'gpu_count', ARGV[5], 'pools', ARGV[6], 'protocol', ARGV[7], 'spec', ARGV[8], 'volumes', ARGV[9],
    'refused_by', refusing(ARGV[3], ARGV[4]))
  redis.call('ZADD', MANAGED, now, worker)
  redis.call('ZADD', WANTED, now, worker)
  notify('wanted')
  return 1
end

local commands = {}

-- worker, endpoint, release, number of devices, pools, protocol, spec, volumes -> 1: it is wanted; 0: another worker has this id
function commands.want()
  return want()
end

-- worker, and the others of want -> 1: the worker, which was ready and was stopped without a failure, is wanted again, by
-- the same id; 0: there is none of this endpoint and release, or it runs
function commands.want_again()
  local phase, release, of, ready, failed, ended =
    unpack(redis.call('HMGET', record, 'phase', 'release', 'endpoint', 'ready_ms', 'failed', 'ended_in'))
  if of ~= ARGV[3] or release ~= ARGV[4] then
    return 0
  end
  if phase == 'stopped' and ready and failed ~= '1' and (ended or '') == '' then
    -- Its output too, because the next process writes from the beginning.
    redis.call('DEL', record, OUTPUT .. worker, OUTPUT .. worker .. ':state')
    redis.call('ZREM', STOPPED, worker)
  end
  return want()
end

-- worker, reason, fields of an entry of AUDIT ... -> 1: no agent had taken the worker, and none will
function commands.discard()
  if known() ~= 'wanted' then
    return 0
  end
  retire(nil, ARGV[3])
  note_audit()
  return 1
end

-- worker, reason: why no agent takes it; bytes of its model that a host has, and all of them, 0: not known, both '' if the model is
-- not on its way
function commands.waits()
  local phase, _, endpoint = known()
  if phase ~= 'wanted' then
    return 0
  end
  local is_news = redis.call('HGET', record, 'reason') ~= ARGV[3]
  redis.call('HSET', record, 'reason', ARGV[3])
  if ARGV[4] ~= '' then
    redis.call('HSET', record, 'fetched_ms', now)
    if is_news then
      local progress = {done = tonumber(ARGV[4]), total = tonumber(ARGV[5]), unit = 'bytes'}
      add_worker_entries(endpoint, 'fetching', {message = ARGV[3], progress = progress})
    end
  end
  return 1
end

-- worker, host, token of the agent, device, its slots, device, its slots, ... -> 1: the worker is the host's, and
-- holds these devices; 0: it is another host's, or the host may not have it, or a device is not free
function commands.place()
  local host, devices, fields = ARGV[3], {}, {}
  local phase, at, endpoint = known()
  for i = 5, #ARGV, 2 do
    devices[#devices + 1] = ARGV[i]
  end
  local listed = #devices > 0 and cjson.encode(devices) or '[]'
  if string.match(redis.call('HGET', SEEN, host) or '', ' (.*)$') ~= ARGV[4] then
    return 0
  end
  if phase == 'preparing' and at == host and redis.call('HGET', record, 'devices') == listed then
    return 1
  end
  if phase ~= 'wanted' or redis.call('SISMEMBER', DRAINING_HOSTS, host) == 1
    or redis.call('HGET', record, 'gpu_count') ~= tostring(#devices) then
    return 0
  end
  local listed_before = {}
  for i = 5, #ARGV, 2 do
    local device = host .. '/' .. ARGV[i]
    if listed_before[device] or is_reserved(device) then
      return 0
    end
    listed_before[device] = true
    local slot, slots = 0, tonumber(ARGV[i + 1])
    while slot < slots and (redis.call('HEXISTS', HELD, device .. '#' .. slot) == 1 or is_kept(device .. '#' .. slot)) do
      slot = slot + 1
    end
    if slot >= slots then
      return 0
    end
    fields[#fields + 1] = device .. '#' .. slot
  end
  for _, field in ipairs(fields) do
    redis.call('HSET', HELD, field, worker)
  end
  redis.call('HSET', record, 'phase', 'preparing', 'host', host, 'devices', listed, 'placed_ms', now, 'reason', '')
  redis.call('ZREM', WANTED, worker)
  let_go()
  redis.call('SADD', HOSTS .. host, worker)
  write_entry()
  -- The typed events of jobs that wait for this worker show their connection where this entry is.
  add_entries(endpoint, worker, 'connection', '{}')
  return 1
end

-- worker, host, digest of its key -> 1: its requests need this key from now on
function commands.set_key()
  local phase, at = known()
  if at ~= ARGV[3] or phase ~= 'preparing' then
    return 0
  end
  redis.call('HSET', record, 'key', ARGV[4], 'prepared_ms', now)
  write_entry()
  return 1
end

-- worker, host, reason: what its start waits for
function commands.progress()
  local phase, at, endpoint = known()
  if at == ARGV[3] and (phase == 'preparing' or phase == 'starting') then
    if ARGV[4] ~= '' and redis.call('HGET', record, 'reason') ~= ARGV[4] then
      add_worker_entries(endpoint, phase == 'preparing' and 'pulling' or 'initializing', {message = ARGV[4]})
    end
    redis.call('HSET', record, 'reason', ARGV[4])
    return 1
  end
  return 0
end

-- worker, host, URL or '', port of its health check or '' -> 1: its container runs
function commands.started()
  local phase, at, endpoint = known()
  if at ~= ARGV[3] or not (phase == 'preparing' or phase == 'starting' or phase == 'ready') then
    return 0
  end
  redis.call('HSETNX', record, 'started_ms', now)
  if ARGV[4] ~= '' then
    redis.call('HSET', record, 'url', ARGV[4])
  end
  if ARGV[5] ~= '' then
    redis.call('HSET', record, 'health_port', ARGV[5])
  end
  if phase == 'preparing' then
    redis.call('HSET', record, 'phase', 'starting', 'reason', '')
    -- The container of a one-off task is created later, when its node has claimed the job.
    add_worker_entries(endpoint, redis.call('HGET', record, 'role') == 'task' and 'initializing' or 'created')
  end
  write_entry()
  return 1
end

-- worker -> 1: it has asked for a job, or its health check was well, for the first time, so its endpoint's workers can start
function commands.ready()
  local phase, _, endpoint = known()
  if phase ~= 'preparing' and phase ~= 'starting' then
    return 0
  end
  redis.call('HSET', record, 'phase', 'ready', 'ready_ms', now, 'reason', '')
  local wanted, placed, prepared, started, role =
    unpack(redis.call('HMGET', record, 'created_ms', 'placed_ms', 'prepared_ms', 'started_ms', 'role'))
  if role then
    redis.call('HSET', record, 'active_ms', now)
  end
  if role == 'session' then
    add_worker_entries(endpoint, 'ready', {load_seconds = math.max(0, now - (started or now)) / 1000})
  end
  observe(endpoint, 'device', wanted, placed)
  observe(endpoint, 'prepare', placed, prepared)
  observe(endpoint, 'create', prepared, started)
  observe(endpoint, 'import', started, now)
  -- The worker of a one-off task loads nothing before its job.
  if started and role ~= 'task' then
    redis.call('HSET', ENDPOINT .. endpoint .. ':starts', 'load_ms', math.max(0, now - started))
  end
  if redis.call('HGET', FAILURES .. endpoint, 'release') == redis.call('HGET', record, 'release') then
    redis.call('DEL', FAILURES .. endpoint)
  end
  notify('ready')
  return 1
end

-- worker, reason, fields of an entry of AUDIT ... -> 1: it gets no more jobs from now on
function commands.drain()
  local phase, host = known()
  if not host or not may_move(phase, 'draining') then
    return 0
  end
  redis.call('HSET', record, 'phase', 'draining', 'reason', ARGV[3])
  close(ARGV[3])
  notify('draining')
  note_audit()
  return 1
end

-- worker, host, reason or '': its -> 1: its agent may stop it
function commands.stopping()
  local phase, at = known()
  if at ~= ARGV[3] or not (phase == 'stopping' or may_move(phase, 'stopping')) then
    return 0
  end
  if phase ~= 'stopping' then
    local reason = ARGV[4] ~= '' and ARGV[4] or redis.call('HGET', record, 'reason') or ''
    redis.call('HSET', record, 'phase', 'stopping', 'reason', reason)
    close(reason)
  end
  return 1
end

-- worker, host, exit code or '', reason, failed (0|1), log, out of memory (0|1) -> 1: nothing of it runs any more
function commands.stopped()
  local phase, at, endpoint = known()
  if at ~= ARGV[3] or not may_move(phase, 'stopped') then
    return 0
  end
  local exit_code, reason, failed, log = ARGV[4], ARGV[5], ARGV[6], ARGV[7]
  redis.call('HSET', record, 'failed', failed, 'log', log, 'out_of_memory', ARGV[8],
    'ended_in', failed == '1' and phase or '')
  if exit_code ~= '' then
    redis.call('HSET', record, 'exit_code', exit_code)
  end
  if failed == '1' and redis.call('HEXISTS', record, 'ready_ms') == 0 and redis.call('HEXISTS', record, 'role') == 0 then
    count_failure(endpoint, reason, exit_code, log)
    redis.call('HINCRBY', ENDPOINT .. endpoint .. ':starts', 'failed', 1)
  end
  add_worker_entries(endpoint, failed == '1' and 'error' or 'stopped', {
    exit_code = tonumber(exit_code), oom = ARGV[8] == '1' or nil, error = failed == '1' and reason or nil,
    message = failed ~= '1' and reason or nil
  })
  free(at)
  retire(at, reason)
  return 1
end

-- worker, reason -> 1: its host is silent. Its devices stay held, because it may still run there
function commands.lost()
  local phase, host = known()
  if not host or not may_move(phase, 'stopped') then
    return 0
  end
  redis.call('HSET', record, 'ended_in', phase)
  add_worker_entries(redis.call('HGET', record, 'endpoint'), 'error', {error = ARGV[3]})
  retire(host, ARGV[3])
  return 1
end

-- worker, host -> 1: nothing of the worker runs on the host, so its devices there are free; 0: it is not stopped
function commands.gone()
  local phase, at = known()
  if at == ARGV[3] and may_move(phase, 'stopped') then
    return 0
  end
  free(ARGV[3])
  notify('gone')
  return 1
end
