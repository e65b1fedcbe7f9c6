package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	callTimeout = 30 * time.Second
	maxAnswer   = 64 << 20 // a list of a million sessions does not fit, and should be asked for by sub
)

// client speaks to one HTTP API of sidekey: the issuer's or an agent's.
type client struct {
	who   string // "the issuer" or "the agent", for errors
	start string // what to do when nothing listens there
	addr  string // as the user knows it: an http URL, or unix: and a path
	base  string // what paths are put behind
	token func() (string, error)
	http  *http.Client
	limit time.Duration // of one call
}

// newClient makes a client for addr, an http or https URL or "unix:" and a path. It connects with the first call. In
// clear it goes beyond this host only where the configuration is insecure.
func newClient(who, start, addr string, insecure bool) (*client, error) {
	c := &client{who: who, start: start, addr: addr, base: strings.TrimSuffix(addr, "/"), limit: callTimeout}
	transport := &http.Transport{Proxy: nil} // a token goes where it was sent, not through a proxy
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		c.base = "http://sidekey"
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}
	} else if err := checkURL(addr, "http", "https"); err != nil {
		return nil, fmt.Errorf("address of %s: %w", who, err)
	} else if !insecure && inClear(addr) {
		return nil, fmt.Errorf("refusing to call %s at %s in clear: passwords and tokens could be read on the way; name an https URL, or set insecure = true or SIDEKEY_INSECURE=true", who, addr)
	}
	c.http = &http.Client{
		Transport: transport,
		// A redirect would carry the token to another place.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// inClear tells whether others on the network can read what is sent to the URL addr.
func inClear(addr string) bool {
	u, err := url.Parse(addr)
	return err != nil || u.Scheme != "https" && !listenAddr{network: "tcp", host: u.Hostname()}.loopback()
}

// adminClient reaches the admin API: at SIDEKEY_ADDR, else where the configuration says that it listens.
func (a *app) adminClient() (*client, error) {
	cfg, err := a.config(defaultConfig())
	if err != nil {
		return nil, err
	}
	addr := lookupEnv(a.environ, envAddr)
	if addr == "" {
		addr = dialAddress(cfg.Issuer.AdminListen)
	}
	c, err := newIssuerClient(addr, cfg.Insecure)
	if err != nil {
		return nil, err
	}
	c.token = func() (string, error) { return a.adminToken(cfg.DataDir, strings.HasPrefix(addr, "unix:")) }
	return c, nil
}

// publicClient reaches the issuer's public API: at SIDEKEY_ADDR, else at the address that listen picks.
func (a *app) publicClient(listen func(IssuerConfig) string) (*client, error) {
	cfg, err := a.config(defaultConfig())
	if err != nil {
		return nil, err
	}
	addr := lookupEnv(a.environ, envAddr)
	if addr == "" {
		addr = dialAddress(listen(cfg.Issuer))
		if listen(cfg.Issuer) == cfg.Issuer.Listen && cfg.Issuer.TLSCert != "" {
			addr = cfg.Issuer.URL // the name that its certificate is for
		}
	}
	secret := listen(cfg.Issuer) == cfg.Issuer.Listen // where only operations are, nothing is asked with a password or a token
	return newIssuerClient(addr, cfg.Insecure || !secret)
}

func newIssuerClient(addr string, insecure bool) (*client, error) {
	return newClient("the issuer", "start it with `sidekey issuer` or `sidekey dev`, or set "+envAddr, addr, insecure)
}

// agentClient reaches the agent at addr, else where the configuration says that the agent of this host listens.
func (a *app) agentClient(addr string) (*client, error) {
	cfg, err := a.config(defaultConfig())
	if err != nil {
		return nil, err
	}
	if addr == "" {
		addr = dialAddress(cfg.Agent.Listen[0])
	}
	return newClient("the agent", "start it with `sidekey agent` or `sidekey dev`, or name another with --agent", addr, cfg.Insecure)
}

// dialAddress turns a listen address into one to call. An address of every interface is called on loopback.
func dialAddress(listen string) string {
	l, err := parseListen(listen)
	if err != nil || l.network == "unix" {
		return listen
	}
	if ip := net.ParseIP(l.host); l.host == "" || ip != nil && ip.IsUnspecified() {
		return "http://" + net.JoinHostPort("127.0.0.1", l.port)
	}
	return "http://" + l.address
}

// adminToken is the first of SIDEKEY_TOKEN_FILE, SIDEKEY_TOKEN and the file that the issuer of this host made. It
// may be missing ("") where the transport is a unix socket, which proves the caller by itself.
func (a *app) adminToken(dataDir string, optional bool) (string, error) {
	if path := lookupEnv(a.environ, envTokenFile); path != "" {
		text, err := readSecretFile(path)
		if err != nil {
			return "", fmt.Errorf("reading the admin token that %s names: %w", envTokenFile, err)
		}
		return strings.TrimSpace(text), nil
	}
	if token := lookupEnv(a.environ, envToken); token != "" {
		return strings.TrimSpace(token), nil
	}
	path := filepath.Join(dataDir, "admin.token")
	text, err := readSecretFile(path)
	if optional && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
		return "", nil
	}
	if errors.Is(err, fs.ErrPermission) {
		return "", fmt.Errorf("no admin token: this user may not read %s; run as the issuer's user, or set %s", path, envTokenFile)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("no admin token: there is no %s; start the issuer on this host, set %s, or name the issuer's folder with --data-dir", path, envTokenFile)
	}
	if err != nil {
		return "", fmt.Errorf("reading the admin token: %w", err)
	}
	return strings.TrimSpace(text), nil
}

