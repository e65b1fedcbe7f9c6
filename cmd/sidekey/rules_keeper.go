package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/agent"
	"github.com/sidekey/sidekey/agent/rules"
)

// maxRulesFile bounds a file of rules, in bytes.
const maxRulesFile = 8 << 20

// rulesSettle is how long a change may go on before the file is read: editors and package managers write in several steps.
const rulesSettle = 100 * time.Millisecond

// readRules reads agent.rules whole. The error names file and line.
func readRules(path string, authenticators []string) (*rules.Set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading the rules: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxRulesFile+1))
	if err != nil {
		return nil, fmt.Errorf("reading the rules: %w", err)
	}
	set, err := rules.Parse(path, data, rules.Options{Authenticators: authenticators})
	if err == nil && set.Len() == 0 {
		err = fmt.Errorf("%s: it has no [[rules]]", path)
	}
	return set, err
}

// rulesKeeper keeps an agent's rules as their file has them.
type rulesKeeper struct {
	path           string
	authenticators []string
	agent          *agent.Agent
	log            hclog.Logger
	local          string // version of the file that the agent was given
}

// mergeError: the file is good by itself, and does not go with what the log hands out.
type mergeError struct{ error }

// load puts the file in force, or says why not and leaves what is in force.
func (k *rulesKeeper) load() error {
	set, err := readRules(k.path, k.authenticators)
	if err != nil {
		return err
	}
	if k.local == set.Version() {
		return nil
	}
	k.local = set.Version()
	if err := k.agent.SetRules(set); err != nil {
		return &mergeError{err} // it is in the agent's log and status
	}
	k.log.Info("rules in force", "file", k.path, "rules", set.Len(), "version", set.Version())
	return nil
}

// reload is load for a file that has changed. A faulty one changes nothing, and shows in the status until it is mended.
func (k *rulesKeeper) reload() {
	err := k.load()
	if merge := (*mergeError)(nil); errors.As(err, &merge) {
		err = nil // the agent says so itself, until other sets come
	}
	k.agent.SetRulesFault(err)
	if err != nil {
		k.log.Error("not taking the changed rules, the old ones stay in force", "error", err)
	}
}

// run reloads at SIGHUP and when the file changes, until ctx ends.
func (k *rulesKeeper) run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err == nil {
		// The folder, not the file: a file that is replaced by renaming is another one.
		err = watcher.Add(filepath.Dir(k.path))
	}
	if err != nil {
		return fmt.Errorf("watching the rules: %w", err)
	}
	defer watcher.Close()
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	settle := time.NewTimer(rulesSettle)
	defer settle.Stop()
	for {
		select {
		case <-watcher.Events:
			settle.Reset(rulesSettle)
		case err := <-watcher.Errors:
			if !errors.Is(err, fsnotify.ErrEventOverflow) {
				k.log.Warn("could not watch the rules", "error", err)
			}
			settle.Reset(rulesSettle)
		case <-settle.C:
			k.reload()
		case <-hup:
			notifyReload(k.log, k.reload)
		case <-ctx.Done():
			return nil
		}
	}
}
