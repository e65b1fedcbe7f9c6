// Package agent checks tokens beside every service.
//
// An [Agent] answers from memory alone: what it knows is a replica of the issuers' signed log, kept at the log's head by
// whoever runs the agent. It calls nobody while a request waits.
//
// There is one decision, [Agent.Verify], and every face asks it: POST and GET /v1/verify, /v1/verify/batch, RFC 7662's
// /oauth2/introspect and Simple JWT's /api/token/verify/, all on the fasthttp server that [Agent.Server] gives; health,
// status and metrics are there too, and apart from the rest in [Agent.OpsHandler].
//
// What is dear and cannot change, a signature proven by a key, is remembered; what is cheap and can change is looked at on
// each request: the key's state, the time, the audience, the revocations. So a token that is revoked, or whose key is, is
// refused though it was accepted a moment before. Nothing is remembered of a token that could not be proven.
//
// Before its first full sync an agent vouches for nobody: 503 with the reason [Starting]. Anything that fails inside
// fails closed.
package agent
