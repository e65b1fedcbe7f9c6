-- Asks sidekey's agent about a request; haproxy.cfg calls it as `http-request lua.sidekey` and says what is configured where.
-- It sets txn.sidekey_status, which is "200" only if the agent allows the request, and txn.sidekey_challenge. Whatever goes
-- wrong, also in here, leaves another status: it fails closed.

local url = "http://sidekey/v1/auth/haproxy"
local door = "abns@sidekey-agent" -- the frontend sidekey of haproxy.cfg
-- More than all the times of the backend sidekey together, which end a question: when this one does, HAProxy asks again, up to
-- three times, and the client would wait for each.
local timeout = 15000 -- ms

-- Headers of agent.headers whose names do not begin with X-Auth-, in lower case: {"x-email"}.
local more = {}

-- Fields of the client that are about its connection and its body, and not for the agent.
local own = {
	["connection"] = true, ["content-length"] = true, ["content-encoding"] = true, ["transfer-encoding"] = true,
	["expect"] = true, ["host"] = true, ["keep-alive"] = true, ["te"] = true, ["trailer"] = true,
	["proxy-connection"] = true, ["proxy-authorization"] = true,
}

-- values turns HAProxy's list, which begins at 0, into one that begins at 1.
local function values(list)
	local all = {}
	for i = 0, #list do
		all[#all + 1] = list[i]
	end
	return all
end

-- question is the client's fields as they came, so that the agent sees what is there twice, and what it asked for.
local function question(txn, fields)
	local headers = {}
	for name, list in pairs(fields) do
		if not own[name] and string.sub(name, 1, 11) ~= "x-original-" then
			headers[name] = values(list)
		end
	end
	headers["x-original-method"] = { txn.sf:method() }
	headers["x-original-uri"] = { txn.sf:pathq() }
	headers["x-original-host"] = fields["host"] and values(fields["host"]) or nil
	headers["x-original-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
	headers["x-original-remote-addr"] = { txn.sf:src() }
	return headers
end

local function ask(txn)
	txn:set_var("txn.sidekey_status", "0")
	txn:set_var("txn.sidekey_challenge", "")
	local answer = core.httpclient():get { url = url, dst = door, headers = question(txn, txn.http:req_get_headers()), timeout = timeout }
	local headers = answer.headers or {}
	if answer.status == 401 or answer.status == 403 then
		local challenge = headers["www-authenticate"]
		txn:set_var("txn.sidekey_challenge", challenge and challenge[0] or "")
	elseif answer.status == 200 then
		if not headers["x-auth-method"] then
			return -- not an agent's answer
		end
		for _, name in ipairs(more) do
			txn.http:req_del_header(name)
			if headers[name] and headers[name][0] ~= "" then
				txn.http:req_set_header(name, headers[name][0])
			end
		end
		for name, list in pairs(headers) do
			if string.sub(name, 1, 7) == "x-auth-" and list[0] ~= "" then
				txn.http:req_set_header(name, list[0])
			end
		end
	end
	txn:set_var("txn.sidekey_status", tostring(answer.status))
end

core.register_action("sidekey", { "http-req" }, ask)
