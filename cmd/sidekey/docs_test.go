package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// TestCommandsAreDocumented holds that each command that can be run is named whole ("sidekey keys rotate") in README.md
// or docs/operations.md.
func TestCommandsAreDocumented(t *testing.T) {
	pages := ""
	for _, path := range []string{"../../README.md", "../../docs/operations.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		pages += string(text) + "\n"
	}
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, flags: map[string]string{}}
	n := 0
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		for _, sub := range c.Commands() {
			walk(sub)
		}
		if c.HasSubCommands() || !c.HasParent() || !c.IsAvailableCommand() {
			return
		}
		n++
		if !regexp.MustCompile(regexp.QuoteMeta(c.CommandPath()) + `\b`).MatchString(pages) {
			t.Errorf("neither README.md nor docs/operations.md names `%s`", c.CommandPath())
		}
	}
	walk(a.rootCommand())
	if n < 20 {
		t.Errorf("found %d commands, want all of them", n)
	}
}

// TestAgentUnitKeepsItsLease holds what a lease needs to outlive a restart under systemd: its folder, kept; a name that
// services reach it by (with DynamicUser a kept folder is moved to /run/private); and the boot's id, which
// ProcSubset=pid hides.
func TestAgentUnitKeepsItsLease(t *testing.T) {
	text, err := os.ReadFile("../../deploy/systemd/sidekey-agent.service")
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]bool{
		"RuntimeDirectory=sidekey": true, "RuntimeDirectoryPreserve=yes": true, "Environment=SIDEKEY_AGENT_RUNTIME_DIR=/run/sidekey": true,
		"DynamicUser=yes": false, "ProcSubset=pid": false,
	} {
		if got := strings.Contains("\n"+string(text), "\n"+line+"\n"); got != want {
			t.Errorf("sidekey-agent.service has %s: got %v, want %v", line, got, want)
		}
	}
}

