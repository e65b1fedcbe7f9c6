package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Variables that are no key of the configuration: the command line's own.
const (
	envAddr      = "SIDEKEY_ADDR"       // the issuer's URL, or unix: and a path
	envToken     = "SIDEKEY_TOKEN"      // the admin token; other processes of the user can see it
	envTokenFile = "SIDEKEY_TOKEN_FILE" // a file that holds the admin token
	envConfig    = "SIDEKEY_CONFIG"     // what --config says

	envMasterKeyFile = "SIDEKEY_MASTER_KEY_FILE" // the file that holds the issuers' master key
	envCredentials   = "CREDENTIALS_DIRECTORY"   // of systemd (LoadCredential=)
)

var ownVariables = []string{envAddr, envToken, envTokenFile, envConfig, envMasterKeyFile}

// serviceLinks are the variables that Kubernetes puts into every pod beside a Service named "sidekey" or
// "sidekey-...": nobody wrote them, so they are passed over.
var serviceLinks = regexp.MustCompile(`^SIDEKEY_([A-Z0-9_]+_)?(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// variable is "SIDEKEY_ISSUER_LISTEN" for issuer.listen.
func (f field) variable() string {
	return "SIDEKEY_" + strings.ToUpper(strings.ReplaceAll(f.key, ".", "_"))
}

// applyEnviron sets what the environment says. A SIDEKEY_ variable that nobody reads is an error, as a key in the
// file is: it is a misspelling that would pass unseen. An empty one counts as not set.
func applyEnviron(c *Config, fields []field, environ []string) error {
	names := slices.Clone(ownVariables)
	byName := map[string]field{}
	for _, f := range fields {
		if f.isMap() {
			continue
		}
		names = append(names, f.variable())
		byName[f.variable()] = f
	}
	for _, pair := range environ {
		name, text, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "SIDEKEY_") || text == "" || slices.Contains(ownVariables, name) {
			continue
		}
		f, ok := byName[name]
		if !ok && serviceLinks.MatchString(name) {
			continue
		}
		if !ok {
			return fmt.Errorf("unknown variable %s%s", name, didYouMean(name, names))
		}
		if err := f.setText(text); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		c.origin[f.key] = name
	}
	return nil
}

// findMasterKey says where the environment has the master key, "" where it has none.
func findMasterKey(environ []string) string {
	if path := lookupEnv(environ, envMasterKeyFile); path != "" {
		return path
	}
	if dir := lookupEnv(environ, envCredentials); dir != "" {
		path := filepath.Join(dir, masterKeyFile)
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return ""
}

// lookupEnv is the value of a variable in environ, "" when it is not set. The last one counts, as in a shell.
func lookupEnv(environ []string, name string) string {
	value := ""
	for _, pair := range environ {
		if n, v, _ := strings.Cut(pair, "="); n == name {
			value = v
		}
	}
	return value
}

// didYouMean is `; did you mean "agent.listen"?` for the nearest of the known names, or nothing when none is
// near: more than two letters and more than a third of them differ.
func didYouMean(name string, known []string) string {
	best, distance := "", max(2, len(strings.TrimPrefix(name, "SIDEKEY_"))/3)+1
	for _, k := range known {
		if d := editDistance(name, k); d < min(distance, len(name)) {
			best, distance = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// editDistance is Levenshtein's: how many letters must be put in, taken out or changed to make b of a.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, diagonal+1)
		}
	}
	return row[len(b)]
}
