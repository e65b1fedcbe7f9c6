package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sidekey/sidekey/bus"
	"github.com/sidekey/sidekey/keyring"
)

// examined runs `sidekey doctor` and gives its findings.
func examined(t *testing.T, environ []string) (status int, all []finding) {
	t.Helper()
	status, stdout, stderr := sidekey(t, "", environ, "doctor", "--format", "json")
	var answer struct {
		Findings []finding `json:"findings"`
	}
	if err := json.Unmarshal([]byte(stdout), &answer); err != nil {
		t.Fatalf("doctor: %v: %s%s", err, stdout, stderr)
	}
	return status, answer.Findings
}

func found(all []finding, check, status, text string) bool {
	for _, f := range all {
		if f.Check == check && f.Status == status && strings.Contains(f.Detail, text) {
			return true
		}
	}
	return false
}

// sick is a data_dir of an issuer that does not run.
func sick(t *testing.T) (dir string, env func(more ...string) []string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	master := keyring.NewMasterKey()
	put(t, filepath.Join(dir, masterKeyFile), string(master.Text()))
	if _, err := bus.OpenKeys(filepath.Join(dir, bus.KeysFile), master); err != nil {
		t.Fatal(err)
	}
	return dir, func(more ...string) []string {
		return append([]string{"SIDEKEY_DATA_DIR=" + dir, "SIDEKEY_ISSUER_LISTEN=" + freeAddr(t), "SIDEKEY_BUS_LISTEN=" + freeAddr(t)}, more...)
	}
}

func put(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// freeAddr is an address at which nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// selfSigned writes a certificate that ends then, and its key.
func selfSigned(t *testing.T, end time.Time) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: end.Add(-24 * time.Hour * 365), NotAfter: end, DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	text, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return put(t, filepath.Join(dir, "cert.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		put(t, filepath.Join(dir, "key.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: text})))
}

// TestDoctorWell: a host with an issuer that runs has no failed check, and nothing secret is shown.
func TestDoctorWell(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "issuer")
	p, _ := inProcess(t, dir)
	env := append(inProcessEnv(dir), "SIDEKEY_ADDR=http://"+p.public.Addr().String(), "SIDEKEY_BUS_LISTEN="+strings.TrimPrefix(p.server.URL(), "nats://"))
	status, all := examined(t, env)
	token, err := os.ReadFile(filepath.Join(dir, adminTokenFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.Status == checkFail {
			t.Errorf("failed: %+v", f)
		}
		for _, secret := range []string{strings.TrimSpace(string(token)), strings.TrimSpace(string(p.master.Text()))} {
			if strings.Contains(f.Detail+f.Do, secret) {
				t.Errorf("%s shows a secret", f.Check)
			}
		}
	}
	if status != 0 {
		t.Errorf("exit status: got %d, want 0", status)
	}
	for _, f := range all {
		if f.Check == "clocks" && strings.Contains(f.Detail, "within") {
			t.Errorf("the clock of an issuer that stands alone was held against itself: %+v", f)
		}
	}
	for check, text := range map[string]string{"issuer": "ready at", "bus": "nats-server 2.", "jetstream": "syncs each write", "permissions": "data_dir", "versions": "every agent"} {
		if !found(all, check, checkOK, text) {
			t.Errorf("no ok of %s with %q in %+v", check, text, all)
		}
	}
	if !found(all, "master key", checkWarn, "it lies beside the state") {
		t.Errorf("no hint that the master key lies beside the state: %+v", all)
	}
}

