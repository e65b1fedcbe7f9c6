// Package directory has the users who live elsewhere, as issuer.Directory wants them: in a database that a query is configured
// for, or behind a service that proves passwords itself. docs/users.md says how each is set up.
package directory

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sidekey/sidekey/issuer"
	"github.com/sidekey/sidekey/issuer/sqldb"
)

// SQLConfig is what is asked of a database.
type SQLConfig struct {
	Query     string   // finds a user by the name that is typed at a login: its one parameter
	QueryByID string   // finds a user by the column id, as text
	Scope     string   // of a user, where the queries have no column scope
	Roles     []string // of a user, where the queries have no column roles
}

// SQL is users in a database. A query gives at most one row, and these columns in any order; the first four must be there:
//
//	id         sub of the user's tokens: a number or text, which never changes and is never used again
//	username   text
//	password   a hash (docs/users.md); NULL: no password can be right
//	is_active  true or false, 1 or 0
//	scope      words with a blank between; NULL: none
//	roles      a JSON list of texts, or texts with a comma between; NULL: none
//	email      text; NULL: none
//	attributes a JSON object; NULL: none
//	marker     text that changes with the password; without the column, the hash itself
//
// Any other column becomes a member of attributes.
type SQL struct {
	db  *sqldb.DB
	cfg SQLConfig
}

var _ issuer.Directory = (*SQL)(nil)

var needed = []string{"id", "username", "password", "is_active"}

// NewSQL asks nothing yet.
func NewSQL(db *sqldb.DB, cfg SQLConfig) *SQL { return &SQL{db, cfg} }

// Check asks both queries for nobody, to see that the database takes them and which columns they have. A *sqldb.QueryError means
// that a query is wrong; any other error that the database is away.
func (s *SQL) Check(ctx context.Context) error {
	for _, q := range [][2]string{{"query", s.cfg.Query}, {"query_by_id", s.cfg.QueryByID}} {
		columns, err := s.db.Columns(ctx, q[1])
		if err != nil {
			return fmt.Errorf("issuer.sql.%s: %w", q[0], err)
		}
		for _, name := range needed {
			if !slices.Contains(columns, name) {
				return fmt.Errorf("issuer.sql.%s: %w", q[0], &sqldb.QueryError{Problem: fmt.Sprintf("it has no column %q; name one with AS", name)})
			}
		}
	}
	return nil
}

// Lookup implements issuer.Directory.
func (s *SQL) Lookup(ctx context.Context, username string) (*issuer.Account, error) {
	return s.find(ctx, s.cfg.Query, username)
}

// ByID implements issuer.Directory.
func (s *SQL) ByID(ctx context.Context, id string) (*issuer.Account, error) {
	a, err := s.find(ctx, s.cfg.QueryByID, id)
	if err == nil && a.ID != id { // databases take "07" for 7, and MySQL "7abc"
		return nil, issuer.ErrNotFound
	}
	return a, err
}

func (s *SQL) find(ctx context.Context, query, arg string) (*issuer.Account, error) {
	rows, err := s.db.Rows(ctx, 1, query, arg)
	if errors.Is(err, sqldb.ErrTooMany) {
		return nil, &issuer.RecordError{Problem: "the query finds more than one user"}
	}
	if err != nil {
		return nil, err
	}
	if len(rows) == 0 {
		return nil, issuer.ErrNotFound
	}
	a, err := s.account(row(rows[0]))
	if err != nil {
		return nil, &issuer.RecordError{Problem: err.Error()}
	}
	return a, nil
}

// account reads one row. Its errors name a column and the user's id, and never show what is in the column.
func (s *SQL) account(r row) (*issuer.Account, error) {
	a := &issuer.Account{User: issuer.User{Scope: s.cfg.Scope, Roles: s.cfg.Roles}}
	var err error
	if a.ID, err = r.text("id", true); err != nil {
		return nil, err
	}
	if err := r.fill(a); err != nil {
		return nil, fmt.Errorf("id %q: %w", a.ID, err)
	}
	return a, nil
}

// row is one row, by column.
type row map[string]any