// TestNamedTestsExist holds that every test and every story that a page names is there.
func TestNamedTestsExist(t *testing.T) {
	functions := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			functions[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for path, page := range pages(t) {
		for _, m := range regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`").FindAllStringSubmatch(page, -1) {
			if named++; !functions[m[1]] {
				t.Errorf("%s names %s, which no test file has", path, m[1])
			}
		}
		for _, m := range regexp.MustCompile("story (`\\w+`)|stories ((?:`\\w+`(?:, )?)+)").FindAllStringSubmatch(page, -1) {
			for _, name := range regexp.MustCompile(`\w+`).FindAllString(m[1]+" "+m[2], -1) {
				if _, err := os.Stat("testdata/script/" + name + ".txtar"); err != nil {
					t.Errorf("%s names the story %s: %v", path, name, err)
				}
			}
		}
	}
	if named < 50 {
		t.Errorf("the pages name %d tests, want those of every claim", named)
	}
}

// pages are the texts that a user reads, by their paths.
func pages(t *testing.T) map[string]string {
	t.Helper()
	paths := []string{"README.md", "deploy/README.md"}
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range docs {
		paths = append(paths, "docs/"+filepath.Base(path))
	}
	texts := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile("../../" + path)
		if err != nil {
			t.Fatal(err)
		}
		texts[path] = string(text)
	}
	return texts
}

// TestNamedKeysExist holds that every key of the configuration that a page names in `agent.listen`'s way is one.
func TestNamedKeysExist(t *testing.T) {
	files := []string{"bus.keys", "bus.revoked", "bus.leaves", "bus.servers"} // of the issuer's and the agent's data_dir
	c := defaultConfig()
	names := keyNames(configFields(&c))
	named := 0
	for path, page := range pages(t) {
		for _, m := range regexp.MustCompile("`((?:issuer|agent|keys|bus)\\.[a-z][a-z_.]*)[` =]").FindAllStringSubmatch(page, -1) {
			if named++; !slices.Contains(names, m[1]) && !slices.Contains(files, m[1]) {
				t.Errorf("%s names %s, which is no key", path, m[1])
			}
		}
	}
	if named < 100 {
		t.Errorf("found %d keys in the pages, want all", named)
	}
}

// TestNamedFilesExist holds that the files of Go and the packages to test that a page names are there.
func TestNamedFilesExist(t *testing.T) {
	named := 0
	for path, page := range pages(t) {
		for _, m := range regexp.MustCompile("`((?:issuer|agent|bus|keyring|cmd)/[\\w/]+\\.go)|go test [^`\n]*\\s\\./([\\w/]+)").FindAllStringSubmatch(page, -1) {
			named++
			if _, err := os.Stat("../../" + m[1] + m[2]); err != nil {
				t.Errorf("%s names %s%s: %v", path, m[1], m[2], err)
			}
		}
	}
	if named < 30 {
		t.Errorf("found %d files in the pages, want all", named)
	}
}

// TestShownCommandsExist holds that the commands of the pages, in their blocks and between backquotes, are commands, and
// that those have the flags that are shown with them.
func TestShownCommandsExist(t *testing.T) {
	a := &app{stdin: strings.NewReader(""), stdout: io.Discard, stderr: io.Discard, flags: map[string]string{}}
	root := a.rootCommand()
	inProse := regexp.MustCompile("`sidekey ([a-z][^`\n]*)`")
	inBlock := regexp.MustCompile(`(?m)(?:^(?:\$ )?|\$\(|&& |sudo -u sidekey )sidekey ([a-z][^#<>|)&\n]*)`)
	shown := 0
	for path, page := range pages(t) {
		var found [][]string
		for i, text := range strings.Split(page, "```") {
			found = append(found, map[bool]*regexp.Regexp{true: inBlock, false: inProse}[i%2 == 1].FindAllStringSubmatch(text, -1)...)
		}
		for _, m := range found {
			c, rest, err := root.Find(strings.Fields(m[1]))
			if err != nil || c == root || (c.HasSubCommands() && len(rest) > 0) {
				t.Errorf("%s shows `sidekey %s`, which is no command: %v", path, m[1], err)
				continue
			}
			shown++
			for _, flag := range regexp.MustCompile(`--([a-z][a-z-]+)`).FindAllStringSubmatch(m[1], -1) {
				if c.Flags().Lookup(flag[1]) == nil && c.InheritedFlags().Lookup(flag[1]) == nil {
					t.Errorf("%s shows `sidekey %s`, which has no flag --%s", path, m[1], flag[1])
				}
			}
		}
	}
	if shown < 60 {
		t.Errorf("found %d commands in the pages, want all", shown)
	}
}

// TestSimpleJWTSettings holds that docs/simplejwt.md has a line for each of the 36 settings of Simple JWT 5.5, and names no key
// that does not exist.
func TestSimpleJWTSettings(t *testing.T) {
	text, err := os.ReadFile("../../docs/simplejwt.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([A-Z_]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		seen[row[1]] = true
	}
	if len(seen) != 36 {
		t.Errorf("docs/simplejwt.md maps %d settings, want 36", len(seen))
	}
	c := defaultConfig()
	names := keyNames(configFields(&c))
	for _, key := range regexp.MustCompile("`((?:issuer|agent|keys)\\.[a-z_]+)").FindAllStringSubmatch(string(text), -1) {
		if !slices.Contains(names, key[1]) {
			t.Errorf("docs/simplejwt.md names %s, which is no key", key[1])
		}
	}
}

// TestMetricsOfTheProcessAreDocumented holds that docs/metrics.md has what this package registers beside issuer, agent and bus: their
// own tests ask a handler, these metrics need a whole process.
func TestMetricsOfTheProcessAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"sidekey_certificate_expiry_timestamp_seconds", "sidekey_agent_certificate_expiry_timestamp_seconds"} // put together of two parts
	for _, path := range sources {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\bName:\s+"(sidekey_\w+)"`).FindAllStringSubmatch(string(text), -1) {
			names = append(names, m[1])
		}
	}
	for _, want := range []string{"sidekey_append_seconds", "sidekey_leases_granted_total", "sidekey_state_rolled_back"} {
		if !slices.Contains(names, want) {
			t.Errorf("found %q without %s", names, want)
		}
	}
	for _, name := range names {
		if !regexp.MustCompile("`" + name + "[`{]").Match(page) {
			t.Errorf("docs/metrics.md lacks %s", name)
		}
	}
}
