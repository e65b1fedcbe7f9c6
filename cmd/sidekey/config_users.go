package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/issuer/directory"
	"github.com/sidekey/sidekey/issuer/sqldb"
)

// Where users live: issuer.users.
const (
	usersHere    = "kv"
	usersSQL     = "sql"
	usersWebhook = "webhook"
)

// The names of systemd credentials (LoadCredential=).
const (
	credentialDSN     = "issuer-sql-dsn"
	credentialWebhook = "issuer-webhook-secret"
)

const maxUsersTimeout = 30 * time.Second

// findUserSecrets takes the files of systemd's credentials where no key names one.
func (c *Config) findUserSecrets(environ []string) {
	dir := lookupEnv(environ, envCredentials)
	for name, file := range map[string]*string{credentialDSN: &c.Issuer.SQL.DSNFile, credentialWebhook: &c.Issuer.Webhook.SecretFile} {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); dir != "" && *file == "" && err == nil {
			*file = path
		}
	}
}

// validateUsers judges what can be judged without asking anybody. That a file of a secret is named may be left to the
// environment of the issuer.
func (c *Config) validateUsers() error {
	is := &c.Issuer
	if is.UsersRecheck != 0 && (is.UsersRecheck < time.Second || is.UsersRecheck > 24*time.Hour) {
		return c.fault("issuer.users_recheck", "want 0s or a duration of 1s to 24h, got %s", is.UsersRecheck)
	}
	for key, d := range map[string]time.Duration{"issuer.sql.timeout": is.SQL.Timeout, "issuer.webhook.timeout": is.Webhook.Timeout} {
		if d < 10*time.Millisecond || d > maxUsersTimeout {
			return c.fault(key, "want a duration of 10ms to %s, got %s", maxUsersTimeout, d)
		}
	}
	for key, n := range map[string]int{"issuer.sql.max_connections": is.SQL.MaxConnections, "issuer.webhook.max_requests": is.Webhook.MaxRequests} {
		if n < 1 || n > 1000 {
			return c.fault(key, "want 1 to 1000, got %d", n)
		}
	}
	switch is.Users {
	case usersHere:
		return nil
	case usersSQL:
		return c.validateUsersSQL()
	case usersWebhook:
		if err := directory.CheckWebhookURL(is.Webhook.URL, c.Insecure); err != nil {
			return c.fault("issuer.webhook.url", "%v", err)
		}
		return nil
	}
	return c.fault("issuer.users", "want kv, sql or webhook, got %q", is.Users)
}

func (c *Config) validateUsersSQL() error {
	q := &c.Issuer.SQL
	if !slices.Contains(sqldb.Drivers, q.Driver) {
		return c.fault("issuer.sql.driver", "want %s, got %q", strings.Join(sqldb.Drivers, ", "), q.Driver)
	}
	placeholder := "?"
	if q.Driver == sqldb.Postgres {
		placeholder = "$1"
	}
	for _, query := range [][2]string{{"issuer.sql.query", q.Query}, {"issuer.sql.query_by_id", q.QueryByID}} {
		if !strings.Contains(query[1], placeholder) {
			return c.fault(query[0], "want a query with the parameter %s; docs/users.md has one for Django", placeholder)
		}
	}
	probe := issuer.User{ID: "1", Username: "u", Scope: q.Scope, Roles: q.Roles}
	if err := probe.Check(); err != nil {
		return c.fault("issuer.sql."+err.Field, "%s", err.Problem)
	}
	return nil
}

// openDirectory opens where users live elsewhere; nil: they live here. That a database or service is away is no reason not to
// start: logins wait for it, and sessions are not ended for it. A query that it does not take is.
func openDirectory(ctx context.Context, cfg *Config, log hclog.Logger) (d issuer.Directory, closing func() error, err error) {
	switch cfg.Issuer.Users {
	case usersSQL:
		return openUsersSQL(ctx, cfg, log)
	case usersWebhook:
		return openUsersWebhook(cfg)
	}
	return nil, func() error { return nil }, nil
}

func openUsersSQL(ctx context.Context, cfg *Config, log hclog.Logger) (issuer.Directory, func() error, error) {
	q := &cfg.Issuer.SQL
	dsn, err := secretOf("issuer.sql.dsn_file", q.DSNFile)
	if err != nil {
		return nil, nil, err
	}
	db, err := sqldb.Open(sqldb.Config{Driver: q.Driver, DSN: dsn, MaxConns: q.MaxConnections, Timeout: q.Timeout, Insecure: cfg.Insecure})
	if err != nil {
		return nil, nil, fmt.Errorf("issuer.sql: %w", err)
	}
	users := directory.NewSQL(db, directory.SQLConfig{Query: q.Query, QueryByID: q.QueryByID, Scope: q.Scope, Roles: q.Roles})
	err = users.Check(ctx)
	var wrong *sqldb.QueryError
	switch {
	case errors.As(err, &wrong):
		return nil, nil, errors.Join(err, db.Close())
	case err != nil:
		log.Error("the users' database cannot be asked; until it can, logins and refreshes answer 503", "error", err)
	}
	return users, db.Close, nil
}

func openUsersWebhook(cfg *Config) (issuer.Directory, func() error, error) {
	h := &cfg.Issuer.Webhook
	c := directory.WebhookConfig{URL: h.URL, Timeout: h.Timeout, MaxRequests: h.MaxRequests, Insecure: cfg.Insecure}
	if h.SecretFile != "" {
		var err error
		if c.Secret, err = secretOf("issuer.webhook.secret_file", h.SecretFile); err != nil {
			return nil, nil, err
		}
	}
	w, err := directory.NewWebhook(c)
	if err != nil {
		return nil, nil, err
	}
	return w, w.Close, nil
}

// secretOf reads a secret of one line that a key names the file of.
func secretOf(key, path string) (string, error) {
	if path == "" {
		return "", fmt.Errorf("%s: name the file that holds it; a secret is no part of the configuration", key)
	}
	text, err := readSecretFile(path)
	if err != nil {
		return "", fmt.Errorf("reading %s: %w", key, err)
	}
	if text = strings.TrimSpace(text); text == "" || !printable(text) {
		return "", fmt.Errorf("reading %s: %q holds no line of text", key, path)
	}
	return text, nil
}
