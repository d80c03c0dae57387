-- The fast lane. Runs twice for a request, before the gate is asked and after it has answered.
--
-- After: where the gate leases its answer to the connection, that is noted. Before: a request to which the noted answer is the
-- answer too is decided by it, and the gate is not asked. That is so only for a request in its plainest form, which the gate
-- could read in no other way; every other one goes to the gate. What is here decides nothing: it compares.
--
-- The credential is not here. Envoy sets it, if it has it, once a request has a lane; if it has not, the gate is asked.

-- Compiling costs more than it saves here: the work on a request is short, and made of calls that are not compiled.
if jit then
  jit.off()
end

-- What is known of all routes: {marker}, and the headers in which a credential may be.
local marker = "{marker}"
local encoded = { {encoded} }
local credentials = { {credentials} }

-- Leases by connection: those noted lately, and those before. What is older has ended.
local lately, before, turned = {}, {}, 0
local longest = 5000 -- ms

-- Texts that hold no placeholder, in any of the forms the gate would look for, or in one that it would have to decode.
local function clean(text)
  if #text < #marker then
    return true
  end
  if text:find("%", 1, true) or text:lower():find(marker, 1, true) then
    return false
  end
  for i = 1, #encoded do
    if text:find(encoded[i], 1, true) then
      return false
    end
  end
  return true
end

-- Most headers are the same in all requests of a connection.
local function known(lease, text)
  if lease.clean[text] then
    return true
  end
  if not clean(text) then
    return false
  end
  if #text <= lease.room then
    lease.room = lease.room - #text
    lease.clean[text] = true
  end
  return true
end

-- Whether all servers read a path alike, and none of the paths that are decided otherwise is in it, in any letter case and with or
-- without a final slash. A parameter may stand for another method.
local function plain(lease, path)
  if path:sub(1, 1) ~= "/" or path:find("[%%\128-\255]") or not clean(path) then
    return false
  end
  path = path:lower()
  local only = path:match("^[^?]*")
  if only:find("[\\;#]") or only:find("//", 1, true) or only:find("/.", 1, true) or path:find("method", #only + 1, true) then
    return false
  end
  only = only .. "/"
  if only:find("./", 1, true) then -- some servers leave out the dot
    return false
  end
  for i = 1, #lease.avoid do
    if only:sub(1, #lease.avoid[i]) == lease.avoid[i] then
      return false
    end
  end
  return true
end

-- Whether an item is in a list, with space around it or without. A pattern that takes off the space would try anew at each of many spaces inside.
local function lists(value, item)
  for have in value:gmatch("[^,]+") do
    local from, to = have:find(item, 1, true)
    if from and not have:find("%S", to + 1) and not have:sub(1, from - 1):find("%S") then
      return true
    end
  end
  return false
end

-- The id of a request that the lease decides, and its list headers as they came; nothing where the gate has to decide.
local function covered(lease, headers)
  local held, id, path, sent = 0, nil, nil, {}
  for name, value in pairs(headers) do
    if name == lease.header then
      if value ~= lease.value then
        return nil
      end
      held = held + 1
    elseif name == ":path" then
      if not plain(lease, value) then
        return nil
      end
      path = value
    elseif name == ":method" then
      if not lease.method[value] then
        return nil
      end
    elseif name == ":authority" then
      if value ~= lease.authority then
        return nil
      end
    elseif name == "x-request-id" then
      id = value
    elseif name == "content-length" then
      if #value > 6 then -- the gate says which bodies are sent again
        return nil
      end
    elseif name == "connection" then
      if value ~= "keep-alive" and value ~= "close" then
        return nil
      end
    elseif lease.absent[name] or name:find("_", 1, true) or name == "host" or name == "upgrade" or name == ":protocol" then
      return nil
    elseif not (known(lease, name) and known(lease, value)) then
      return nil
    elseif lease.ensure[name] then
      sent[name] = sent[name] or {}
      table.insert(sent[name], value)
    end
  end
  if held == 1 and path then
    return id, path, sent
  end
  return nil
end

local function under(path, prefixes)
  for i = 1, #prefixes do
    if path:sub(1, #prefixes[i]) == prefixes[i] then
      return true
    end
  end
  return #prefixes == 0
end

-- Makes list headers have what they must.
local function complete(lease, headers, path, sent)
  if not under(path:match("^[^?]*"), lease.under) then
    return
  end
  for i = 1, #lease.lists do
    local name = lease.lists[i]
    local list, missing = table.concat(sent[name] or {}, ","), false
    for _, item in ipairs(lease.ensure[name]) do
      if not lists(list, item) then
        list = list == "" and item or list .. "," .. item
        missing = true
      end
    end
    if missing then
      headers:replace(name, list)
    end
  end
end

local function connection(handle)
  return handle:streamInfo():filterState():get("{connection}")
end

-- Uses a lease for a request.
local function take(handle, lane)
  local key = connection(handle)
  local lease = key and (lately[key] or before[key])
  if not lease or lease.lane ~= lane then
    return
  end
  local now = handle:timestamp(EnvoyTimestampResolution.MILLISECOND)
  if now < lease.from or now >= lease.till then
    return
  end
  local headers = handle:headers()
  local id, path, sent = covered(lease, headers)
  if not id then
    return
  end
  complete(lease, headers, path, sent)
  local metadata = handle:streamInfo():dynamicMetadata()
  for name, value in pairs(lease.kept) do
    metadata:set("{namespace}", name, value)
  end
  metadata:set("{namespace}", "note", id .. lease.note)
  if lease.retry then
    headers:add("x-envoy-retry-on", "retriable-status-codes")
  end
  metadata:set("{namespace}", "lane", lane)
end

-- Reads a lease: lines of a word and what it says.
local function read(text)
  local lease = { avoid = {}, under = {}, method = {}, absent = {}, ensure = {}, lists = {}, clean = {}, room = 8192 }
  for name in pairs(credentials) do
    lease.absent[name] = true
  end
  for word, says in text:gmatch("(%S+) ([^\n]*)") do
    if word == "method" or word == "absent" then
      lease[word][says] = true
    elseif word == "avoid" then
      table.insert(lease.avoid, says:lower())
    elseif word == "under" then
      table.insert(lease.under, says)
    elseif word == "ensure" then
      local name, item = says:match("^(%S+) (.+)$")
      if not lease.ensure[name] then
        lease.ensure[name] = {}
        table.insert(lease.lists, name)
      end
      table.insert(lease.ensure[name], item)
    else
      lease[word] = says
    end
  end
  return lease
end

-- Notes a lease for the connection.
local function note(handle)
  local decision = handle:streamInfo():dynamicMetadata():get("{namespace}")
  local key = connection(handle)
  if not decision or not decision.lease or not key then
    return
  end
  local lease = read(decision.lease)
  lease.absent[lease.header] = nil
  lease.from = handle:timestamp(EnvoyTimestampResolution.MILLISECOND)
  lease.till = lease.from + math.min(tonumber(lease.ms), longest)
  lease.note = decision.note:match("\n.*$") or ""
  lease.kept = {}
  for name, value in pairs(decision) do
    if name ~= "lease" and name ~= "note" then
      lease.kept[name] = value
    end
  end
  if lease.from < turned or lease.from >= turned + longest then
    lately, before, turned = {}, lately, lease.from
  end
  lately[key] = lease
end

function envoy_on_request(handle)
  local lane = handle:filterContext():get("lane")
  if lane then
    take(handle, lane)
  else
    note(handle)
  end
end
