package agent

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/valyala/fasthttp"

	"github.com/sidekey/sidekey/keyring"
)

// Status is what an agent tells of itself at GET /v1/status, and to the issuers.
type Status struct {
	Agent       string       `json:"agent"`
	Run         string       `json:"run"` // this process: a random id made at its start
	Version     string       `json:"version"`
	Connected   bool         `json:"connected"` // to the bus
	Epoch       uint64       `json:"epoch"`
	AppliedSeq  uint64       `json:"applied_seq"`
	HeadSeq     uint64       `json:"head_seq"`        // the newest that it knows of
	Stale       bool         `json:"stale"`           // it has no lease: it vouches for nobody, unless it serves all the same
	Lease       int64        `json:"lease_ms"`        // how long it may go on without the issuers
	Serving     bool         `json:"serving"`         // it has no lease and goes on, as agent.on_stale = "serve" has it
	ClockOff    int64        `json:"clock_off_ms"`    // how far the wall clock is ahead of the issuers' ticks; negative: behind
	Audiences   []string     `json:"audiences"`       // that it serves; none: the ring's default
	Fault       string       `json:"fault,omitempty"` // why it does not go on with the log
	Keys        []KeyStatus  `json:"keys"`
	Rules       *RulesStatus `json:"rules,omitempty"` // nil: there are none
	Revocations int          `json:"revocations"`
	Cache       CacheStatus  `json:"cache"`
}

// KeyStatus is one key of the ring, without the key.
type KeyStatus struct {
	KeyID string        `json:"kid"`
	Alg   keyring.Alg   `json:"alg"`
	State keyring.State `json:"state"`
}

// RulesStatus tells which rules are in force.
type RulesStatus struct {
	Rules   int    `json:"rules"`
	Version string `json:"version"`         // of their text: equal texts have equal versions; "": there are none by default, or everything is denied
	Fault   string `json:"fault,omitempty"` // why newer ones are not in force
	// Sets are those of agent.rules_sets in their order, then the others that the log hands out, by name.
	Sets []RuleSetStatus `json:"sets,omitempty"`
}

// RuleSetStatus tells by which version of a set the agent decides.
type RuleSetStatus struct {
	Name      string `json:"name"`
	Version   uint64 `json:"version"` // 0: by none; the set denies
	Merged    bool   `json:"merged"`  // it is one of agent.rules_sets
	Withdrawn bool   `json:"withdrawn,omitempty"`
	Fault     string `json:"fault,omitempty"` // why the newest version is not in force
}

// CacheStatus counts the proven tokens remembered, and since the start those found and not found there.
type CacheStatus struct {
	Entries int    `json:"entries"`
	Hits    uint64 `json:"hits"`
	Misses  uint64 `json:"misses"`
}

// Status tells how the agent is, at one position of the log.
func (a *Agent) Status() Status {
	snap := a.replica.Snapshot()
	s := Status{
		Agent:       a.cfg.Name,
		Run:         a.run,
		Version:     a.cfg.Version,
		Connected:   a.connected(),
		ClockOff:    a.clockOff().Milliseconds(),
		Epoch:       snap.Position.Epoch,
		AppliedSeq:  snap.Position.Seq,
		HeadSeq:     max(a.replica.Head(), snap.Position.Seq),
		Audiences:   append([]string{}, a.cfg.Audiences...),
		Keys:        []KeyStatus{}, // never null
		Revocations: a.replica.Revocations(),
		Cache:       CacheStatus{Entries: a.cache.proofs.Len(), Hits: a.cache.hits.Load(), Misses: a.cache.misses.Load()},
	}
	if err := a.replica.Fault(); err != nil {
		s.Fault = err.Error()
	}
	s.Rules = a.book.Load().status
	s.Stale = true
	if l := a.leases.Current(); l != nil {
		now := a.clock()
		s.Stale, s.Lease = !l.Live(now), l.Left(now).Milliseconds()
		s.Serving = s.Stale && l.Vouches(now)
	}
	s.Stale = s.Stale || !snap.Ready
	for _, rec := range snap.Ring.Records() {
		s.Keys = append(s.Keys, KeyStatus{KeyID: rec.KeyID, Alg: rec.Alg, State: rec.State})
	}
	return s
}

// answer is the answer of an operator's route, on whichever server it is asked.
type answer struct {
	status int
	media  string
	body   string
}

