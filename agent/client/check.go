package client

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Question describes a request to the agent: POST /v1/check.
type Question struct {
	Method string `json:"method"`
	Scheme string `json:"scheme"` // http or https
	Host   string `json:"host"`   // with its port if it was given
	Path   string `json:"path"`   // path and query, as the client sent them
	// Headers are the fields that the agent is told, by name.
	Headers map[string]string `json:"headers"`
	// Source is the client's address. The zero Addr: not known; who is let in from some networks only is then refused.
	Source netip.Addr `json:"source_ip,omitzero"`
}

// credentialFields are what the agent's own schemes read of a request.
var credentialFields = []string{
	"Authorization", "Cookie", "X-Api-Key", "X-Csrf-Token", "X-Csrftoken", "Origin", "Sec-Fetch-Site", "Sec-Fetch-Mode", "X-Requested-With",
	"Upgrade", "Access-Control-Request-Method",
}

func appendField(fields []string, name string) []string {
	if name = http.CanonicalHeaderKey(name); slices.Contains(fields, name) {
		return fields
	}
	return append(slices.Clip(fields), name)
}

// Decision is what the agent says of a request. The zero Decision allows nothing.
type Decision struct {
	// Allow: the request may pass, and is from Principal.
	Allow     bool
	Principal Principal
	// Status is what to answer where it may not: 401 (nobody is known), 403 (somebody is, and may not), 429 or 503 (the agent
	// does not know now). Reason is the word for why; Challenges are the WWW-Authenticate fields to send with it.
	Status     int
	Reason     string
	Challenges []string
	RetryAfter time.Duration // of 429 and 503

	Rule   string // the rule that decided, "": none did. It is for the log, not for the client
	Detail string // what of the rule was not met, in its own words; likewise
	Seq    uint64 // the sequence that the agent had applied
	Stale  bool   // the agent had no lease and went on (agent.on_stale = "serve")
}

// checkAnswer is the agent's JSON.
type checkAnswer struct {
	Decision   string            `json:"decision"`
	Status     int               `json:"status"`
	Reason     string            `json:"reason"`
	Rule       string            `json:"rule"`
	Detail     string            `json:"detail"`
	Headers    map[string]string `json:"headers"`
	Challenges []string          `json:"www_authenticate"`
	RetryAfter int64             `json:"retry_after"`
	Seq        uint64            `json:"seq"`
}

// Check asks what the agent says of a request. The error wraps ErrUnavailable: refuse.
func (c *Client) Check(ctx context.Context, q *Question) (*Decision, error) {
	a, err := c.ask(ctx, "/v1/check", q)
	if err != nil {
		return nil, err
	}
	if a.status != http.StatusOK {
		return nil, fmt.Errorf("%w: it answers %d to a question that it should understand", ErrUnavailable, a.status)
	}
	var got checkAnswer
	if err := a.read("application/json", &got); err != nil {
		return nil, err
	}
	d := &Decision{
		Status: got.Status, Reason: got.Reason, Challenges: got.Challenges, Rule: got.Rule, Detail: got.Detail, Seq: got.Seq,
		Stale: a.header.Get("Sidekey-Stale") == "true",
	}
	switch {
	case got.Decision == "allow" && got.Status == http.StatusOK && got.Headers["X-Auth-Method"] != "":
		d.Allow, d.Principal = true, principalOf(got.Headers)
	case got.Decision == "deny" && slices.Contains([]int{401, 403, 429, 503}, got.Status):
		if got.Status == 429 || got.Status == 503 {
			d.RetryAfter = time.Duration(min(max(got.RetryAfter, 1), 3600)) * time.Second
		}
	default: // fails closed
		return nil, fmt.Errorf("%w: it says %q with %d", ErrUnavailable, got.Decision, got.Status)
	}
	return d, nil
}

// misshapen is why a request cannot be described: it is refused without asking.
type misshapen struct {
	status int
	reason string
	detail string
}

// question describes a request; ok is false where nothing faithful can be said of it.
func (c *Client) question(r *http.Request) (*Question, *misshapen) {
	q := &Question{Method: r.Method, Scheme: "http", Host: r.Host, Path: r.RequestURI, Headers: make(map[string]string, 4)}
	if r.TLS != nil {
		q.Scheme = "https"
	}
	if q.Path == "" { // no server has read it
		q.Path = r.URL.RequestURI()
	}
	if from, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		q.Source = from.Addr().Unmap().WithZone("")
	}
	for _, name := range c.fields {
		switch values := r.Header[name]; {
		case len(values) == 1:
			q.Headers[name] = values[0]
		case len(values) > 1: // the agent refuses it too: whoever reads it next may take the other one
			return nil, &misshapen{http.StatusForbidden, "ambiguous_request", "The request can be read in two ways."}
		}
	}
	if c.describe != nil {
		c.describe(r, q)
	}
	return q, q.judge()
}

// judge finds what JSON would not bring over as it is, and what the agent would not read.
func (q *Question) judge() *misshapen {
	size := len(q.Method) + len(q.Host) + len(q.Path)
	plain := utf8.ValidString(q.Method) && utf8.ValidString(q.Host) && utf8.ValidString(q.Path)
	for name, value := range q.Headers {
		size += len(name) + len(value) + 8
		plain = plain && utf8.ValidString(name) && utf8.ValidString(value) && !strings.ContainsAny(value, "\r\n\x00")
	}
	switch {
	case !plain:
		return &misshapen{http.StatusForbidden, "ambiguous_request", "The request can be read in two ways."}
	case size > maxQuestion:
		return &misshapen{http.StatusRequestHeaderFieldsTooLarge, "too_large", "The header fields are larger than is read here."}
	}
	return nil
}
