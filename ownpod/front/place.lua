-- What HAProxy lacks: requests are held while an endpoint has no worker, and RunPod's header X-Runpod-Worker-Id.
-- Loaded once for each thread. Argument: the status of "timed out waiting for worker".

local TIMEOUT_STATUS = tonumber((...)) or 400
local TITLES = { [400] = "Bad Request", [404] = "Not Found", [413] = "Payload Too Large", [502] = "Bad Gateway", [503] = "Service Unavailable", [504] = "Gateway Timeout", [524] = "A Timeout Occurred" }

-- The server that keeps requests in the queue, see KEEPER in plan.py.
local KEEPER = ":keeper"

-- Longest wait in seconds of a request that names its worker (RunPod: about 5 minutes).
local STRICT_S = 300

-- Milliseconds between two checks of one held request: more while many wait, so that a thread's cost is bounded, at
-- MOST_CHECKS each millisecond. Thousands that are held would otherwise leave no time for all other requests.
local FIRST_MS, LONGEST_MS, MOST_CHECKS = 5, 1000, 4

local routes = Map.new("maps/routes.map", Map._str)
local remotes = Map.new("maps/remote.map", Map._str)
local holds = Map.new("maps/holds.map", Map._str)
local lost = Map.new("maps/lost.map", Map._str)
local gone = Map.new("maps/gone.map", Map._str)

local function now()
  local time = core.now()
  return time.sec + time.usec / 1e6
end

-- The same shape and types as `error_body` in rules/openai_replies.py.
local OPENAI_TYPES = { [404] = "not_found_error", [504] = "timeout_error" }
local function openai_error(status, detail, reason)
  local kind = OPENAI_TYPES[status] or status >= 500 and "server_error" or "invalid_request_error"
  local code = reason and '"' .. reason .. '"' or "null"
  return string.format('{"error":{"message":"%s","type":"%s","param":null,"code":%s}}', detail, kind, code)
end

-- Whether the client knows OpenAI's errors, see `_openai` in frontend.py.
local function knows_openai(txn)
  return txn:get_var("txn.openai") ~= nil
end

-- The status where no worker was there in time. RunPod's 400 would have OpenAI's clients give up, where 503 has them try again.
local function timeout_status(txn)
  return knows_openai(txn) and 503 or TIMEOUT_STATUS
end

local function problem(txn, status, detail, reason)
  if knows_openai(txn) then
    return openai_error(status, detail, reason)
  end
  local text = string.format('{"status":%d,"title":"%s","detail":"%s"', status, TITLES[status] or "Error", detail)
  if reason then
    text = text .. ',"reason":"' .. reason .. '"'
  end
  return text .. "}"
end

local function answer(txn, status, detail, reason)
  local reply = txn:reply()
  reply:set_status(status)
  reply:add_header("content-type", knows_openai(txn) and "application/json" or "application/problem+json")
  reply:add_header("cache-control", "no-store")
  if status ~= 404 then
    reply:add_header("retry-after", "5")
  end
  reply:set_body(problem(txn, status, detail, reason))
  txn:done(reply)
end

-- The state of a worker: "up", "draining", "down", or nil if it is gone; and whether it has a free place.
local function server(be, id)
  local backend = core.backends[be]
  local found = backend and id ~= KEEPER and backend.servers[id]
  if not found then
    return nil, false
  end
  local stats = found:get_stats()
  local status = stats.status or ""
  local limit = tonumber(stats.slim) or 0
  local free = limit == 0 or (tonumber(stats.scur) or 0) < limit
  if status:sub(1, 2) == "UP" or status == "no check" then
    return "up", free
  elseif status:sub(1, 5) == "DRAIN" then
    return "draining", free
  elseif status:sub(1, 5) == "MAINT" then
    return nil, false
  end
  return "down", false
end

-- The number of workers that get requests. HAProxy's `nbsrv` is 1, too, where only the keeper is up.
local function ready(txn, be)
  local count = tonumber(txn.f:nbsrv(be)) or 0
  local backend = core.backends[be]
  if count == 1 and backend and backend.servers[KEEPER] then
    return tonumber(backend:get_stats().act) or 0
  end
  return count
end

-- Waits until the next check. The number of held requests is estimated from the checks of the last tenth of a second:
-- a counter would never return to zero, because the coroutine of a client that leaves does not run again. The time that has
-- really passed counts, because requests that were held together are checked together.
local interval_ms, checks, since = FIRST_MS, 0, 0
local function pause()
  local time = now()
  local passed_ms = (time - since) * 1000
  if passed_ms >= 100 or passed_ms < 0 then
    local held = checks * interval_ms / math.max(100, passed_ms)
    interval_ms = math.floor(math.max(FIRST_MS, math.min(LONGEST_MS, held / MOST_CHECKS)))
    checks, since = 0, time
  end
  checks = checks + 1
  core.msleep(interval_ms)
end

-- Notifies the edge that a request is held, at most 50 times a second. If it fails the edge notices at its next poll.
local announced = 0
local function announce()
  local time = now()
  if time - announced > 0.02 then
    announced = time
    local socket = core.tcp()
    socket:settimeout(1)
    socket:connect("unix@edge.sock")
    socket:close()
  end
end

-- The endpoint's backend now, which is another one after its home has moved. Nil, and answered, if the client has left, or
-- if the endpoint was removed: its backend may belong to another endpoint soon.
local function follow(txn, ep, be)
  local address = tostring(txn.f:src()):gsub("^::ffff:", "") .. ":" .. tostring(txn.f:src_port())
  if gone:lookup(address) then
    answer(txn, timeout_status(txn), "the client has left")
    return nil
  end
  local current = routes:lookup(ep)
  if current == be then
    return be
  elseif not current then
    answer(txn, 404, "endpoint not found")
    return nil
  elseif remotes:lookup(current) and txn:get_var("txn.front") then
    -- It must not circle between fronts.
    answer(txn, 503, "the endpoint moves to another front")
    return nil
  end
  txn:set_var("txn.be", current)
  return current