// ops are the routes for an operator's tools. They always answer, whatever the agent's state.
func (a *Agent) ops() map[string]func() answer {
	return map[string]func() answer{
		routeStatus: func() answer {
			body, err := json.Marshal(a.Status())
			if err != nil { // a struct of strings and numbers always marshals
				return answer{http.StatusInternalServerError, "text/plain; charset=utf-8", "internal error\n"}
			}
			return answer{http.StatusOK, "application/json", string(body)}
		},
		// The process is alive: a supervisor need not restart it.
		routeHealth: func() answer { return answer{http.StatusOK, "text/plain; charset=utf-8", "ok\n"} },
		// The agent vouches for tokens: a balancer may send requests.
		routeReady: func() answer {
			if reason, ok := a.ready(); !ok {
				return answer{http.StatusServiceUnavailable, "text/plain; charset=utf-8", string(reason) + "\n"}
			}
			return answer{http.StatusOK, "text/plain; charset=utf-8", "ok\n"}
		},
	}
}

// ready tells whether the agent vouches, or why not. An outage of the bus does not show here while
// the lease lasts.
func (a *Agent) ready() (keyring.Reason, bool) {
	if !a.replica.Snapshot().Ready {
		return Starting, false
	}
	if l := a.leases.Current(); l == nil || !l.Vouches(a.clock()) {
		return Stale, false
	}
	return "", true
}

// Ready tells whether the agent vouches for tokens now.
func (a *Agent) Ready() bool {
	_, ok := a.ready()
	return ok
}

func (w answer) write(ctx *fasthttp.RequestCtx) {
	if w.status == http.StatusServiceUnavailable {
		ctx.Response.Header.Set(fasthttp.HeaderRetryAfter, retryAfter)
	}
	ctx.Response.Header.SetContentType(w.media)
	ctx.Response.SetStatusCode(w.status)
	ctx.Response.SetBodyString(w.body)
}

// OpsHandler serves health, readiness, status and metrics, and nothing else, for a listener that a
// kubelet or Prometheus reaches (agent.ops_listen).
func (a *Agent) OpsHandler() http.Handler {
	mux := http.NewServeMux()
	for path, answer := range a.ops() {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			got := answer()
			h := w.Header()
			h.Set("Cache-Control", "no-store")
			h.Set("Content-Type", got.media)
			h.Set("Content-Length", strconv.Itoa(len(got.body)))
			if got.status == http.StatusServiceUnavailable {
				h.Set("Retry-After", retryAfter)
			}
			w.WriteHeader(got.status)
			_, _ = w.Write([]byte(got.body)) // a client that has gone wants no answer
		})
	}
	mux.Handle("GET "+routeMetrics, promhttp.HandlerFor(a.metrics.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	return mux
}

// keySet is a ring's public key set as it is served.
type keySet struct {
	ring *keyring.Ring
	body []byte
	etag string
}

// serveJWKS answers GET /.well-known/jwks.json (RFC 7517 §5) with the public keys that the agent
// holds now. Anyone may read it, from any page, and keep it for five minutes.
func (a *Agent) serveJWKS(ctx *fasthttp.RequestCtx) {
	set := a.keySet()
	h := &ctx.Response.Header
	h.SetContentType("application/jwk-set+json")
	h.SetCanonical(fieldCacheControl, []byte("public, max-age=300"))
	h.Set(fasthttp.HeaderAccessControlAllowOrigin, "*")
	h.Set(fasthttp.HeaderETag, set.etag)
	if matches(string(ctx.Request.Header.Peek(fasthttp.HeaderIfNoneMatch)), set.etag) {
		ctx.Response.SetStatusCode(http.StatusNotModified)
		return
	}
	ctx.Response.SetBodyRaw(set.body)
}

// keySet gives the set of the newest ring; it is made once per ring.
func (a *Agent) keySet() *keySet {
	ring := a.replica.Snapshot().Ring
	if set := a.jwks.Load(); set != nil && set.ring == ring {
		return set
	}
	body := ring.JWKS()
	sum := sha256.Sum256(body)
	set := &keySet{ring: ring, body: body, etag: `"` + base64.RawURLEncoding.EncodeToString(sum[:16]) + `"`}
	a.jwks.Store(set)
	return set
}

// matches is the comparison of If-None-Match (RFC 9110 §13.1.2): a list of tags or "*", compared weakly.
func matches(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		tag = strings.TrimSpace(tag)
		if tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}
