package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/keyring"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// WebhookConfig is [agent.webhook]: a service of one's own that is asked who a request is from. The zero value of all but
// URL and Headers gives the defaults.
type WebhookConfig struct {
	// URL is asked: http on loopback, https anywhere, or unix:/path of a socket.
	URL string
	// Headers are the fields that are sent to it, and nothing else of the request is. A request that has none of them is not
	// the webhook's.
	Headers []string
	// SendRequest sends method, scheme, host, target and client as well.
	SendRequest bool
	Timeout     time.Duration // of a call; 0: a second
	MaxCalls    int           // under way at once; 0: 32
	CacheFor    time.Duration // how long a yes is remembered, 60 s at most; 0: each request is asked about
	CacheSize   int           // answers remembered; 0: 10,000
	Challenge   string        // its WWW-Authenticate; "": none
}

const (
	maxWebhookAnswer = 64 << 10
	maxWebhookFields = 16
	maxWebhookCalls  = 1024
	maxWebhookWait   = 10 * time.Second
)

// Check refuses what cannot be meant, and fills in the defaults.
func (c *WebhookConfig) Check() error {
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	if c.MaxCalls == 0 {
		c.MaxCalls = 32
	}
	if c.CacheSize == 0 {
		c.CacheSize = defaultCacheSize
	}
	switch {
	case c.Timeout < 0 || c.Timeout > maxWebhookWait:
		return fmt.Errorf("timeout %s is not between 0s and %s", c.Timeout, maxWebhookWait)
	case c.MaxCalls < 0 || c.MaxCalls > maxWebhookCalls:
		return fmt.Errorf("%d calls at once are not 1 to %d", c.MaxCalls, maxWebhookCalls)
	case c.CacheFor < 0 || c.CacheFor > maxMemory:
		return fmt.Errorf("an answer may be remembered for 0s to %s, not %s", maxMemory, c.CacheFor)
	case c.CacheSize < 0:
		return fmt.Errorf("cache size %d is negative", c.CacheSize)
	case len(c.Headers) == 0 || len(c.Headers) > maxWebhookFields:
		return fmt.Errorf("it needs the names of 1 to %d headers, by which it knows its requests", maxWebhookFields)
	case !headerSafe(c.Challenge):
		return fmt.Errorf("challenge %q cannot stand in a header", c.Challenge)
	}
	for _, name := range c.Headers {
		if !validField(name) {
			return fmt.Errorf("%q is no name of a header", name)
		}
	}
	_, _, err := c.target()
	return err
}

// target gives the URL to call, and the path of the socket if it is one.
func (c *WebhookConfig) target() (to, socket string, err error) {
	if path, ok := strings.CutPrefix(c.URL, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return "", "", fmt.Errorf("url %q has no absolute path", c.URL)
		}
		return "http://webhook/", path, nil
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "" || u.User != nil || u.Fragment != "":
		return "", "", errors.New("url is no URL without user and fragment")
	case u.Scheme == "https":
		return c.URL, "", nil
	case u.Scheme != "http":
		return "", "", fmt.Errorf("url begins with %q, not http, https or unix", u.Scheme)
	}
	if ip := net.ParseIP(u.Hostname()); u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return "", "", errors.New("url sends credentials in clear beyond this host; use https, loopback or a unix socket")
	}
	return c.URL, "", nil
}

// webhookWay asks a service of one's own.
type webhookWay struct {
	*Agent
	place  int
	cfg    WebhookConfig
	url    string
	client *http.Client
	calls  chan struct{}
	memory *memory
}

func (a *Agent) newWebhook(place int) (way, error) {
	w := &webhookWay{Agent: a, place: place, cfg: a.cfg.Webhook}
	if err := w.cfg.Check(); err != nil {
		return nil, err
	}
	to, socket, err := w.cfg.target()
	if err != nil {
		return nil, err
	}
	if w.memory, err = newMemory(w.cfg.CacheSize, w.cfg.CacheFor); err != nil {
		return nil, err
	}
	w.url, w.calls = to, make(chan struct{}, w.cfg.MaxCalls)
	w.client = &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:            dialWebhook(socket, strings.HasPrefix(to, "http://")),
			MaxIdleConnsPerHost:    w.cfg.MaxCalls,
			IdleConnTimeout:        time.Minute,
			MaxResponseHeaderBytes: 16 << 10,
			DisableCompression:     true,
			ForceAttemptHTTP2:      true,
		},
	}
	return w, nil
}

// dialWebhook reaches the service. In clear it reaches loopback only, whatever a name resolves to.
func dialWebhook(socket string, clear bool) func(context.Context, string, string) (net.Conn, error) {
	d := net.Dialer{}
	if socket != "" {
		return func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) }
	}
	if clear {
		d.Control = func(_, address string, _ syscall.RawConn) error {
			if addr := clientAddr(address); !addr.IsLoopback() {
				return errors.New("the webhook's name leads beyond this host")
			}
			return nil
		}
	}
	return d.DialContext
}

func (w *webhookWay) judge(at *view, r *Request, d *Decision) step {
	if ans := r.answer(w.place); ans != nil {
		return w.judgeAnswer(at, ans, d)
	}
	question := w.question(r)
	if question == nil {
		return notMine
	}
	if w.cfg.CacheFor > 0 {
		key := w.memory.sum(question...)
		if who := w.memory.get(key, w.now()); who != nil {
			if w.stands(at, &who.Principal, &who.ids) == nil {
				d.grant(&who.Principal)
				return decided
			}
			w.memory.who.Remove(key) // revoked since: what does the service say now?
		}
	}
	return asks
}

func (w *webhookWay) challenge(*Request, *Decision) string { return w.cfg.Challenge }

