package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"
)

// DefaultAddress is where an agent listens unless its config says otherwise.
const DefaultAddress = "http://127.0.0.1:7461"

// Config says how the agent is reached. The zero Config reaches one at DefaultAddress.
type Config struct {
	// Address is "unix:" and the absolute path of a socket, or a URL without a path. http is taken for loopback only: what is
	// asked holds credentials. "": DefaultAddress.
	Address string
	// TLS is for an https address; nil: the system's CAs.
	TLS *tls.Config
	// Timeout bounds one question, the wait for a free connection included; 0: 2 s. Where the agent itself asks somebody
	// (authenticators basic and webhook), 6 s lets it say that it got no answer.
	Timeout time.Duration
	// MaxConnections bounds the connections to the agent, and so the questions under way; 0: 64.
	MaxConnections int
	// Headers are more fields of a request that the agent is told: those that its rules, its webhook or schemes of your own
	// read. Credentials, CSRF token and what says where a browser's request comes from are told always.
	Headers []string
	// Describe may change what Middleware is about to ask, where this service does not see what the client did: behind a
	// proxy that ends TLS, scheme and client address are what that proxy says. nil: nothing is changed.
	Describe func(r *http.Request, q *Question)
}

// The bounds of what is asked and answered.
const (
	maxQuestion = 60 << 10 // the agent reads 64 KiB
	maxAnswer   = 1 << 20
	idleTimeout = time.Minute // the agent closes after two: the side that asks closes first
)

// ErrUnavailable means that the agent cannot be asked, or does not know now. Whoever hears it refuses: 503.
var ErrUnavailable = errors.New("the sidekey agent gives no answer")

// Client asks one agent. Its methods may be called by any number of goroutines.
type Client struct {
	base      string
	timeout   time.Duration
	transport *http.Transport
	fields    []string // canonical names
	describe  func(*http.Request, *Question)
}

// New makes a Client. It does not reach for the agent yet. The error says what of cfg cannot be meant.
func New(cfg Config) (*Client, error) {
	if cfg.Address == "" {
		cfg.Address = DefaultAddress
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.MaxConnections == 0 {
		cfg.MaxConnections = 64
	}
	if cfg.Timeout < 0 || cfg.MaxConnections < 0 {
		return nil, errors.New("making a client of the agent: a timeout or a number of connections is negative")
	}
	c := &Client{timeout: cfg.Timeout, describe: cfg.Describe, fields: credentialFields}
	for _, name := range cfg.Headers {
		c.fields = appendField(c.fields, name)
	}
	dialer := &net.Dialer{Timeout: cfg.Timeout}
	c.transport = &http.Transport{ // no Proxy: what is asked is for the agent alone
		DialContext: dialer.DialContext, TLSClientConfig: cfg.TLS, TLSHandshakeTimeout: cfg.Timeout,
		MaxConnsPerHost: cfg.MaxConnections, MaxIdleConnsPerHost: cfg.MaxConnections, IdleConnTimeout: idleTimeout,
		MaxResponseHeaderBytes: 64 << 10, DisableCompression: true,
	}
	if socket, ok := strings.CutPrefix(cfg.Address, "unix:"); ok {
		if !path.IsAbs(socket) {
			return nil, fmt.Errorf("making a client of the agent: %q lacks the absolute path of a socket", cfg.Address)
		}
		c.base = "http://agent"
		c.transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		}
		return c, nil
	}
	u, err := url.Parse(cfg.Address)
	if err != nil || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return nil, fmt.Errorf("making a client of the agent: %q is no address such as %s or unix:/run/sidekey/agent.sock", cfg.Address, DefaultAddress)
	}
	if u.Scheme != "https" && (u.Scheme != "http" || !loopback(u.Hostname())) {
		return nil, fmt.Errorf("making a client of the agent: %q would carry credentials in clear over a network; use https, loopback or a unix socket", cfg.Address)
	}
	c.base = u.Scheme + "://" + u.Host
	return c, nil
}

// loopback tells whether only this host can be meant.
func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// Close closes the connections that are not in use.
func (c *Client) Close() { c.transport.CloseIdleConnections() }

// answer is what the agent said: a status, and one JSON object.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// ask posts a question and reads the answer whole. What was answered is never asked again; a connection that the agent had
// closed meanwhile is, once each, replaced. The error wraps ErrUnavailable and holds nothing of the question.
func (c *Client) ask(ctx context.Context, route string, question any) (*answer, error) {
	body, err := json.Marshal(question)
	if err != nil {
		return nil, fmt.Errorf("%w: the question cannot be written", ErrUnavailable)
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+route, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrUnavailable, route)
	}
	req.Header = http.Header{
		"Content-Type": {"application/json"}, "User-Agent": {"sidekey-client"},
		// A question changes nothing, so it may go over a second connection where the first was closed before an answer came.
		// That the key is there says so to Transport; without a value it is not sent.
		"Idempotency-Key": {},
	}
	res, err := c.transport.RoundTrip(req) // which follows no redirect
	if err != nil {
		return nil, fmt.Errorf("%w: asking it at %s: %w", ErrUnavailable, route, err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: reading what it says: %w", ErrUnavailable, err)
	case len(b) > maxAnswer:
		return nil, fmt.Errorf("%w: it says more than %d bytes", ErrUnavailable, maxAnswer)
	}
	return &answer{res.StatusCode, res.Header, b}, nil
}

// read reads the answer into to, if its type is the one that it should be.
func (a *answer) read(kind string, to any) error {
	if got, _, _ := mime.ParseMediaType(a.header.Get("Content-Type")); got != kind {
		return fmt.Errorf("%w: it answers %d with %q, not with %s; is this the agent?", ErrUnavailable, a.status, a.header.Get("Content-Type"), kind)
	}
	if err := json.Unmarshal(a.body, to); err != nil {
		return fmt.Errorf("%w: its answer of %d is no JSON that is known: %w", ErrUnavailable, a.status, err)
	}
	return nil
}

// retryAfter is the header of that name, at least a second.
func (a *answer) retryAfter() time.Duration {
	n, err := strconv.Atoi(a.header.Get("Retry-After"))
	if err != nil || n < 1 || n > 3600 {
		return time.Second
	}
	return time.Duration(n) * time.Second
}
