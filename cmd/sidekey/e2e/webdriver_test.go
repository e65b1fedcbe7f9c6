package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
)

// browser is a headless Chromium, driven as W3C WebDriver has it (w3.org/TR/webdriver2): a dozen calls of JSON over
// HTTP, so no library is needed.
type browser struct {
	t    *testing.T
	base string // URL of the session
}

// chromium starts one with an empty profile. hosts maps names to addresses, as --host-resolver-rules has it.
func chromium(t *testing.T, hosts string) *browser {
	t.Helper()
	port := freePort(t)
	start(t, exec.Command("/usr/bin/chromedriver", "--port="+port))
	base := "http://127.0.0.1:" + port
	await(t, "chromedriver", func() error { return expectStatus(http.StatusOK)(http.Get(base + "/status")) })
	b := &browser{t: t, base: base}
	var session struct {
		ID string `json:"sessionId"`
	}
	b.call("POST", "/session", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"acceptInsecureCerts": true,
		"goog:chromeOptions": map[string]any{"binary": "/usr/bin/chromium", "args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--ignore-certificate-errors",
			"--host-resolver-rules=" + hosts, "--user-data-dir=" + t.TempDir(),
		}},
	}}}, &session)
	b.base += "/session/" + session.ID
	t.Cleanup(func() { b.call("DELETE", "", nil, nil) })
	return b
}

// call sends a command and reads its value.
func (b *browser) call(method, path string, in, out any) {
	b.t.Helper()
	if err := b.try(method, path, in, out); err != nil {
		b.t.Fatalf("chromedriver %s %s: %v", method, path, err)
	}
}

func (b *browser) try(method, path string, in, out any) error {
	body := []byte("{}")
	if in != nil {
		var err error
		if body, err = json.Marshal(in); err != nil {
			return err
		}
	}
	req, err := http.NewRequest(method, b.base+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct {
		Value json.RawMessage `json:"value"`
	}
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%d %s", res.StatusCode, answer.Value)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

func (b *browser) open(url string) {
	b.t.Helper()
	b.call("POST", "/url", map[string]string{"url": url}, nil)
}

// url is where the browser is.
func (b *browser) url() (url string) {
	b.t.Helper()
	b.call("GET", "/url", nil, &url)
	return url
}

// awaitURL waits until the browser is there.
func (b *browser) awaitURL(want string) {
	b.t.Helper()
	await(b.t, "the browser to be at "+want, func() error {
		if got := b.url(); got != want {
			return errors.New("it is at " + got)
		}
		return nil
	})
}

// element finds one by CSS selector, and gives the path of its commands.
func (b *browser) element(selector string) string {
	b.t.Helper()
	var found map[string]string
	b.call("POST", "/element", map[string]string{"using": "css selector", "value": selector}, &found)
	for _, id := range found {
		return "/element/" + id
	}
	b.t.Fatalf("no element %s", selector)
	return ""
}

func (b *browser) fill(selector, text string) {
	b.t.Helper()
	b.call("POST", b.element(selector)+"/value", map[string]string{"text": text}, nil)
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.call("POST", b.element(selector)+"/click", nil, nil)
}

// eval runs the body of an async function in the page, and gives what it returns as text.
func (b *browser) eval(script string, args ...any) string {
	b.t.Helper()
	text, err := b.look(script, args...)
	if err != nil {
		b.t.Fatalf("chromedriver: a script in the page: %v", err)
	}
	return text
}

// look is eval while the page may be about to go: a script whose page has gone gives no answer, and an error.
func (b *browser) look(script string, args ...any) (text string, err error) {
	if args == nil {
		args = []any{}
	}
	err = b.try("POST", "/execute/async", map[string]any{"args": args, "script": "const done = arguments[arguments.length - 1];" +
		"(async (...args) => {" + script + "})(...arguments).then(v => done(String(v)), e => done('failed: ' + e));"}, &text)
	return text, err
}

// cookies gives the names and attributes of those that go to the page at hand.
func (b *browser) cookies() map[string]string {
	b.t.Helper()
	var all []struct {
		Name, Path, SameSite, Domain string
		Secure, HTTPOnly             bool
	}
	b.call("GET", "/cookie", nil, &all)
	m := map[string]string{}
	for _, c := range all {
		m[c.Name] = strings.TrimSpace(fmt.Sprintf("%s %s secure=%v httponly=%v", c.Path, c.SameSite, c.Secure, c.HTTPOnly))
	}
	return m
}
