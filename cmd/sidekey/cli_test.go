package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// sidekey runs one command line in memory and returns its exit status and what it wrote.
func sidekey(t *testing.T, stdin string, environ []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdin: strings.NewReader(stdin), stdout: &out, stderr: &errs, environ: environ, flags: map[string]string{}}
	status = a.run(t.Context(), args)
	return status, out.String(), errs.String()
}

// api is an HTTP API that answers every call alike and keeps the last one as "METHOD target token body".
func api(t *testing.T, status int, body string) (addr string, last *string) {
	t.Helper()
	last = new(string)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		sent, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		*last = strings.TrimSpace(fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI,
			strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "), sent))
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	t.Cleanup(server.Close)
	return server.URL, last
}

func TestCommandsCallTheAPI(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"pw": "from-file\n", "key.pem": "-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----\n",
		"key.jwk": `{"kty":"oct","k":"AA"}`, "secret": "0123456789abcdef0123456789abcdef\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	for _, test := range []struct{ args, stdin, answer, call, stdout string }{
		{"users add bob --password - --scope read --role a --role b --email b@x", "pw word\n", `{"username":"bob"}`,
			`POST /admin/v1/users T {"email":"b@x","password":"pw word","roles":["a","b"],"scope":"read","username":"bob"}`, "added user bob\n"},
		{"users add bob --password @pw", "", `{}`,
			`POST /admin/v1/users T {"email":"","password":"from-file","roles":[],"scope":"","username":"bob"}`, "added user bob\n"},
		{"users list", "", `{"users":[{"username":"bob","id":"u1","scope":"read","roles":["a","b"],"disabled":true}]}`,
			`GET /admin/v1/users T`, "USER  ID  SCOPE  ROLES  EMAIL  STATE     LAST LOGIN\nbob   u1  read   a,b    -      disabled  -\n"},
		{"users passwd b/b --password x", "", ``, `PATCH /admin/v1/users/b%2Fb T {"password":"x"}`, "changed the password of b/b\n"},
		{"users disable bob", "", `{}`, `PATCH /admin/v1/users/bob T {"disabled":true}`, "disabled user bob\n"},
		{"users enable bob", "", `{}`, `PATCH /admin/v1/users/bob T {"disabled":false}`, "enabled user bob\n"},
		{"users delete bob", "", ``, `DELETE /admin/v1/users/bob T`, "deleted user bob\n"},
		{"keys list", "", `{"keys":[{"kid":"k","alg":"RS256","bits":2048,"state":"active","created":1767225600,"seq":3}]}`,
			`GET /admin/v1/keys T`, "KID  ALG    BITS  STATE   AUD  CREATED               RETIRED  SEQ  NOTE\nk    RS256  2048  active  -    2026-01-01T00:00:00Z  -        3    -\n"},
		{"keys rotate", "", `{"kid":"k","alg":"RS256","state":"active","seq":4}`, `POST /admin/v1/keys/rotate T {}`,
			"key k (RS256) is active since entry 4\n"},
		{"keys rotate --alg RS256 --bits 3072 --publish-ahead 0s", "", `{"kid":"k","alg":"RS256","state":"active","seq":4}`,
			`POST /admin/v1/keys/rotate T {"alg":"RS256","bits":3072,"publish_ahead":"0s"}`, "key k (RS256) is active since entry 4\n"},
		{"keys import key.pem --activate", "", `{"kid":"k","alg":"RS256","state":"active","seq":4}`,
			`POST /admin/v1/keys/import T {"activate":true,"pem":"-----BEGIN PRIVATE KEY-----\nAA==\n-----END PRIVATE KEY-----"}`,
			"key k (RS256) is active since entry 4\n"},
		{"keys import key.jwk --alg HS256", "", `{"kid":"k","alg":"HS256","state":"announced","seq":4}`,
			`POST /admin/v1/keys/import T {"alg":"HS256","jwk":{"kty":"oct","k":"AA"}}`, "key k (HS256) is announced since entry 4\n"},
		{"keys import secret --alg HS256", "", `{"kid":"k","alg":"HS256","state":"announced","seq":4}`,
			`POST /admin/v1/keys/import T {"alg":"HS256","secret":"0123456789abcdef0123456789abcdef"}`, "key k (HS256) is announced since entry 4\n"},
		{"keys revoke k-_1", "", `{"kid":"k-_1","alg":"RS256","state":"revoked","seq":9}`, `POST /admin/v1/keys/k-_1/revoke T {}`,
			"key k-_1 (RS256) is revoked since entry 9\n"},
		{"revoke --token - --reason lost", "a.b.c\n", `{"seq":7}`, `POST /admin/v1/revocations T {"reason":"lost","token":"a.b.c"}`, "revoked at entry 7\n"},
		{"revoke --jti j", "", `{"seq":7}`, `POST /admin/v1/revocations T {"jti":"j"}`, "revoked at entry 7\n"},
		{"revoke --sid s", "", `{"seq":7}`, `POST /admin/v1/revocations T {"sid":"s"}`, "revoked at entry 7\n"},
		{"revoke --sub u", "", `{"seq":7}`, `POST /admin/v1/revocations T {"sub":"u"}`, "revoked at entry 7\n"},
		{"revoke --client c", "", `{"seq":7}`, `POST /admin/v1/revocations T {"client_id":"c"}`, "revoked at entry 7\n"},
		{"sessions list --sub a&b", "", `{"sessions":[{"sid":"s","sub":"a&b","client_id":"c","created":1767225600,"expires":1767225601,"closed":1767225602}]}`,
			`GET /admin/v1/sessions?sub=a%26b T`, "SID  SUB  CLIENT  CREATED               LAST USED  EXPIRES               STATE\n" +
				"s    a&b  c       2026-01-01T00:00:00Z  -          2026-01-01T00:00:01Z  closed 2026-01-01T00:00:02Z\n"},
		{"sessions revoke s", "", `{"seq":1}`, `DELETE /admin/v1/sessions/s T`, "revoked session s\n"},
		{"agents list", "", `{"agents":[{"name":"\u001b[2J","version":"v1","epoch":1,"seq":2}]}`, `GET /admin/v1/agents T`,
			"AGENT      VERSION  EPOCH  SEQ  SEEN  JOINED  REMOVED\n\"\\x1b[2J\"  v1       1      2    -     -       -\n"},
		{"agents remove a", "", ``, `DELETE /admin/v1/agents/a T`, "removed agent a\n"},
	} {
		addr, last := api(t, http.StatusOK, test.answer)
		args := append(strings.Fields(test.args), "--format", "table")
		status, stdout, stderr := sidekey(t, test.stdin, []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T"}, args...)
		if status != exitDone || *last != test.call || stdout != test.stdout || stderr != "" {
			t.Errorf("sidekey %s: got status %d, call %s, stdout\n%sstderr %s\nwant call %s, stdout\n%s",
				test.args, status, *last, stdout, stderr, test.call, test.stdout)
		}
	}
}

// TestJSONIsTheDefaultInAPipe holds that a script gets the API's own members.
func TestJSONIsTheDefaultInAPipe(t *testing.T) {
	addr, _ := api(t, http.StatusOK, `{"keys":[],"new_member":1}`)
	_, stdout, _ := sidekey(t, "", []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T"}, "keys", "list")
	if want := "{\n  \"keys\": [],\n  \"new_member\": 1\n}\n"; stdout != want {
		t.Errorf("got %q, want %q", stdout, want)
	}
}

func TestTokenIssue(t *testing.T) {
	addr, last := api(t, http.StatusOK, `{"access":"a.b.c","refresh":"d.e.f"}`)
	status, stdout, stderr := sidekey(t, "wonderland\n", []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T"},
		"token", "issue", "--user", "alice", "--password", "-", "--format", "table")
	if want := `POST /api/token/  {"password":"wonderland","username":"alice"}`; *last != want {
		t.Errorf("call: got %s, want %s (and no admin token in it)", *last, want)
	}
	if want := "access   a.b.c\nrefresh  d.e.f\n"; status != exitDone || stdout != want {
		t.Errorf("got status %d, stdout %q, stderr %q; want %q", status, stdout, stderr, want)
	}
}

func TestTokenVerify(t *testing.T) {
	addr, last := api(t, http.StatusOK, `{"active":true,"kid":"k","alg":"RS256","seq":5,"claims":{"sub":"u","exp":1767225600}}`)
	status, stdout, _ := sidekey(t, "a.b.c", nil, "token", "verify", "-", "--agent", addr, "--scope", "read", "--audience", "x", "--format", "table")
	if want := `POST /v1/verify  {"audience":"x","scope":"read","token":"a.b.c"}`; *last != want {
		t.Errorf("call: got %s, want %s", *last, want)
	}
	want := "active  yes, at entry 5\nkid     k\nalg     RS256\nexp     2026-01-01T00:00:00Z (1767225600)\nsub     u\n"
	if status != exitDone || stdout != want {
		t.Errorf("got status %d, stdout %q, want %q", status, stdout, want)
	}
	for _, test := range []struct {
		status       int
		body, stderr string
	}{
		{401, `{"active":false,"error":"invalid_token","reason":"revoked","error_description":"the token was revoked"}`,
			"sidekey: token denied: revoked: the token was revoked\n"},
		{403, `{"active":true,"error":"insufficient_scope"}`, "sidekey: token denied: insufficient_scope\n"},
		{503, `{"title":"Service Unavailable","reason":"starting","detail":"the agent has not read the log yet"}`,
			"sidekey: the agent at ADDR refused: starting: the agent has not read the log yet (status 503)\n"},
	} {
		addr, _ := api(t, test.status, test.body)
		status, _, stderr := sidekey(t, "", nil, "token", "verify", "a.b.c", "--agent", addr, "--format", "table")
		if want := strings.ReplaceAll(test.stderr, "ADDR", addr); status != exitFailed || stderr != want {
			t.Errorf("an answer of %d: got status %d, stderr %q, want 1, %q", test.status, status, stderr, want)
		}
	}
}

func TestTokenInspect(t *testing.T) {
	const token = "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ1IiwiZXhwIjoxNzY3MjI1NjAwLjV9.x" // {"alg":"none"} {"sub":"u","exp":1767225600.5}
	status, stdout, stderr := sidekey(t, "", nil, "token", "inspect", token, "--format", "table")
	if want := "alg  none\nexp  2026-01-01T00:00:00Z (1767225600.5)\nsub  u\n"; status != exitDone || stdout != want {
		t.Errorf("got status %d, stdout %q, want %q", status, stdout, want)
	}
	if !strings.HasPrefix(stderr, "not verified: ") {
		t.Errorf("stderr: got %q, want that nothing is proven", stderr)
	}
	for token, want := range map[string]string{
		"a.b":                  "reading the token: want three parts with dots between, got 2",
		"!.e30.x":              "reading the token's header: it is no base64url",
		"e30.bnVsbA.x":         "reading the token's claims: it is no JSON object",
		"@/nonexistent/secret": "reading the token: open /nonexistent/secret: no such file or directory",
	} {
		if status, _, stderr := sidekey(t, "", nil, "token", "inspect", token); status != exitFailed || stderr != "sidekey: "+want+"\n" {
			t.Errorf("inspect %s: got status %d, %q, want 1, %q", token, status, stderr, want)
		}
	}
}

func TestRotationThatWaits(t *testing.T) {
	rotate := func(body string) (status int, stdout, stderr string) {
		addr, _ := api(t, http.StatusAccepted, body)
		return sidekey(t, "", []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T"}, "keys", "rotate", "--format", "table")
	}
	status, stdout, stderr := rotate(`{"kid":"k","alg":"RS256","state":"announced","seq":4,"activates_at":4102444800,"pending":["a"]}`)
	if want := "key k (RS256) is announced since entry 4, and signs from 2100-01-01T00:00:00Z\n"; status != exitDone || stdout != want {
		t.Errorf("published ahead: got status %d, stdout %q, stderr %q, want %q", status, stdout, stderr, want)
	}
	status, _, stderr = rotate(`{"kid":"k","alg":"RS256","state":"announced","seq":4,"activates_at":1767225600,"pending":["a","b"]}`)
	want := "sidekey: key k is announced and waits for a, b to acknowledge it; start what is down, or wait until its lease has ended; --force goes on without, and those may refuse new tokens until they have caught up\n"
	if status != exitFailed || stderr != want {
		t.Errorf("agents pending: got status %d, stderr %q, want 1, %q", status, stderr, want)
	}
	status, _, stderr = rotate(`{"kid":"k","alg":"RS256","state":"announced","seq":4}`)
	if want := "sidekey: key k is announced and not yet what was asked for"; status != exitFailed || !strings.HasPrefix(stderr, want) {
		t.Errorf("not done: got status %d, stderr %q, want 1, %q", status, stderr, want)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	refuse := func(status int, body string) []string {
		addr, _ := api(t, status, body)
		return []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T0P", "A=" + addr}
	}
	empty := t.TempDir()
	for _, test := range []struct {
		environ []string
		want    string
	}{
		{refuse(409, `{"title":"Conflict","detail":"there is a user \"bob\" already"}`),
			`the issuer at ADDR refused: there is a user "bob" already (status 409)`},
		{refuse(401, `{"detail":"unknown token"}`),
			`the issuer at ADDR refused the admin token: unknown token; set SIDEKEY_TOKEN_FILE to the file of this cluster's token`},
		{refuse(502, `<html>`), `the issuer at ADDR refused: Bad Gateway (status 502)`},
		{refuse(302, ``), `the issuer at ADDR refused: Found (status 302)`},
		{refuse(400, `{"detail":"\u001b[2J"}`), `the issuer at ADDR refused: "\x1b[2J" (status 400)`},
		{refuse(200, `<html>`), `reading the answer: it is not what this version of sidekey knows: invalid character '<' looking for beginning of value`},
		{[]string{"SIDEKEY_ADDR=http://127.0.0.1:1", "SIDEKEY_TOKEN=T"},
			"connecting to the issuer at http://127.0.0.1:1: connection refused; start it with `sidekey issuer` or `sidekey dev`, or set SIDEKEY_ADDR"},
		{[]string{"SIDEKEY_ADDR=unix:" + empty + "/admin.sock"},
			"connecting to the issuer at unix:" + empty + "/admin.sock: no such file or directory; start it with `sidekey issuer` or `sidekey dev`, or set SIDEKEY_ADDR"},
		{[]string{"SIDEKEY_ADDR=127.0.0.1:7460"}, `address of the issuer: want a URL that begins with http:// or https://`},
		{[]string{"SIDEKEY_DATA_DIR=" + empty},
			"no admin token: there is no " + empty + "/admin.token; start the issuer on this host, set SIDEKEY_TOKEN_FILE, or name the issuer's folder with --data-dir"},
		{[]string{"SIDEKEY_TOKEN_FILE=" + empty + "/t"},
			"reading the admin token that SIDEKEY_TOKEN_FILE names: open " + empty + "/t: no such file or directory"},
	} {
		status, _, stderr := sidekey(t, "", test.environ, "users", "list")
		want := "sidekey: " + strings.ReplaceAll(test.want, "ADDR", lookupEnv(test.environ, "A")) + "\n"
		if lookupEnv(test.environ, "A") == "" {
			want = "sidekey: " + test.want + "\n"
		}
		if status != exitFailed || stderr != want {
			t.Errorf("users list with %q: got status %d, stderr %q, want 1, %q", test.environ, status, stderr, want)
		}
	}
}

// TestTokenSources holds the order: SIDEKEY_TOKEN_FILE, SIDEKEY_TOKEN, admin.token in data_dir.
func TestTokenSources(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"admin.token": "FROM-DIR\n", "t": "FROM-FILE\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addr, last := api(t, http.StatusOK, `{"users":[]}`)
	environ := []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_DATA_DIR=" + dir}
	for _, step := range []struct{ add, want string }{
		{"A=B", "FROM-DIR"}, {"SIDEKEY_TOKEN=FROM-ENV", "FROM-ENV"}, {"SIDEKEY_TOKEN_FILE=" + dir + "/t", "FROM-FILE"},
	} {
		environ = append(environ, step.add)
		status, _, stderr := sidekey(t, "", environ, "users", "list")
		if want := "GET /admin/v1/users " + step.want; status != exitDone || *last != want {
			t.Errorf("with %s: got status %d (%s), call %q, want %q", step.add, status, stderr, *last, want)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	for args, want := range map[string]string{
		"":                           "sidekey needs a command: ",
		"usrs":                       `unknown command "usrs" for sidekey; did you mean "users"?`,
		"clients":                    "sidekey clients needs a command: add, delete, disable, enable, list, rotate, show",
		"users":                      "sidekey users needs a command: add, delete, disable, enable, list, passwd",
		"users add":                  "accepts 1 arg(s), received 0",
		"users add a b":              "accepts 1 arg(s), received 2",
		"users add a":                "no terminal to ask for a password: use --password - for standard input or --password @FILE",
		"users list --fromat json":   "unknown flag: --fromat",
		"keys revoke -puH":           "unknown shorthand flag: 'p' in -puH; an argument that begins with a dash goes behind --",
		"status --format yaml":       `--format: want table or json, got "yaml"`,
		"revoke --jti a --format x":  `--format: want table or json, got "x"`,
		"revoke":                     "at least one of the flags in the group [token jti sid sub client] is required",
		"revoke --jti a --sid b":     "if any flags in the group [token jti sid sub client] are set none of the others can be",
		"revoke --jti=":              "--jti is empty",
		"keys rotate --bits many":    `invalid argument "many" for "--bits" flag`,
		"config check":               "name the file to check with --config FILE",
		"token issue --password x":   "at least one of the flags in the group [user] is required",
		"keys import " + "/dev/null": "the file is neither PEM nor a JWK; for a secret say --alg HS256",
	} {
		status, _, stderr := sidekey(t, "", []string{"SIDEKEY_TOKEN=T"}, strings.Fields(args)...)
		if status != exitUsage || !strings.HasPrefix(stderr, "sidekey: "+want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("sidekey %s: got status %d, stderr %q, want 2, %q", args, status, stderr, want)
		}
	}
}

func TestStatus(t *testing.T) {
	addr, _ := api(t, http.StatusOK, `{"agent":"a","version":"v1","connected":true,"epoch":1,"applied_seq":4,"head_seq":5,"keys":[{}],
		"agents":[{"name":"a","version":"v1","seq":4}]}`)
	status, stdout, stderr := sidekey(t, "", []string{"SIDEKEY_ADDR=" + addr, "SIDEKEY_TOKEN=T"}, "status", "--agent", addr, "--format", "table")
	if status != exitDone {
		t.Fatalf("got status %d: %s", status, stderr)
	}
	for _, want := range []string{"agent          a v1\n", "  bus          connected\n", "  applied      entry 4 of 5, epoch 1\n", "issuer         ok\n"} {
		if !strings.Contains(stdout, want) {
			t.Errorf("got\n%swithout %q", stdout, want)
		}
	}
	status, stdout, stderr = sidekey(t, "", []string{"SIDEKEY_ADDR=http://127.0.0.1:1"}, "status", "--agent", "http://127.0.0.1:1")
	var got struct {
		AgentError  string `json:"agent_error"`
		IssuerError string `json:"issuer_error"`
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || !strings.Contains(got.AgentError, "connection refused") || !strings.Contains(got.IssuerError, "connection refused") {
		t.Errorf("nothing runs: got %s (%v)", stdout, err)
	}
	if status != exitFailed || !strings.HasPrefix(stderr, "sidekey: neither an agent nor an issuer answers") {
		t.Errorf("nothing runs: got status %d, stderr %q", status, stderr)
	}
}

// TestDaemonCommand holds what every daemon starts with: its own defaults under the configuration, its log in the
// form asked for, and its error as exit status.
func TestDaemonCommand(t *testing.T) {
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, environ: []string{"SIDEKEY_AGENT_NAME=one", "SIDEKEY_LOG_FORMAT=json"}, flags: map[string]string{}}
	var got Config
	cmd := a.daemonCommand(daemonSpec{use: "dev", base: devConfig, keys: []string{"agent", "keys.bits"},
		run: func(_ context.Context, cfg Config, log hclog.Logger) error {
			got = cfg
			log.Info("ready", "addr", cfg.Issuer.Listen)
			log.Debug("unseen")
			return nil
		}})
	cmd.SilenceUsage, cmd.SilenceErrors = true, true // as the root has it
	cmd.SetArgs([]string{"--agent-name", "two", "--keys-bits", "3072"})
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got.Agent.Name != "two" || got.Keys.Bits != 3072 || got.Keys.PublishAhead != 0 {
		t.Errorf("got name %q, bits %d, publish_ahead %s; want two, 3072 and 0s", got.Agent.Name, got.Keys.Bits, got.Keys.PublishAhead)
	}
	var line map[string]any
	if err := json.Unmarshal(errs.Bytes(), &line); err != nil || line["@message"] != "ready" || line["addr"] != "127.0.0.1:7460" {
		t.Errorf("log: got %s (%v), want one JSON line", errs.String(), err)
	}
	cmd.SetArgs([]string{"--agent-leeway", "5"})
	if err := cmd.Execute(); err == nil || !strings.Contains(err.Error(), `want a duration such as "30s"`) {
		t.Errorf("a bad flag: got %v", err)
	}
}
