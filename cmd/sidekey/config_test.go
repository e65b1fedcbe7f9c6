package main

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// example is config.toml.example with every key uncommented, at the path returned beside it.
func example(t *testing.T) (text, path string) {
	t.Helper()
	source, err := os.ReadFile("../../config.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	text = regexp.MustCompile(`(?m)^#([a-z_]+ = )`).ReplaceAllString(string(source), "$1")
	path = filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return text, path
}

// values maps every key of c to its value.
func values(c Config) map[string]any {
	m := map[string]any{}
	for _, f := range configFields(&c) {
		m[f.key] = f.value.Interface()
		if list, ok := m[f.key].([]string); ok {
			m[f.key] = strings.Join(list, ",") // an empty list is a missing one
		}
	}
	return m
}

func TestExampleIsTheManual(t *testing.T) {
	text, path := example(t)
	c := Config{origin: map[string]string{}}
	if err := applyFile(&c, configFields(&c), path, text); err != nil {
		t.Fatal(err)
	}
	got, want := values(c), values(defaultConfig())
	for key := range want {
		if !c.isSet(key) {
			t.Errorf("config.toml.example lacks %s", key)
		} else if !reflect.DeepEqual(got[key], want[key]) {
			t.Errorf("config.toml.example has %s = %#v, the default is %#v", key, got[key], want[key])
		}
	}
	if _, err := loadConfig(defaultConfig(), sources{path: path}); err != nil {
		t.Errorf("loading the example with every key set: %v", err)
	}
}

func TestEveryKeyHasHelp(t *testing.T) {
	c := defaultConfig()
	for _, f := range configFields(&c) {
		if f.help == "" {
			t.Errorf("%s has no help tag", f.key)
		}
	}
}

func TestDerivedDefaults(t *testing.T) {
	load := func(environ ...string) Config {
		t.Helper()
		c, err := loadConfig(defaultConfig(), sources{environ: append(environ, "SIDEKEY_AGENT_NAME=a")})
		if err != nil {
			t.Fatalf("loadConfig(%q): %v", environ, err)
		}
		return c
	}
	c := load()
	for _, pair := range [][2]string{
		{c.Issuer.URL, "http://127.0.0.1:7460"}, {c.Issuer.Audience, c.Issuer.URL}, {c.Issuer.AdminListen, c.Issuer.Listen},
		{c.Issuer.OpsListen, c.Issuer.Listen}, {c.Agent.DataDir, "/var/lib/sidekey/agent"}, {c.Agent.OpsListen, "127.0.0.1:7461"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("default: got %q, want %q", pair[0], pair[1])
		}
	}
	c = load("SIDEKEY_ISSUER_LISTEN=10.0.0.5:80", "SIDEKEY_DATA_DIR=/srv", "SIDEKEY_INSECURE=true")
	if got, want := c.Issuer.AdminListen, "unix:/srv/admin.sock"; got != want {
		t.Errorf("admin_listen beside a listener beyond loopback: got %q, want %q", got, want)
	}
	if got, want := c.Issuer.URL, "http://10.0.0.5:80"; got != want {
		t.Errorf("url: got %q, want %q", got, want)
	}
	if got, want := c.Agent.DataDir, "/srv/agent"; got != want {
		t.Errorf("agent.data_dir: got %q, want %q", got, want)
	}
	c = load("SIDEKEY_ISSUER_URL=https://id.example")
	if got, want := c.Issuer.Audience, "https://id.example"; got != want {
		t.Errorf("audience: got %q, want %q", got, want)
	}
}

func TestPrecedence(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.toml")
	if err := os.WriteFile(path, []byte("[agent]\nleeway = \"1s\"\nlisten = \"127.0.0.1:1\"\nrealm = \"file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := loadConfig(defaultConfig(), sources{
		path:    path,
		environ: []string{"SIDEKEY_AGENT_LEEWAY=2s", "SIDEKEY_AGENT_LISTEN=127.0.0.1:2, unix:/a", "SIDEKEY_AGENT_REALM=", "HOME=/x"},
		flags:   map[string]string{"agent.leeway": "3s"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.Agent.Leeway != 3*time.Second || !slices.Equal(c.Agent.Listen, []string{"127.0.0.1:2", "unix:/a"}) || c.Agent.Realm != "file" {
		t.Errorf("got leeway %s, listen %q, realm %q; want the flag's, the variable's and the file's (an empty variable is none)",
			c.Agent.Leeway, c.Agent.Listen, c.Agent.Realm)
	}
	for key, want := range map[string]string{
		"agent.leeway": "--agent-leeway", "agent.listen": "SIDEKEY_AGENT_LISTEN", "agent.realm": path + ":4", "agent.name": "",
	} {
		if got := c.origin[key]; got != want {
			t.Errorf("origin of %s: got %q, want %q", key, got, want)
		}
	}
}

func TestConfigErrors(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"\n[agent]\nlistn = \"x\"", `c.toml:3: unknown key "agent.listn"; did you mean "agent.listen"?`},
		{"agent.listn = \"x\"", `c.toml:1: unknown key "agent.listn"; did you mean "agent.listen"?`},
		{"agent = { listn = \"x\" }", `c.toml:1: unknown key "agent.listn"; did you mean "agent.listen"?`},
		{"Data_Dir = \"x\"", `c.toml:1: unknown key "Data_Dir"; did you mean "data_dir"?`},
		{"[agnt]\nlisten = \"x\"", `c.toml:1: unknown key "agnt"; did you mean "agent"?`},
		{"colour = 1", `c.toml:1: unknown key "colour"`},
		{"\"agent.leeway\" = \"1s\"", `c.toml:1: unknown key "\"agent.leeway\""; did you mean "agent.leeway"?`},
		{"[[agent]]\nleeway = \"1s\"", `c.toml:1: want a table [agent]`},
		{"agent = 1", `c.toml:1: want a table [agent]`},
		{"[agent.leeway]\na = 1", `c.toml:1: agent.leeway: want a duration in quotes such as "30s", got a table`},
		{"[agent]\nleeway = 5", `c.toml:2: agent.leeway: want a duration in quotes such as "30s", got a number`},
		{"[agent]\nleeway = \"5\"", `c.toml:2: agent.leeway: want a duration such as "30s", "15m" or "168h", got "5"`},
		{"[agent]\n\nleeway = \"6m\"", `c.toml:3: agent.leeway: want a duration from 0s to 5m0s, got 6m0s`},
		{"[agent]\nmax_staleness = \"999ms\"", `c.toml:2: agent.max_staleness: want a duration from 1s to 24h0m0s, got 999ms`},
		{"[agent]\nmax_staleness = \"25h\"", `c.toml:2: agent.max_staleness: want a duration from 1s to 24h0m0s, got 25h0m0s`},
		{"[agent]\nlisten = [1]", `c.toml:2: agent.listen: want a list of texts, got a number in it`},
		{"[agent]\nlisten = 2026-01-01", `c.toml:2: agent.listen: want text or a list of texts, got a date or time`},
		{"[agent]\nlisten = []", `c.toml:2: agent.listen: want at least one address`},
		{"[agent]\nlisten = \"7461\"", `c.toml:2: agent.listen: want host:port or unix:/path, got "7461"`},
		{"[agent]\nlisten = \"h:70000\"", `c.toml:2: agent.listen: want a port number from 0 to 65535, got "h:70000"`},
		{"[agent]\nlisten = \"unix:a\"", `c.toml:2: agent.listen: want unix: and an absolute path, got "unix:a"`},
		{"[agent]\nname = \"a b\"", `c.toml:2: agent.name: want up to 63 letters, digits, dots, dashes and underscores, got "a b"`},
		{"[agent]\ncache_size = 0", `c.toml:2: agent.cache_size: want 1 to 10000000, got 0`},
		{"[agent]\nrealm = \"a\\\"b\"", `c.toml:2: agent.realm: want ASCII text without quotes, backslashes and control characters, got "a\"b"`},
		{"[agent]\naudiences = [\"\"]", `c.toml:2: agent.audiences: want texts without control characters, got [""]`},
		{"[keys]\nalg = \"none\"", `c.toml:2: keys.alg: want RS256, HS256, ES256 or EdDSA, got "none"`},
		{"[keys]\nbits = 1024", `c.toml:2: keys.bits: want 2048, 3072 or 4096, got 1024`},
		{"[keys]\nbits = \"2048\"", `c.toml:2: keys.bits: want a whole number, got text`},
		{"[keys]\nrotate_every = \"1m\"", `c.toml:2: keys.rotate_every: want 0s or a duration longer than keys.publish_ahead (10m0s)`},
		{"[keys]\npublish_ahead = \"-1m\"", `c.toml:2: keys.publish_ahead: want a duration from 0s`},
		{"[issuer]\naccess_lifetime = \"0s\"", `c.toml:2: issuer.access_lifetime: want a duration of 1s to`},
		{"[issuer]\nrefresh_lifetime = \"15m\"", `c.toml:2: issuer.refresh_lifetime: want a duration longer than issuer.access_lifetime (15m0s)`},
		{"[issuer]\nrefresh_grace = \"-1s\"", `c.toml:2: issuer.refresh_grace: want a duration from 0s`},
		{"[issuer]\nsession_idle = \"0s\"", `c.toml:2: issuer.session_idle: want a duration of 1s to 87600h0m0s, got 0s`},
		{"[issuer]\nsession_lifetime = \"-1h\"", `c.toml:2: issuer.session_lifetime: want 0s or a duration of 1s`},
		{"[issuer]\nmax_sessions = 0", `c.toml:2: issuer.max_sessions: want at least 1, got 0`},
		{"[issuer]\nlogin_per_minute = -1", `c.toml:2: issuer.login_per_minute: want 0 to 1000000, got -1`},
		{"[issuer]\nsource_multiple = 0", `c.toml:2: issuer.source_multiple: want 1 to 1000000, got 0`},
		{"[issuer]\non_new_network = \"ask\"", `c.toml:2: issuer.on_new_network: want log, require_login or revoke, got "ask"`},
		{"[issuer]\nbackup_recipients = [\"age1x\"]", `c.toml:2: issuer.backup_recipients: "age1x" is no age recipient: want age1…, as age-keygen prints it`},
		{"[issuer]\ntrusted_proxies = [\"proxy\"]", `c.toml:2: issuer.trusted_proxies: want networks such as 10.0.0.0/8 or 127.0.0.1, got "proxy"`},
		{"[issuer]\ntrusted_proxies = [\"0.0.0.0/0\"]", `c.toml:2: issuer.trusted_proxies: "0.0.0.0/0" is everybody: any client could say where it comes from; name the proxies`},
		{"[issuer]\naudit_file = \"audit\"", `c.toml:2: issuer.audit_file: want an absolute path, got "audit"`},
		{"[issuer]\nmax_credentials = 0", `c.toml:2: issuer.max_credentials: want at least 1, got 0`},
		{"[issuer]\nuser_id_claim = \"sub\"", `c.toml:2: issuer.user_id_claim: "sub" has another meaning in a token`},
		{"[issuer]\nurl = \"id.example\"", `c.toml:2: issuer.url: want a URL that begins with http:// or https://, got "id.example"`},
		{"[issuer]\nurl = \"http://id.example/\"", `c.toml:2: issuer.url: want no slash at the end of "http://id.example/"`},
		{"[issuer]\nurl = \"http://id.example?a\"", `c.toml:2: issuer.url: want a URL without query and fragment`},
		{"[issuer]\nlisten = \"0.0.0.0:7460\"", `issuer.url: set it: others cannot reach issuer.listen "0.0.0.0:7460" as it is written`},
		{"[bus]\nlisten = \"unix:/bus\"", `c.toml:2: bus.listen: want host:port, got "unix:/bus"`},
		{"[bus]\ntls_cert = \"c\"", `bus.tls_key: set it too: bus.tls_cert is of no use without its key`},
		{"[bus]\nadvertise = \"bus:1\"", `c.toml:2: bus.advertise: want a URL that begins with nats:// or tls://`},
		{"[issuer]\nlisten = \"10.0.0.5:80\"", `c.toml:2: issuer.listen: refusing to listen on "10.0.0.5:80" in clear`},
		{"[issuer]\nadmin_listen = \"10.0.0.5:80\"", `c.toml:2: issuer.admin_listen: refusing to listen on "10.0.0.5:80" in clear`},
		{"[issuer]\ntls_key = \"k\"", `issuer.tls_cert: set it too: issuer.tls_key is of no use without its certificate`},
		{"[agent]\nlisten = \":7461\"", `c.toml:2: agent.listen: refusing to listen on ":7461" in clear: tokens could be read on the way; use agent.tls_listen`},
		{"[agent]\ntls_listen = \":7462\"", `c.toml:2: agent.tls_listen: set agent.tls_cert and agent.tls_key too`},
		{"insecure = 1", `c.toml:1: insecure: want true or false, got a number`},
		{"insecure = \"yes\"", `c.toml:1: insecure: want true or false, got text`},
		{"[bus]\nurls = \"nats://u:hunter2@h\"", `c.toml:2: bus.urls: want no user or password in the URL`},
		{"[bus]\nurls = \"http://h\"", `c.toml:2: bus.urls: want a URL that begins with nats:// or tls://, got "http://h"`},
		{"[bus]\nmonitor_url = \"http://h\"", `c.toml:2: bus.monitor_url: is for an existing NATS: set bus.urls too`},
		{"log_level = \"loud\"", `c.toml:1: log_level: want trace, debug, info, warn or error, got "loud"`},
		{"log_format = \"xml\"", `c.toml:1: log_format: want text or json, got "xml"`},
		{"data_dir = true", `c.toml:1: data_dir: want text in quotes, got true or false`},
		{"data_dir = \"\"", `c.toml:1: data_dir: set it to a folder for the state`},
		{"data_dir = \"a\"\ndata_dir = \"b\"", `c.toml:2: Key 'data_dir' has already been defined`},
		{"data_dir = ", `c.toml:1: `},
	} {
		t.Chdir(t.TempDir())
		if err := os.WriteFile("c.toml", []byte(test.text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := loadConfig(defaultConfig(), sources{path: "c.toml", environ: []string{"HOME=/"}})
		if err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("loadConfig(%q): got %v, want %s", test.text, err, test.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("loadConfig(%q): the error shows a password: %v", test.text, err)
		}
	}
}

func TestVariableErrors(t *testing.T) {
	for environ, want := range map[string]string{
		"SIDEKEY_AGENT_LISTN=x":    `unknown variable SIDEKEY_AGENT_LISTN; did you mean "SIDEKEY_AGENT_LISTEN"?`,
		"SIDEKEY_TOKN=x":           `unknown variable SIDEKEY_TOKN; did you mean "SIDEKEY_TOKEN"?`,
		"SIDEKEY_COLOUR=x":         `unknown variable SIDEKEY_COLOUR`,
		"SIDEKEY_AGENT_LEEWAY=5":   `SIDEKEY_AGENT_LEEWAY: want a duration such as "30s", "15m" or "168h", got "5"`,
		"SIDEKEY_KEYS_BITS=big":    `SIDEKEY_KEYS_BITS: want a whole number, got "big"`,
		"SIDEKEY_KEYS_BITS=1024":   `SIDEKEY_KEYS_BITS: keys.bits: want 2048, 3072 or 4096, got 1024`,
		"SIDEKEY_AGENT_LISTEN=,":   `SIDEKEY_AGENT_LISTEN: agent.listen: want at least one address`,
		"SIDEKEY_ISSUER_LISTEN=:0": `issuer.url: set it: others cannot reach issuer.listen ":0" as it is written`,
	} {
		_, err := loadConfig(defaultConfig(), sources{environ: []string{environ}})
		if err == nil || err.Error() != want {
			t.Errorf("loadConfig(%s): got %v, want %s", environ, err, want)
		}
	}
	// What Kubernetes adds beside a Service is nobody's mistake, nor are the command line's own.
	environ := []string{
		"SIDEKEY_SERVICE_HOST=10.0.0.1", "SIDEKEY_SERVICE_PORT_HTTP=80", "SIDEKEY_PORT=tcp://10.0.0.1:80",
		"SIDEKEY_ISSUER_PORT_80_TCP_ADDR=10.0.0.1", "SIDEKEY_ADDR=x", "SIDEKEY_TOKEN=x", "SIDEKEY_TOKEN_FILE=x", "SIDEKEY_CONFIG=x",
	}
	if _, err := loadConfig(defaultConfig(), sources{environ: environ}); err != nil {
		t.Errorf("loadConfig(%q): %v", environ, err)
	}
}

func TestConfigFileMissing(t *testing.T) {
	_, err := loadConfig(defaultConfig(), sources{path: "/nonexistent/c.toml"})
	if want := `reading config: no file "/nonexistent/c.toml"; name one with --config`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// FuzzConfig holds that no file makes the reader panic, that an error names a place in the file or a key, and that a
// file which is taken is taken again to the same end.
func FuzzConfig(f *testing.F) {
	f.Add("data_dir = \"/d\"\n[agent]\nleeway = \"1s\"\naudiences = [\"a\", \"b\"]\n[keys]\nbits = 3072\n")
	f.Add("agent = { listen = [\"127.0.0.1:1\"] }\nkeys.bits = 3072")
	f.Add("[[agent]]\n[agent.leeway.x]\n")
	read := func(text string) (Config, error) {
		c := defaultConfig()
		c.origin = map[string]string{}
		err := applyFile(&c, configFields(&c), "c.toml", text)
		if err == nil {
			c.resolve()
			err = c.validate()
		}
		return c, err
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := read(text)
		if err != nil {
			if !regexp.MustCompile(`^(c\.toml:\d+: |[a-z]+\.[a-z_]+: )`).MatchString(err.Error()) {
				t.Fatalf("an error without a place: %v", err)
			}
			return
		}
		again, err := read(text)
		if err != nil || !reflect.DeepEqual(values(c), values(again)) {
			t.Fatalf("read twice: %v then %v (%v)", values(c), values(again), err)
		}
	})
}