// reply is an answer of the API, whatever its status.
type reply struct {
	status int
	body   []byte
}

// decode reads the body into v.
func (r reply) decode(v any) error {
	if err := json.Unmarshal(r.body, v); err != nil {
		return fmt.Errorf("reading the answer: it is not what this version of sidekey knows: %w", err)
	}
	return nil
}

// send makes one call. body nil sends none. Any HTTP answer is a reply; an error means that there was none.
func (c *client) send(ctx context.Context, method, path string, body any) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	req, err := c.request(ctx, method, path, body)
	if err != nil {
		return reply{}, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return reply{}, c.unreachable(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return reply{}, c.unreachable(err)
	}
	if len(text) > maxAnswer {
		return reply{}, fmt.Errorf("reading the answer of %s at %s: it is over %d bytes; ask for less", c.who, c.addr, maxAnswer)
	}
	return reply{status: resp.StatusCode, body: text}, nil
}

// request makes a request, with the token that belongs to it. body nil has none.
func (c *client) request(ctx context.Context, method, path string, body any) (*http.Request, error) {
	var content io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("writing the request: %w", err)
		}
		content = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, content)
	if err != nil {
		return nil, fmt.Errorf("writing the request: %w", err)
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.token == nil {
		return req, nil
	}
	token, err := c.token()
	if err == nil && token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	return req, err
}

// stream asks for what has no end but the caller's. The body is closed by the caller.
func (c *client) stream(ctx context.Context, path string) (io.ReadCloser, error) {
	req, err := c.request(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, c.unreachable(err)
	}
	return nil, c.refused(reply{status: resp.StatusCode, body: text})
}

// call is send for what must succeed: a status of 400 or more, or a redirect, is an error in the issuer's words.
func (c *client) call(ctx context.Context, method, path string, body any) (reply, error) {
	r, err := c.send(ctx, method, path, body)
	if err == nil && r.status >= 300 {
		err = c.refused(r)
	}
	return r, err
}

// unreachable says which address did not answer, why, and what to start.
func (c *client) unreachable(err error) error {
	var uerr *url.Error
	if errors.As(err, &uerr) {
		err = uerr.Err
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, context.Canceled):
		return errors.New("interrupted before the answer; it may have been done")
	case errors.Is(err, context.DeadlineExceeded), os.IsTimeout(err):
		return fmt.Errorf("waiting for %s at %s: no answer in time; it may have been done", c.who, c.addr)
	case errors.As(err, &errno):
		return fmt.Errorf("connecting to %s at %s: %w; %s", c.who, c.addr, errno, c.start)
	}
	return fmt.Errorf("connecting to %s at %s: %w; %s", c.who, c.addr, err, c.start)
}

// refused turns an answer that is no success into one sentence: the problem's (RFC 9457) or OAuth's own.
func (c *client) refused(r reply) error {
	var p struct {
		Title       string `json:"title"`
		Reason      string `json:"reason"` // API.md §3's word
		Detail      any    `json:"detail"`
		Description string `json:"error_description"`
	}
	text := ""
	if json.Unmarshal(r.body, &p) == nil {
		detail, _ := p.Detail.(string)
		for _, s := range []string{detail, p.Description, p.Title} {
			if text == "" {
				text = s
			}
		}
	}
	if text == "" {
		text = http.StatusText(r.status)
	}
	if p.Reason != "" {
		text = p.Reason + ": " + text
	}
	if !printable(text) {
		text = fmt.Sprintf("%q", text)
	}
	if r.status == http.StatusUnauthorized && c.token != nil {
		return fmt.Errorf("%s at %s refused the admin token: %s; set %s to the file of this cluster's token", c.who, c.addr, text, envTokenFile)
	}
	return fmt.Errorf("%s at %s refused: %s (status %d)", c.who, c.addr, text, r.status)
}