// fill reads all but the id.
func (r row) fill(a *issuer.Account) (err error) {
	if a.Username, err = r.text("username", true); err != nil {
		return err
	}
	if a.PasswordHash, err = r.text("password", false); err != nil {
		return err
	}
	active, err := r.truth("is_active")
	if err != nil {
		return err
	}
	a.Disabled = !active
	if r.has("scope") {
		if a.Scope, err = r.text("scope", false); err != nil {
			return err
		}
	}
	if r.has("roles") {
		if a.Roles, err = r.list("roles"); err != nil {
			return err
		}
	}
	if a.Email, err = r.text("email", false); err != nil {
		return err
	}
	if a.Marker, err = r.text("marker", r.has("marker")); err != nil {
		return err
	}
	if !r.has("marker") {
		a.Marker = "hash:" + a.PasswordHash // never empty, so that a password taken away is a change
	}
	a.Attributes, err = r.attributes()
	return err
}

func (r row) has(column string) bool { _, ok := r[column]; return ok }

// text reads a column as text; NULL, or no column, is "" where it need not be there.
func (r row) text(column string, must bool) (string, error) {
	text := ""
	switch v := r[column].(type) {
	case nil:
		if must {
			return "", fmt.Errorf("column %q is NULL, or missing", column)
		}
	case string:
		text = v
	case []byte:
		text = string(v)
	case int64:
		text = strconv.FormatInt(v, 10)
	default:
		return "", fmt.Errorf("column %q is neither text nor a whole number", column)
	}
	switch {
	case !utf8.ValidString(text):
		return "", fmt.Errorf("column %q is not UTF-8", column)
	case must && text == "":
		return "", fmt.Errorf("column %q is empty", column)
	}
	return text, nil
}

// truth reads what databases have for true and false, and nothing else.
func (r row) truth(column string) (bool, error) {
	switch v := r[column].(type) {
	case bool:
		return v, nil
	case int64:
		if v == 0 || v == 1 {
			return v == 1, nil
		}
	case []byte: // bit(1) of MySQL
		if len(v) == 1 && v[0] <= 1 {
			return v[0] == 1, nil
		}
	}
	return false, fmt.Errorf("column %q is neither true nor false, 1 nor 0", column)
}

// list reads a JSON list of texts, or texts with a comma between.
func (r row) list(column string) ([]string, error) {
	text, err := r.text(column, false)
	if err != nil {
		return nil, err
	}
	all := []string{}
	if strings.HasPrefix(strings.TrimSpace(text), "[") {
		var members []*string
		if json.Unmarshal([]byte(text), &members) != nil {
			return nil, fmt.Errorf("column %q is no JSON list of texts", column)
		}
		for _, m := range members {
			if m != nil { // what an outer join gives for no row
				all = append(all, *m)
			}
		}
		return all, nil
	}
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			all = append(all, part)
		}
	}
	return all, nil
}

var own = []string{"id", "username", "password", "is_active", "scope", "roles", "email", "attributes", "marker"}

// attributes puts the column attributes and all columns that have no meaning of their own together.
func (r row) attributes() (json.RawMessage, error) {
	text, err := r.text("attributes", false)
	if err != nil {
		return nil, err
	}
	all := map[string]any{}
	if text != "" {
		var members map[string]json.RawMessage
		if json.Unmarshal([]byte(text), &members) != nil || members == nil {
			return nil, errors.New(`column "attributes" is no JSON object`)
		}
		for name, value := range members {
			all[name] = value
		}
	}
	for name, value := range r {
		if slices.Contains(own, name) {
			continue
		}
		switch v := value.(type) {
		case time.Time:
			value = v.UTC().Format(time.RFC3339Nano)
		case []byte:
			value = string(v)
		}
		if s, ok := value.(string); ok && !utf8.ValidString(s) {
			return nil, fmt.Errorf("column %q is not UTF-8", name)
		}
		all[name] = value
	}
	if len(all) == 0 {
		return nil, nil
	}
	encoded, err := json.Marshal(all)
	if err != nil {
		return nil, errors.New("a column has no form in JSON") // NaN
	}
	return encoded, nil
}