// question is what the service is asked: the values of the headers, then those of the request. nil: there is none of
// the headers.
func (w *webhookWay) question(r *Request) []string {
	var parts []string
	found := false
	for _, name := range w.cfg.Headers {
		v := r.field(name)
		found = found || v != ""
		parts = append(parts, v)
	}
	if !found {
		return nil
	}
	if w.cfg.SendRequest {
		client := ""
		if r.client.IsValid() {
			client = r.client.String()
		}
		parts = append(parts, r.method, r.proto, r.host, r.target, client)
	}
	return parts
}

// webhookQuestion is what is posted:
//
//	{"headers": {"X-Partner-Key": "…"}, "method": "GET", "scheme": "https", "host": "app.example", "target": "/x?y", "client": "10.0.0.7"}
type webhookQuestion struct {
	Headers map[string]string `json:"headers"`
	Method  string            `json:"method,omitempty"`
	Scheme  string            `json:"scheme,omitempty"`
	Host    string            `json:"host,omitempty"`
	Target  string            `json:"target,omitempty"`
	Client  string            `json:"client,omitempty"`
}

// webhookAnswer is the body of a 200, by the names of a token's claims.
type webhookAnswer struct {
	Subject  string         `json:"sub"`
	Scope    string         `json:"scope"`
	Roles    []string       `json:"roles"`
	ClientID string         `json:"client_id"`
	Session  string         `json:"sid"`
	ID       string         `json:"jti"`
	IssuedAt int64          `json:"iat"`
	Expires  int64          `json:"exp"`
	Claims   map[string]any `json:"claims"`
}

var webhookMembers = []string{"sub", "scope", "roles", "client_id", "sid", "jti", "iat", "exp", "claims"}

func (w *webhookWay) ask(r *Request, seq uint64) answered {
	since := w.now()
	ctx, cancel := context.WithTimeout(context.Background(), w.cfg.Timeout)
	defer cancel()
	select {
	case w.calls <- struct{}{}:
		defer func() { <-w.calls }()
	case <-ctx.Done():
		return w.unknown(schemeWebhook, r, errors.New("too many calls are under way"))
	}
	parts := w.question(r)
	status, body, err := w.call(trace.With(ctx, r.trace()), parts)
	switch {
	case err != nil:
		return w.unknown(schemeWebhook, r, err)
	case status == http.StatusNoContent:
		return answered{}
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return refused(&Refusal{Forbidden: status == http.StatusForbidden})
	case status != http.StatusOK:
		return w.unknown(schemeWebhook, r, fmt.Errorf("it answers %d; want 200, 204, 401 or 403", status))
	}
	p, err := readAnswer(body)
	if err != nil {
		return w.unknown(schemeWebhook, r, err)
	}
	ans := w.accept(schemeWebhook, r, *p, seq)
	if ans.who != nil && w.cfg.CacheFor > 0 {
		w.memory.add(w.memory.sum(parts...), ans.who, since, w.cfg.CacheFor)
	}
	return ans
}

// call posts the question.
func (w *webhookWay) call(ctx context.Context, parts []string) (status int, body []byte, err error) {
	q := webhookQuestion{Headers: make(map[string]string)}
	for i, name := range w.cfg.Headers {
		if parts[i] != "" {
			q.Headers[name] = parts[i]
		}
	}
	if rest := parts[len(w.cfg.Headers):]; len(rest) > 0 {
		q.Method, q.Scheme, q.Host, q.Target, q.Client = rest[0], rest[1], rest[2], rest[3], rest[4]
	}
	text, err := json.Marshal(q)
	if err != nil {
		return 0, nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(text))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if of := trace.Of(ctx).String(); of != "" {
		req.Header.Set(trace.Field, of)
	}
	res, err := w.client.Do(req)
	if err != nil {
		var at *url.Error
		if errors.As(err, &at) {
			err = at.Err // without the URL, whose query may be a secret
		}
		return 0, nil, fmt.Errorf("calling the webhook: %w", err)
	}
	defer res.Body.Close()
	if body, err = io.ReadAll(io.LimitReader(res.Body, maxWebhookAnswer+1)); err != nil {
		return 0, nil, fmt.Errorf("reading the webhook's answer: %w", err)
	}
	if len(body) > maxWebhookAnswer {
		return 0, nil, fmt.Errorf("the webhook's answer is over %d bytes", maxWebhookAnswer)
	}
	return res.StatusCode, body, nil
}

// readAnswer reads the body of a 200.
func readAnswer(body []byte) (*Principal, error) {
	// Strictly first: no member twice, or in another case.
	if err := strictjson.Object(body, webhookMembers, func([]byte, strictjson.Value) error { return nil }); err != nil {
		return nil, fmt.Errorf("reading the webhook's answer: %w", err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var a webhookAnswer
	if err := d.Decode(&a); err != nil {
		return nil, fmt.Errorf("reading the webhook's answer: %w", err)
	}
	if a.IssuedAt < 0 || a.Expires < 0 || keyring.NumericDate(max(a.IssuedAt, a.Expires)) > keyring.MaxNumericDate {
		return nil, errors.New("reading the webhook's answer: iat and exp must be times as RFC 7519 has them")
	}
	p := &Principal{Subject: a.Subject, Scope: a.Scope, Roles: a.Roles, Client: a.ClientID, Session: a.Session, ID: a.ID, Claims: a.Claims}
	if a.IssuedAt > 0 {
		p.IssuedAt = time.Unix(a.IssuedAt, 0)
	}
	if a.Expires > 0 {
		p.ExpiresAt = time.Unix(a.Expires, 0)
	}
	return p, nil
}
