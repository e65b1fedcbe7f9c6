package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/sidekey/sidekey/issuer"
)

// patience is how long a script waits for what must come in a moment; it is far above what a loaded machine needs.
const patience = 30 * time.Second

// TestMain lets more stories run at once than there are processors: they mostly wait. Passwords are hashed at a small cost, in the
// stories' processes too: what a hash costs is measured in the issuer's tests, and here it would be most of all that is computed.
func TestMain(m *testing.M) {
	issuer.DefaultHash = issuer.Hash{Memory: 1 << 10, Time: 1, Threads: 1}
	if strings.HasSuffix(os.Args[0], ".test") { // not a story's process, which is this binary too
		flag.Set("test.parallel", "6") //nolint:errcheck // it is a number; -parallel on the command line is read after it
	}
	testscript.Main(m, map[string]func(){"sidekey": main})
}

// TestScript runs the stories in testdata/script. Each runs this binary as processes of its own: sidekey is a
// command on the PATH of the script. Beside testscript's own commands there are those of scriptCommands.
func TestScript(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: false,
		RequireUniqueNames:  true,
		Cmds:                scriptCommands(),
		Condition: func(cond string) (bool, error) { // [long]: the slow stories are wanted too
			if cond != "long" {
				return false, fmt.Errorf("unknown condition %q", cond)
			}
			return long, nil
		},
		Setup: func(env *testscript.Env) error {
			env.Values[proxiesKey{}] = proxies{}
			env.Setenv("SIDEKEY_ISSUER_PASSWORD_MIN_LENGTH", "1") // the stories' users have the passwords of stories
			env.Setenv("SIDEKEY_ISSUER_PASSWORD_COMMON", "allow")
			env.Setenv("GORACE", "atexit_sleep_ms=0") // else each process of a -race build ends a second late
			return runtimeDir(env)
		},
	})
}

// runtimeDir gives the story's agents a folder in memory for their leases: /run is one on most machines, and not on
// all. Where there is none, agents keep no lease over a restart, and the stories that need it say so.
func runtimeDir(env *testscript.Env) error {
	dir, err := os.MkdirTemp("/dev/shm", "sidekey-test-")
	if err != nil {
		dir = env.WorkDir
	}
	env.Defer(func() { os.RemoveAll(dir) })
	env.Setenv("SIDEKEY_AGENT_RUNTIME_DIR", dir)
	return nil
}

// scriptCommands are the commands of our own:
//
//	exitcode N CMD ARG...              runs CMD and wants exit status N
//	freeport NAME...                   sets each variable to a port of 127.0.0.1 that was free a moment ago
//	waitfor [FLAGS] URL [STATUS]       asks until the answer has STATUS (200)
//	httpstatus [FLAGS] STATUS URL      asks once, wants STATUS; the body is stdout
//	jsonget NAME PATH                  sets NAME to a member of the JSON in stdout: a.b.0.c
//	login PREFIX URL USER PASSWORD     logs in; sets PREFIX_ACCESS and PREFIX_REFRESH
//	fleet                              sets ISSUER, ONE, TWO (URLs) and BUS, ONE_LISTEN, TWO_LISTEN (addresses), and
//	                                   the SIDEKEY_ variables that put an issuer and its bus there
//	invite NAME                        writes a join token for an agent to $WORK/NAME.token
//	natsserver [-stop] DIR             runs a nats-server, in this process, from DIR/nats-server.conf; or stops it
//	processes FILE                     writes the arguments and environments of the processes to FILE
//	nosecrets                          searches all files and all that proxies carried for every secret
//	proxy NAME ADDRESS                 passes TCP on to ADDRESS; sets NAME to its own
//	cut NAME, mend NAME                ends a proxy's connections and takes no more, until mended
//
// FLAGS of waitfor and httpstatus, in any number: -method M, -token T (bearer), -token-file FILE, -data BODY (JSON; makes
// it a POST), -has TEXT (the body must have it), -unix PATH (the URL's host is not looked at).
func scriptCommands() map[string]func(ts *testscript.TestScript, neg bool, args []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		"exitcode":   scriptExitCode,
		"freeport":   scriptFreePort,
		"waitfor":    scriptWaitFor,
		"httpstatus": scriptHTTPStatus,
		"jsonget":    scriptJSONGet,
		"login":      scriptLogin,
		"fleet":      scriptFleet,
		"invite":     scriptInvite,
		"natsserver": scriptNATSServer,
		"processes":  scriptProcesses,
		"nosecrets":  scriptNoSecrets,
		"proxy":      scriptProxy,
		"cut":        scriptCut,
		"mend":       scriptMend,
		"signal":     scriptSignal,
	}
}

func refuseNeg(ts *testscript.TestScript, neg bool) {
	if neg {
		ts.Fatalf("! is not for this command")
	}
}

func scriptExitCode(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) < 2 {
		ts.Fatalf("usage: exitcode N CMD ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%s: %v", args[1], err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit status: got %d, want %d", got, want)
	}
}

// nextPort is where the search for a free port goes on. It stays below the ports that the system gives to outgoing
// connections (32768 and up), so that none of those takes one before its daemon does, and gives none twice.
var nextPort atomic.Int64

func scriptFreePort(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	nextPort.CompareAndSwap(0, 20000+int64(os.Getpid()*16%12000))
	for _, name := range args {
		for {
			port := strconv.FormatInt(20000+nextPort.Add(1)%12000, 10)
			if ln, err := net.Listen("tcp", "127.0.0.1:"+port); err == nil {
				ts.Check(ln.Close())
				ts.Setenv(name, port)
				break
			}
		}
	}
}

