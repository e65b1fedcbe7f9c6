package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// units are the systemd units of deploy/, by path.
func units(t *testing.T) map[string]string {
	t.Helper()
	paths, err := filepath.Glob("../../deploy/systemd/*.service")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no units in deploy/systemd (%v)", err)
	}
	texts := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	return texts
}

// TestUnitsStartWhatExists holds that each ExecStart is a command line that this binary takes, and each variable one
// that the configuration reads.
func TestUnitsStartWhatExists(t *testing.T) {
	for path, text := range units(t) {
		start := regexp.MustCompile(`(?m)^ExecStart=/usr/local/bin/sidekey (.+)$`).FindStringSubmatch(text)
		if start == nil {
			t.Errorf("%s: no ExecStart of /usr/local/bin/sidekey", path)
			continue
		}
		a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, flags: map[string]string{}}
		cmd, args, err := a.rootCommand().Find(strings.Fields(start[1]))
		if err != nil || !cmd.HasParent() {
			t.Errorf("%s: ExecStart names no command of this binary: %s (%v)", path, start[1], err)
			continue
		}
		if err := cmd.ParseFlags(args); err != nil {
			t.Errorf("%s: ExecStart: %v", path, err)
		}
		var environ []string
		for _, m := range regexp.MustCompile(`(?m)^Environment=(.+)$`).FindAllStringSubmatch(text, -1) {
			environ = append(environ, m[1])
		}
		if _, err := loadConfig(defaultConfig(), sources{environ: environ}); err != nil {
			t.Errorf("%s: Environment: %v", path, err)
		}
	}
}

// systemdAnalyze is the command's path; in CI it must be there.
func systemdAnalyze(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skipf("the units cannot be judged here: %v", err)
	}
	return path
}

// TestUnitsVerify has systemd itself read the units, with this test's binary in the place of sidekey.
func TestUnitsVerify(t *testing.T) {
	analyze := systemdAnalyze(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	socket, err := os.ReadFile("../../deploy/systemd/sidekey-agent.socket")
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "sidekey-agent.socket")
	if err := os.WriteFile(copied, socket, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", "--man=no", copied}
	for path, text := range units(t) {
		copied := filepath.Join(dir, filepath.Base(path))
		if err := os.WriteFile(copied, []byte(strings.ReplaceAll(text, "/usr/local/bin/sidekey", self)), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, copied)
	}
	if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("systemd-analyze %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TestUnitsExposure holds the units to what systemd says of their sandbox: 0 is none of the host, 10 all of it.
func TestUnitsExposure(t *testing.T) {
	analyze := systemdAnalyze(t)
	for unit, most := range map[string]string{"issuer": "11", "agent": "11"} {
		path := "../../deploy/systemd/sidekey-" + unit + ".service"
		if out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+most, path).CombinedOutput(); err != nil {
			t.Errorf("%s: more than %s tenths are exposed (%v):\n%s", path, most, err, out)
		}
	}
}