// TestDoctorFinds: each planted fault is found by its check.
func TestDoctorFinds(t *testing.T) {
	t.Parallel()
	late := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Date", time.Now().Add(-time.Hour).UTC().Format(http.TimeFormat))
		w.WriteHeader(503)
		w.Write([]byte(`{"reason":"no tick was read back"}`))
	}))
	defer late.Close()
	unsynced := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(`{"config":{"sync_always":false}}`)) }))
	defer unsynced.Close()
	ended, endedKey := selfSigned(t, time.Now().Add(-time.Hour))
	ending, endingKey := selfSigned(t, time.Now().Add(48*time.Hour))
	natsURL := "SIDEKEY_BUS_URLS=nats://" + fakeNATS(t, `INFO {"version":"2.10.4"}`)
	for name, c := range map[string]struct {
		plant               func(dir string)
		env                 []string
		check, status, text string
	}{
		"a folder that others may enter": {func(dir string) { os.Chmod(dir, 0o755) }, nil, "permissions", checkFail, "others may use it"},
		"a key that others may read":     {func(dir string) { os.Chmod(filepath.Join(dir, masterKeyFile), 0o644) }, nil, "permissions", checkFail, "master.key"},
		"a credential for all to read": {func(dir string) { os.Chmod(put(t, filepath.Join(filepath.Dir(dir), "x.creds"), ""), 0o644) },
			[]string{"SIDEKEY_BUS_CREDENTIALS=../x.creds"}, "permissions", checkFail, "bus.credentials"},
		"an unfinished restore": {func(dir string) { put(t, filepath.Join(dir, restoringFile), "[]") }, nil, "restore", checkFail, "was not finished"},
		"no master key": {func(dir string) {
			os.Remove(filepath.Join(dir, masterKeyFile))
			os.Mkdir(filepath.Join(dir, "jetstream"), 0o700)
		}, nil, "master key", checkFail, "and no master.key"},
		"no issuer":                   {nil, nil, "issuer", checkFail, "connection refused"},
		"an issuer that is not ready": {nil, []string{"SIDEKEY_ADDR=" + late.URL}, "issuer", checkFail, "answers 503: no tick was read back"},
		"a clock that is off":         {nil, []string{"SIDEKEY_ADDR=" + late.URL}, "clocks", checkFail, "is off by 1h0m"},
		"no bus":                      {nil, nil, "bus", checkFail, "connection refused"},
		"an old nats-server":          {nil, []string{natsURL}, "bus", checkFail, "nats-server 2.10.4"},
		"no sync":                     {nil, []string{natsURL, "SIDEKEY_BUS_MONITOR_URL=" + unsynced.URL}, "jetstream", checkFail, "before they are on its disk"},
		"sync unknown":                {nil, []string{natsURL}, "jetstream", checkWarn, "is not known"},
		"sync of another's bus":       {func(dir string) { os.Mkdir(filepath.Join(dir, identityDir), 0o700) }, nil, "jetstream", checkWarn, "is not known"},
		"a certificate that ended":    {nil, []string{"SIDEKEY_ISSUER_TLS_CERT=" + ended, "SIDEKEY_ISSUER_TLS_KEY=" + endedKey}, "certificates", checkFail, "issuer.tls_cert " + ended + " ended"},
		"a certificate that ends":     {nil, []string{"SIDEKEY_ISSUER_TLS_CERT=" + ending, "SIDEKEY_ISSUER_TLS_KEY=" + endingKey}, "certificates", checkWarn, "in 1 days"},
		"a pair that is none":         {nil, []string{"SIDEKEY_ISSUER_TLS_CERT=" + ending, "SIDEKEY_ISSUER_TLS_KEY=" + endedKey}, "certificates", checkFail, "private key does not match"},
	} {
		dir, env := sick(t)
		if c.plant != nil {
			c.plant(dir)
		}
		for n := range c.env {
			c.env[n] = strings.Replace(c.env[n], "../", filepath.Dir(dir)+"/", 1)
		}
		status, all := examined(t, env(c.env...))
		if !found(all, c.check, c.status, c.text) || status != 1 {
			t.Errorf("%s: got status %d and %+v, want %s of %s with %q", name, status, all, c.status, c.check, c.text)
		}
		os.Chmod(dir, 0o700)
	}
}

// fakeNATS greets who connects with a line.
func fakeNATS(t *testing.T, greeting string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for conn, err := ln.Accept(); err == nil; conn, err = ln.Accept() {
			conn.Write([]byte(greeting + "\r\n"))
			conn.Close()
		}
	}()
	return ln.Addr().String()
}

func TestDoctorAgent(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer              string
		check, status, text string
	}{
		"well":                {`{"version":"` + version() + `","connected":true,"lease_ms":9000,"applied_seq":7}`, "agent", checkOK, "entry 7 applied"},
		"stale":               {`{"version":"v","connected":true,"stale":true}`, "agent", checkFail, "vouches for nobody"},
		"cut off":             {`{"version":"v","lease_ms":9000}`, "agent", checkWarn, "goes on for 9s"},
		"a fault":             {`{"version":"v","connected":true,"fault":"the log was rolled back"}`, "agent", checkFail, "the log was rolled back"},
		"another version":     {`{"version":"v0.0.1","connected":true}`, "versions", checkWarn, "the agent runs v0.0.1"},
		"a clock that is off": {`{"version":"v","connected":true,"clock_off_ms":-90000}`, "clocks", checkFail, "is off by -1m30s"},
		"no agent":            {`{"hello":"world"}`, "agent", checkFail, "is no agent"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write([]byte(c.answer)) }))
		dir := t.TempDir()
		for _, d := range []string{dir, filepath.Join(dir, identityDir)} {
			os.Mkdir(d, 0o700)
			os.Chmod(d, 0o700)
		}
		_, all := examined(t, []string{"SIDEKEY_DATA_DIR=" + t.TempDir(), "SIDEKEY_AGENT_DATA_DIR=" + dir, "SIDEKEY_AGENT_LISTEN=" + strings.TrimPrefix(srv.URL, "http://"), "SIDEKEY_AGENT_RUNTIME_DIR=/no/such/folder"})
		if !found(all, c.check, c.status, c.text) || !found(all, "runtime_dir", checkWarn, "is not there") || !found(all, "identity", checkFail, "bus.json") {
			t.Errorf("%s: got %+v, want %s of %s with %q", name, all, c.status, c.check, c.text)
		}
		srv.Close()
	}
	if status, all := examined(t, []string{"SIDEKEY_DATA_DIR=" + t.TempDir()}); status != 1 || !found(all, "host", checkFail, "neither an issuer") {
		t.Errorf("an empty host: got %d and %+v", status, all)
	}
}

