package directory

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/sidekey/sidekey/bus/trace"
	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/keyring/strictjson"
)

// WebhookConfig says which service proves passwords.
type WebhookConfig struct {
	URL         string        // https; http on loopback; or unix: and the path of a socket, where POST / is asked
	Secret      string        // sent as Authorization: Bearer; "": none
	Timeout     time.Duration // of one question; 0: 2 s
	MaxRequests int           // at once; 0: 16
	Insecure    bool          // http may cross a network
}

// Webhook is a service that knows users. It is sent {"username","password","address"} at a login, and answers 200 and
// {"id","username","scope","roles","email","attributes","disabled","marker"} (the first two must be there), or 401, 403 or 404
// for what is refused. At a refresh it is sent {"id"}, and answers 200 and the same, or 404 where there is no such user. Anything
// else means that it cannot answer.
type Webhook struct {
	cfg    WebhookConfig
	url    string
	client *http.Client
	slots  chan struct{}
}

var _ issuer.Prover = (*Webhook)(nil)

const maxAnswer = 64 << 10

// CheckWebhookURL tells what is wrong with a URL.
func CheckWebhookURL(text string, insecure bool) error {
	if path, ok := strings.CutPrefix(text, "unix:"); ok {
		if !strings.HasPrefix(path, "/") {
			return errors.New("want unix: and an absolute path")
		}
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return errors.New("want https://…, http:// on this host, or unix: and the path of a socket")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return errors.New("want no user, password, query or fragment in the URL; a secret belongs in secret_file")
	}
	ip := net.ParseIP(u.Hostname())
	if u.Scheme == "http" && !insecure && (ip == nil || !ip.IsLoopback()) && u.Hostname() != "localhost" {
		return errors.New("refusing to send passwords in clear beyond this host; use https, or set insecure = true")
	}
	return nil
}

// NewWebhook checks cfg and asks nothing yet.
func NewWebhook(cfg WebhookConfig) (*Webhook, error) {
	if err := CheckWebhookURL(cfg.URL, cfg.Insecure); err != nil {
		return nil, fmt.Errorf("issuer.webhook.url: %w", err)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 2 * time.Second
	}
	if cfg.MaxRequests == 0 {
		cfg.MaxRequests = 16
	}
	w := &Webhook{cfg: cfg, url: cfg.URL, slots: make(chan struct{}, cfg.MaxRequests)}
	transport := &http.Transport{ // no proxy of the environment is told a password
		MaxIdleConnsPerHost: cfg.MaxRequests, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 16 << 10, ForceAttemptHTTP2: true,
	}
	if path, ok := strings.CutPrefix(cfg.URL, "unix:"); ok {
		w.url = "http://localhost/"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	}
	w.client = &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return http.ErrUseLastResponse
	}}
	return w, nil
}

// Close closes idle connections.
func (w *Webhook) Close() error { w.client.CloseIdleConnections(); return nil }

// Prove implements issuer.Prover.
func (w *Webhook) Prove(ctx context.Context, c issuer.Credentials) (*issuer.Account, error) {
	a, status, err := w.ask(ctx, map[string]string{"username": c.Username, "password": c.Password, "address": c.Address})
	if slices.Contains([]int{http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound}, status) {
		return nil, issuer.ErrCredentials
	}
	return a, err
}

// Lookup implements issuer.Directory. The service is asked by name only with a password.
func (w *Webhook) Lookup(context.Context, string) (*issuer.Account, error) {
	return nil, issuer.ErrElsewhere
}

// ByID implements issuer.Directory.
func (w *Webhook) ByID(ctx context.Context, id string) (*issuer.Account, error) {
	a, status, err := w.ask(ctx, map[string]string{"id": id})
	if status == http.StatusNotFound { // 401 may be about our own secret, and nobody's session ends for that
		return nil, issuer.ErrNotFound
	}
	if err == nil && a.ID != id {
		return nil, &issuer.RecordError{Problem: "the webhook answered with another id"}
	}
	return a, err
}

// ask sends one question. No error shows it.
func (w *Webhook) ask(ctx context.Context, question map[string]string) (a *issuer.Account, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, w.cfg.Timeout)
	defer cancel()
	select {
	case w.slots <- struct{}{}:
		defer func() { <-w.slots }()
	case <-ctx.Done():
		return nil, 0, &issuer.BusyError{RetryAfter: w.cfg.Timeout}
	}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, 0, err // texts always have a JSON
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return nil, 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	if of := trace.Of(ctx).String(); of != "" {
		req.Header.Set(trace.Field, of)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "sidekey")
	if w.cfg.Secret != "" {
		req.Header.Set("Authorization", "Bearer "+w.cfg.Secret)
	}
	res, err := w.client.Do(req)
	if err != nil {
		return nil, 0, fmt.Errorf("asking issuer.webhook.url: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, res.StatusCode, fmt.Errorf("issuer.webhook.url answered with status %d", res.StatusCode)
	}
	a, err = readAnswer(res)
	return a, res.StatusCode, err
}

// answer is what the service tells of a user.
type answer struct {
	ID         string          `json:"id"`
	Username   string          `json:"username"`
	Scope      string          `json:"scope"`
	Roles      []string        `json:"roles"`
	Email      string          `json:"email"`
	Attributes json.RawMessage `json:"attributes"`
	Disabled   bool            `json:"disabled"`
	Marker     string          `json:"marker"`
}

var members = []string{"id", "username", "scope", "roles", "email", "attributes", "disabled", "marker"}

// readAnswer reads strictly: a member that is misspelt must not pass as one that is missing.
func readAnswer(res *http.Response) (*issuer.Account, error) {
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("reading the answer of issuer.webhook.url: %w", err)
	}
	kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")) // what cannot be parsed is not JSON
	if len(data) > maxAnswer || kind != "application/json" {
		return nil, fmt.Errorf("the answer of issuer.webhook.url must be application/json of %d bytes at most", maxAnswer)
	}
	unknown := ""
	err = strictjson.Object(data, nil, func(name []byte, _ strictjson.Value) error {
		if !slices.Contains(members, string(name)) {
			unknown = string(name)
		}
		return nil
	})
	var a answer
	switch {
	case err != nil:
		return nil, &issuer.RecordError{Problem: "the webhook's answer is not one strict JSON object"}
	case unknown != "":
		return nil, &issuer.RecordError{Problem: fmt.Sprintf("the webhook's answer has the unknown member %.40q", unknown)}
	case json.Unmarshal(data, &a) != nil:
		return nil, &issuer.RecordError{Problem: "a member of the webhook's answer is of the wrong type"}
	case a.ID == "" || a.Username == "":
		return nil, &issuer.RecordError{Problem: `the webhook's answer has no "id" or no "username"`}
	}
	if string(a.Attributes) == "null" {
		a.Attributes = nil
	}
	return &issuer.Account{Marker: a.Marker, User: issuer.User{
		ID: a.ID, Username: a.Username, Scope: a.Scope, Roles: a.Roles, Email: a.Email, Attributes: a.Attributes, Disabled: a.Disabled,
	}}, nil
}