end

-- Waits for one worker. The longest wait in HAProxy's own queue is that of the whole endpoint, which is shorter than
-- RunPod's for a named worker. So the request enters that queue only when other requests compete for the worker, or
-- when the rest of its time fits there.
local function strict(txn, ep, be, id, resumes, hold_s)
  local deadline = now() + math.max(STRICT_S, hold_s)
  local known = server(be, id)
  if resumes and known == nil then
    announce()
  end
  while be do
    if remotes:lookup(be) then
      -- The home decides.
      return
    end
    local state, free = server(be, id)
    if state == "up" or state == "draining" then
      if free or deadline - now() <= hold_s or (tonumber(core.backends[be]:get_stats().qcur) or 0) > 0 then
        txn:set_var("txn.pin", id)
        txn:set_var("txn.strict", id)
        return
      end
    elseif state == nil and (not resumes or lost:lookup(ep .. "|" .. id)) then
      return answer(txn, 404, "affinity_worker_gone", "affinity_worker_gone")
    end
    if now() >= deadline then
      return answer(txn, timeout_status(txn), "timed out waiting for worker", "worker_timeout")
    end
    pause()
    be = follow(txn, ep, be)
  end
end

core.register_action("place", { "http-req" }, function(txn)
  local ep, be = txn:get_var("txn.ep"), txn:get_var("txn.be")
  local want = txn:get_var("txn.want") or ""
  local hold_s = tonumber(holds:lookup(ep)) or 120
  if want ~= "" and not remotes:lookup(be) then
    local mode, id = want:match("^(%S+)%s+(%S+)%s*$")
    mode = mode and mode:lower()
    if mode == "strict" or mode == "strict-resume" then
      return strict(txn, ep, be, id, mode == "strict-resume", hold_s)
    end
    local state, free = server(be, want:match("^%s*(.-)%s*$"))
    if state == "up" and free then
      txn:set_var("txn.pin", want:match("^%s*(.-)%s*$"))
      return
    end
  end
  local deadline = now() + hold_s
  if ready(txn, be) == 0 then
    announce()
  end
  while ready(txn, be) == 0 do
    if now() >= deadline then
      return answer(txn, timeout_status(txn), "timed out waiting for worker")
    end
    pause()
    be = follow(txn, ep, be)
    if not be then
      return
    end
  end
end)

-- The body of HAProxy's own 503, which has three causes. The variable gives the status to the configuration.
core.register_fetches("problem", function(txn)
  local be = txn:get_var("txn.be") or ""
  local id = txn.f:srv_name()
  local status, detail, reason = timeout_status(txn), "timed out waiting for worker", nil
  local hold_s = tonumber(holds:lookup(txn:get_var("txn.ep") or "")) or 120
  if not id and now() - (tonumber(txn:get_var("txn.since")) or 0) < hold_s - 1 then
    -- The endpoint has left this backend, or lost its limit, while the request waited for a place.
    status, detail = 503, "no worker is ready"
  elseif id and id ~= "" then
    local state, free = server(be, id)
    if txn:get_var("txn.strict") and not free and state ~= "down" then
      reason = "worker_timeout"
    else
      status, detail = 502, "the worker accepts no connection"
    end
  end
  txn:set_var("txn.problem", status)
  return problem(txn, status, detail, reason)
end)

-- The body of HAProxy's own 502 and 504. The worker had the request, so it may have done the work.
core.register_fetches("failed", function(txn, status)
  txn:set_var("txn.began", 1)
  if tonumber(status) == 504 then
    status = knows_openai(txn) and 504 or 524
    txn:set_var("txn.problem", status)
    return problem(txn, status, "the request took longer than its processing limit")
  end
  txn:set_var("txn.problem", 502)
  local detail = "the connection ended before the response"
  if knows_openai(txn) then
    return problem(txn, 502, detail)
  end
  return string.format('{"status":502,"title":"%s","detail":"%s","error":"%s"}', TITLES[502], detail, detail)
end)

-- The body of HAProxy's own 400 after the request has been sent to a worker.
core.register_fetches("broken", function(txn)
  if tonumber(txn:get_var("txn.problem")) == 413 then
    return problem(txn, 413, "the body is larger than this endpoint accepts")
  end
  return problem(txn, 400, "HTTP syntax error in the body")
end)

-- Ends a chunked request above the endpoint's limit: HAProxy itself knows the length only where the client sends it.
-- What the worker has got by then is cut, so that it cannot take it for a whole request.
-- Bytes for the end of the chunks and trailers, which count as payload here.
local TRAILER = 4096
local Limit = { id = "limit", flags = filter.FLT_CFG_FL_HTX }
Limit.__index = Limit

function Limit:new()
  return setmetatable({}, Limit)
end

function Limit:http_headers(txn, message)
  local limit = txn:get_var("txn.chunked")
  if limit and not message:is_resp() then
    self.left = limit + TRAILER
    filter.register_data_filter(self, message.channel)
  end
end

function Limit:http_payload(txn, message)
  self.left = self.left - message:input()
  if self.left < 0 then
    txn:set_var("txn.problem", 413)
    -- The documented `filter.ERROR` changes nothing in 2.8.
    error("the body is above the limit")
  end
end

core.register_filter("limit", Limit, function(limit, args)
  return limit
end)