// question is one HTTP request of a script.
type question struct {
	method, url, token, data, has string
	header                        http.Header
	http                          http.Client
	cookies                       []*http.Cookie // of the last answer
}

// parseQuestion reads the flags and returns what stands behind them.
func parseQuestion(ts *testscript.TestScript, args []string) (q *question, rest []string) {
	q = &question{http: http.Client{Timeout: patience}, header: http.Header{}}
	flags := flag.NewFlagSet("http", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	var socket, tokenFile string
	flags.StringVar(&q.method, "method", "", "")
	flags.StringVar(&q.token, "token", "", "")
	flags.StringVar(&tokenFile, "token-file", "", "")
	flags.StringVar(&q.data, "data", "", "")
	flags.StringVar(&q.has, "has", "", "")
	flags.StringVar(&socket, "unix", "", "")
	flags.Func("header", "", func(text string) error {
		name, value, ok := strings.Cut(text, ": ")
		if !ok {
			return fmt.Errorf("want NAME: VALUE, got %q", text)
		}
		q.header.Add(name, value)
		return nil
	})
	ts.Check(flags.Parse(args))
	if tokenFile != "" {
		q.token = strings.TrimSpace(ts.ReadFile(tokenFile))
	}
	if q.method == "" {
		q.method = http.MethodGet
		if q.data != "" {
			q.method = http.MethodPost
		}
	}
	transport := &http.Transport{DisableKeepAlives: true}
	if socket != "" {
		transport.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		}
	}
	q.http.Transport = transport
	return q, flags.Args()
}

// ask makes the request once.
func (q *question) ask() (status int, body string, err error) {
	req, err := http.NewRequest(q.method, q.url, strings.NewReader(q.data))
	if err != nil {
		return 0, "", err
	}
	req.Header = q.header.Clone()
	if q.token != "" {
		req.Header.Set("Authorization", "Bearer "+q.token)
	}
	if q.data != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := q.http.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	q.cookies = resp.Cookies()
	text, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text), err
}

// check asks once and says what is not as it should be.
func (q *question) check(want int) (body string, err error) {
	status, body, err := q.ask()
	switch {
	case err != nil:
		return "", err
	case status != want:
		return body, fmt.Errorf("%s %s: got status %d, want %d: %s", q.method, q.url, status, want, body)
	case !strings.Contains(body, q.has):
		return body, fmt.Errorf("%s %s: got %s, want %q in it", q.method, q.url, body, q.has)
	}
	return body, nil
}

func scriptWaitFor(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	q, rest := parseQuestion(ts, args)
	want := http.StatusOK
	if len(rest) == 2 {
		var err error
		want, err = strconv.Atoi(rest[1])
		ts.Check(err)
	} else if len(rest) != 1 {
		ts.Fatalf("usage: waitfor [FLAGS] URL [STATUS]")
	}
	q.url = rest[0]
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		body, err := q.check(want)
		if err == nil {
			fmt.Fprint(ts.Stdout(), body)
			return
		}
		select {
		case <-again.C:
		case <-deadline.C:
			ts.Fatalf("after %s still: %v", patience, err)
		}
	}
}

func scriptHTTPStatus(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	q, rest := parseQuestion(ts, args)
	if len(rest) != 2 {
		ts.Fatalf("usage: httpstatus [FLAGS] STATUS URL")
	}
	want, err := strconv.Atoi(rest[0])
	ts.Check(err)
	q.url = rest[1]
	body, err := q.check(want)
	ts.Check(err)
	for _, c := range q.cookies { // __Host-sidekey_session is kept as COOKIE_SESSION
		ts.Setenv("COOKIE_"+strings.ToUpper(c.Name[strings.LastIndex(c.Name, "_")+1:]), c.Value)
	}
	fmt.Fprint(ts.Stdout(), body)
}

func scriptJSONGet(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) != 2 {
		ts.Fatalf("usage: jsonget NAME PATH")
	}
	text := ts.ReadFile("stdout")
	d := json.NewDecoder(strings.NewReader(text))
	d.UseNumber()
	var value any
	ts.Check(d.Decode(&value))
	for part := range strings.SplitSeq(args[1], ".") {
		switch v := value.(type) {
		case map[string]any:
			value = v[part]
		case []any:
			i, err := strconv.Atoi(part)
			ts.Check(err)
			if i >= len(v) {
				ts.Fatalf("%s: a list of %d in %s", args[1], len(v), text)
			}
			value = v[i]
		default:
			value = nil
		}
	}
	if value == nil {
		ts.Fatalf("no %s in %s", args[1], text)
	}
	ts.Setenv(args[0], fmt.Sprint(value))
	fmt.Fprint(ts.Stdout(), text) // so that one answer can be read several times
}

func scriptLogin(ts *testscript.TestScript, neg bool, args []string) {
	refuseNeg(ts, neg)
	if len(args) != 4 {
		ts.Fatalf("usage: login PREFIX URL USER PASSWORD")
	}
	data, err := json.Marshal(map[string]string{"username": args[2], "password": args[3]})
	ts.Check(err)
	q, _ := parseQuestion(ts, []string{"-data", string(data)})
	q.url = args[1] + "/api/token/"
	body, err := q.check(http.StatusOK)
	ts.Check(err)
	var pair struct{ Access, Refresh string }
	ts.Check(json.Unmarshal([]byte(body), &pair))
	if pair.Access == "" || pair.Refresh == "" {
		ts.Fatalf("login: want an access and a refresh token, got %s", body)
	}
	ts.Setenv(args[0]+"_ACCESS", pair.Access)
	ts.Setenv(args[0]+"_REFRESH", pair.Refresh)
}