// TestDoctorClocks: clocks are held against those of others, as the issuer knows them.
func TestDoctorClocks(t *testing.T) {
	t.Parallel()
	const alone, others = `"issuers":[{"name":"auth-2","ready":false}]`, `"issuers":[{"name":"auth-2","ready":true}]`
	for name, c := range map[string]struct{ issuer, issuers, agents, status, text string }{
		"well":                    {`{"name":"auth-1","clock_off_ms":800}`, others, `null`, checkOK, "issuer auth-1 against the other issuers' ticks: within 1s"},
		"the issuer's is off":     {`{"name":"auth-1","clock_off_ms":-9000}`, others, `null`, checkWarn, "issuer auth-1 against the other issuers' ticks is off by -9s"},
		"the issuer's is far off": {`{"name":"auth-1","clock_off_ms":90000}`, others, `null`, checkFail, "is off by 1m30s: tokens are refused"},
		"agents are well":         {`{}`, alone, `{"total":3,"states":{"ok":2,"silent":1}}`, checkOK, "no agent's clock is off by over 30s, of 2"},
		"an agent's is off": {`{}`, alone, `{"total":2,"states":{"ok":1,"clock":1},"worst":[{"name":"web-1","state":"clock","clock_off_ms":-40000}]}`,
			checkWarn, "1 agents' clocks are off the issuers': web-1 (-40s)"},
		"a stale agent's is off": {`{}`, alone, `{"total":2,"states":{"ok":1,"stale":1},"worst":[{"name":"web-1","state":"stale","clock_off_ms":40000}]}`,
			checkWarn, "web-1 (40s)"},
		"all are off, of one issuer": {`{"name":"auth-1"}`, alone,
			`{"total":3,"states":{"clock":2,"silent":1},"worst":[{"name":"web-1","state":"clock","clock_off_ms":-600000},{"name":"web-2","state":"clock","clock_off_ms":-600000}]}`,
			checkFail, "every agent that is heard is off the clock of issuer auth-1, the only one that ticks, so look at that one first: web-1 (-10m0s), web-2 (-10m0s)"},
		"all are off, of two": {`{}`, others, `{"total":1,"states":{"clock":1},"worst":[{"name":"web-1","state":"clock","clock_off_ms":-600000}]}`, checkWarn, "1 agents' clocks are off"},
	} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/admin/v1/status":
				w.Write([]byte(`{"issuer":` + c.issuer + `,` + c.issuers + `,"agents":` + c.agents + `}`))
			default:
				w.Write([]byte(`{"agents":[]}`))
			}
		}))
		_, env := sick(t)
		_, all := examined(t, env("SIDEKEY_ADDR="+srv.URL, "SIDEKEY_TOKEN=t"))
		if !found(all, "clocks", c.status, c.text) {
			t.Errorf("%s: got %+v, want %s with %q", name, all, c.status, c.text)
		}
		for _, f := range all {
			if f.Check == "clocks" && strings.Contains(f.Detail, "against the issuer at") {
				t.Errorf("%s: that the clock agrees with who may be this host is told as something: %+v", name, f)
			}
		}
		srv.Close()
	}
	for name, c := range map[string]struct {
		synced, known bool
		status        string
	}{"kept right": {true, true, checkOK}, "not kept": {false, true, checkWarn}, "not known": {}} {
		d := new(doctor)
		d.hostClock(c.synced, c.known)
		if c.status != "" && !found(d.findings, "clocks", c.status, "says its kernel") || c.status == "" && len(d.findings) > 0 {
			t.Errorf("%s: got %+v, want %q", name, d.findings, c.status)
		}
	}
}

func TestDoctorDisk(t *testing.T) {
	const gib = 1 << 30
	for name, c := range map[string]struct {
		room   room
		state  bool
		status string
		text   string
	}{
		"well":                  {room{free: 50 * gib, size: 100 * gib, inodes: 1 << 20}, true, checkOK, "left"},
		"state in memory":       {room{free: 50 * gib, memory: true}, true, checkFail, "is gone with the power"},
		"NFS":                   {room{free: 50 * gib, network: "NFS"}, true, checkWarn, "is on NFS"},
		"full":                  {room{free: 100 << 20}, true, checkFail, "100 MiB left"},
		"an agent's, full":      {room{free: 100 << 20}, false, checkWarn, "100 MiB left"},
		"nearly full":           {room{free: gib}, true, checkWarn, "1024 MiB left"},
		"less than a twentieth": {room{free: 4 * gib, size: 100 * gib}, true, checkWarn, "4096 MiB left"},
		"no inodes":             {room{free: 50 * gib, inodes: 12}, true, checkWarn, "12 more files"},
	} {
		d := new(doctor)
		d.judgeRoom("data_dir", "/d", c.state, c.room)
		if len(d.findings) != 1 || !found(d.findings, "disk", c.status, c.text) {
			t.Errorf("%s: got %+v, want %s with %q", name, d.findings, c.status, c.text)
		}
	}
}
